"""What an architect should mind in a plan, each with what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.capacity.plan import Plan


def notes(plan: Plan) -> list[str]:
    return [*_fit(plan), *_layout(plan), *_speed(plan), *_money(plan)]


def _fit(plan: Plan) -> Iterator[str]:
    setup, memory = plan.setup, plan.memory
    if not memory.fits:
        needed = memory.weight_bytes + memory.activation_bytes + memory.fixed_bytes + memory.cache.block_bytes
        yield (
            f"does not fit: a device needs {needed / 1e9:.1f} GB and has {memory.usable_bytes / 1e9:.1f}; "
            "more devices, larger ones, or FP8 weights"
        )
        return
    window = memory.sequences(setup.window_tokens, setup.layout.data)
    if window < setup.layout.data:
        yield (
            f"the window of {setup.window_tokens:,} tokens does not fit once per replica: vLLM refuses to start; "
            "set engine.max_context_tokens lower, or spread a replica over more devices"
        )
    for one in plan.points:
        if not one.fits:
            yield f"{one.concurrency} requests do not all fit at once: some wait or are preempted, the row is too good"
            break


def _layout(plan: Plan) -> Iterator[str]:
    setup, cache = plan.setup, plan.memory.cache
    copies = setup.layout.tensor // setup.shape.kv_heads
    if copies > 1:
        yield (
            f"each key-value head is kept {copies} times: {setup.shape.kv_heads} heads over {setup.layout.tensor} "
            "devices; smaller tensor and more data parallelism keeps it once and holds more contexts"
        )
    spare = setup.count - setup.layout.ranks
    if spare:
        yield f"{spare} of {setup.count} devices are idle in this layout"
    if setup.prefix_caching and setup.shape.linear_layers:
        yield (
            f"prefixes are found again in steps of {cache.block_tokens:,} tokens, and a sequence holds "
            f"{cache.state_blocks} blocks for its states however short it is"
        )


def _speed(plan: Plan) -> Iterator[str]:
    if plan.memory.fits and plan.prefill.limit == "memory":
        yield (
            f"prompts are read in steps of {plan.setup.batch_tokens:,} tokens, which wait for weights rather than "
            "arithmetic: a larger engine.max_batch_tokens reads them faster"
        )
    if plan.setup.fp8_weights and plan.setup.device.kind == "gpu" and plan.setup.device.fp8_tflops is None:
        yield f"{plan.setup.device.name} has no FP8 units: weights are widened, arithmetic runs at its bfloat16 peak"
    if plan.fit and plan.fit.model and plan.fit.model.rsplit("/")[-1] != plan.setup.model.rsplit("/")[-1]:
        yield f"the calibration was taken with {plan.fit.model}, not with this model"


def _money(plan: Plan) -> Iterator[str]:
    if plan.wanted.usd_per_device_hour is None:
        yield "no price per hour is known: --usd-per-device-hour gives one, and costs are told"
    even = plan.break_even
    if even is None:
        return
    if even.reached:
        yield f"cheaper than hosted from {even.requests_per_hour:,.0f} requests per hour on, {even.load:.0%} load"
    else:
        yield f"hosted stays cheaper: fully busy, this serves 1/{even.load:.1f} of the requests that would pay for it"
