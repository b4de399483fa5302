"""Write notes on a plan for its reader, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator

from penstock_bench.capacity.memory import MAX_DEVICES, devices_needed
from penstock_bench.capacity.plan import CapacityPlan

_MANY_STREAMS, _LONG_TOKENS = 64, 32_768
PUBLISHED_ERRORS = {"h100": 0.05, "h200": 0.06, "b200": 0.09, "b300": 0.08, "mi300x": 0.38, "mi355x": 0.15}
"""Median error of the speed for published runs that are not fitted, by device; a test compares them with the runs."""


def notes(plan: CapacityPlan) -> list[str]:
    """Return the notes on a plan: whether it fits, its layout, its speed and its cost."""
    return [*_fit(plan), *_layout(plan), *_speed(plan), *_money(plan)]


def _fit(plan: CapacityPlan) -> Iterator[str]:
    setup, memory = plan.setup, plan.memory
    if not memory.fits:
        needed = memory.needed_bytes + memory.cache.block_bytes
        yield (
            f"does not fit: a device needs {needed / 1e9:.1f} GB and has {memory.usable_bytes / 1e9:.1f}; "
            f"{enough(plan)}"
        )
        return
    window = memory.sequences(setup.window_tokens, setup.layout.data)
    if window < setup.layout.data:
        yield (
            f"the window of {setup.window_tokens:,} tokens does not fit once per replica: vLLM refuses to start; "
            "lower engine.max_context_tokens, or use more devices per replica"
        )
    for one in plan.points:
        if not one.fits:
            yield f"{one.concurrency} requests do not all fit at once: some wait or are preempted; the row is too high"
            break


def enough(plan: CapacityPlan) -> str:
    """Say how many devices would hold the model."""
    found = devices_needed(plan.setup)
    if found is None:
        return f"even {MAX_DEVICES} of these devices do not hold it"
    count, layout = found
    return f"{count} x {plan.setup.device.name} would hold it (tensor {layout.tensor} x data {layout.data})"


def _layout(plan: CapacityPlan) -> Iterator[str]:
    setup, cache = plan.setup, plan.memory.cache
    copies = setup.layout.tensor // setup.shape.kv_heads
    if copies > 1:
        yield (
            f"each key-value head is kept {copies} times: {setup.shape.kv_heads} heads over {setup.layout.tensor} "
            "devices; with less tensor and more data parallelism each is kept once, and more contexts fit"
        )
    spare = setup.count - setup.layout.ranks
    if spare:
        yield f"{spare} of {setup.count} devices are idle in this layout"
    if setup.prefix_caching and setup.shape.linear_layers:
        yield (
            f"the prefix cache keeps blocks of {cache.block_tokens:,} tokens, and a sequence holds "
            f"{cache.state_blocks} blocks for its states, even if it is short"
        )


def _speed(plan: CapacityPlan) -> Iterator[str]:
    past = [one.concurrency for one in plan.points if plan.knee is not None and one.concurrency > plan.knee]
    if past:
        yield (
            f"rows from {past[0]} requests are past the knee at {plan.knee}: there, response times grow faster than "
            "throughput, and published runs differ from the figure by up to 30 % (two of an early engine by 46 %)"
        )
    if plan.setup.device.kind == "gpu" and plan.fit is None:
        yield _trust(plan.setup.device.key)
    if plan.drafts_lose_from is not None:
        yield (
            f"from {plan.drafts_lose_from} concurrent requests, the machine is faster without drafts "
            "(engine.mtp = off, or fewer engine.mtp_draft_tokens)"
        )
    yield from _drafts(plan)
    if plan.memory.fits and plan.prefill.limit == "memory":
        yield (
            f"prompts are read in steps of {plan.setup.batch_tokens:,} tokens, which memory bandwidth limits, not "
            "arithmetic: a larger engine.max_batch_tokens reads them faster"
        )
    if plan.setup.fp8_weights and plan.setup.device.kind == "gpu" and plan.setup.device.fp8_tflops is None:
        yield f"{plan.setup.device.name} has no FP8 units: weights are converted, and arithmetic has the bfloat16 peak"
    if plan.fit and plan.fit.model and plan.fit.model.rsplit("/")[-1] != plan.setup.model.rsplit("/")[-1]:
        yield f"the calibration is from {plan.fit.model}, not from this model"


def _trust(device: str) -> str:
    """Say how far the speed of a device is to be trusted."""
    page = "docs/maintainers/published-runs.md"
    error = PUBLISHED_ERRORS.get(device)
    if error is None:
        return f"no published run on this device was found, so nothing checks its speed ({page}): use --calibrate"
    return f"the speed differs by {error:.0%} at the median from published runs on this device, not fitted ({page})"


def _drafts(plan: CapacityPlan) -> Iterator[str]:
    if not plan.setup.drafted:
        return
    if any(one.concurrency >= _MANY_STREAMS for one in plan.points):
        yield (
            f"drafts can cost throughput at {_MANY_STREAMS} streams or more, not shown in these figures: -32 % on H100 "
            "(vllm-project/recipes PR 923); measure with engine.mtp on and off"
        )
    if plan.wanted.mix.total_tokens >= _LONG_TOKENS:
        yield (
            "fewer drafts are accepted in long contexts: 93.5 % fell to 72.1 % at the first position (vLLM 47602); "
            "plan with --acceptance long-context too"
        )


def _money(plan: CapacityPlan) -> Iterator[str]:
    if plan.wanted.usd_per_device_hour is None:
        yield "no price per hour is known, so there are no costs: give one with --usd-per-device-hour"
    elif plan.wanted.hosted is None:
        yield "no hosted price of this model is known, so there is no break-even: set --hosted-input, --hosted-output"
    even = plan.break_even
    if even is None:
        return
    if even.reached:
        yield f"cheaper than hosted from {even.requests_per_hour:,.0f} requests per hour, a load of {even.load:.0%}"
    else:
        yield f"hosted is always cheaper: at full load, this serves 1/{even.load:.1f} of the break-even requests"
