"""Report a plan as tables and as plain values for JSON. Each figure has its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import log2
from typing import TYPE_CHECKING, Any

from penstock.engine.sizing.vision import vision_parameters, vision_weight_bytes
from penstock.engine.sizing.weights import active_parameters, parameters, weight_bytes
from penstock_bench.capacity.cost import ServingCost
from penstock_bench.capacity.knee import bounds
from penstock_bench.capacity.memory import devices_needed
from penstock_bench.capacity.notes import enough
from penstock_bench.capacity.pareto import Choice, at_interactivity
from penstock_bench.capacity.plan import CapacityPlan
from penstock_bench.capacity.roofline import Roofline
from penstock_bench.capacity.speed import Point, tokens_per_step

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PRICED = (
    "input_usd_per_million",
    "output_usd_per_million",
    "usd_per_1000_requests",
    "thought_usd_per_1000_requests",
)
PAPER, CONFIG, VLLM, ASSUMED = "formula", "config.json", "vLLM 0.32's rule", "assumed"
FITTED = "fitted to published runs (docs/maintainers/published-runs.md)"
HOST = "published pairs with and without it (docs/maintainers/published-runs.md)"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its section, its name and its source (`origin`)."""

    section: str
    name: str
    value: float
    unit: str
    origin: str


def figures(plan: CapacityPlan) -> list[Figure]:
    """Return all figures except the table by concurrency."""
    return [*_model(plan), *_memory(plan), *_ceilings(plan), *_assumptions(plan), *_money(plan)]


def _model(plan: CapacityPlan) -> Iterator[Figure]:
    setup, shape = plan.setup, plan.setup.shape
    precision = "NVFP4 experts" if setup.nvfp4_weights else "FP8" if setup.fp8_weights else "bfloat16"
    yield Figure("model", "parameters", parameters(shape), "", CONFIG)
    yield Figure("model", "parameters that one token uses", active_parameters(shape), "", CONFIG)
    draft = setup.drafted > 0
    yield Figure(
        "model",
        f"weights, {precision}",
        weight_bytes(shape, setup.fp8_weights, draft, nvfp4=setup.nvfp4_weights),
        "bytes",
        f"{CONFIG}, {PAPER}",
    )
    yield Figure("model", "weights, bfloat16", weight_bytes(shape, False, draft), "bytes", f"{CONFIG}, {PAPER}")
    if setup.tower is None:
        return
    yield Figure("model", "vision tower, parameters", vision_parameters(setup.tower), "", CONFIG)
    tower = vision_weight_bytes(setup.tower)
    yield Figure("model", "vision tower, bfloat16", tower, "bytes", f"{CONFIG}, {PAPER}")
    largest = f"{CONFIG}, {PAPER}; engine.image_pixels"
    yield Figure("model", "tokens of the largest image", setup.largest_image_tokens, "tokens", largest)


def _memory(plan: CapacityPlan) -> Iterator[Figure]:
    setup, memory, cache = plan.setup, plan.memory, plan.memory.cache
    device, where = setup.device, "per device"
    if setup.cache_bytes is None:
        usable = f"{device.memory_source or device.source}; x {setup.utilization:g}, engine.gpu_memory_utilization"
        yield Figure(where, "usable", memory.usable_bytes, "bytes", usable)
    yield Figure(where, "weights", memory.weight_bytes, "bytes", f"{CONFIG}, {PAPER}")
    if setup.tower is not None:
        yield Figure(where, "vision tower", memory.tower_bytes, "bytes", f"{CONFIG}, {PAPER}")
    if setup.cache_bytes is None:
        yield Figure(where, "activations, largest step", memory.activation_bytes, "bytes", f"{PAPER}, an estimate")
        yield Figure(where, "runtime, links, graphs", memory.fixed_bytes, "bytes", f"{ASSUMED}; --fixed-gib")
    if not memory.fits:
        needed = memory.cache.block_bytes - memory.cache_bytes
        yield Figure(where, "lacks, for one block of cache", needed, "bytes", PAPER)
        return
    left = "what is left" if setup.cache_bytes is None else "engine.kv_cache_gib"
    yield Figure(where, "cache", memory.cache_bytes, "bytes", left)
    yield Figure(where, "keys and values per token", cache.kv_bytes_per_token, "bytes", f"{CONFIG}, {PAPER}")
    if setup.drafted:
        yield Figure(where, "and the draft layer's", cache.draft_kv_bytes_per_token, "bytes", f"{CONFIG}, {PAPER}")
    yield Figure(where, "Gated DeltaNet state per sequence", cache.state_bytes, "bytes", f"{CONFIG}, {PAPER}")
    yield Figure(where, "tokens per cache block", cache.block_tokens, "tokens", VLLM)
    yield Figure(where, "bytes per cache block", cache.block_bytes, "bytes", VLLM)
    yield Figure(where, "blocks for states, per sequence", cache.state_blocks, "blocks", VLLM)
    yield Figure(where, "cache blocks", cache.blocks(memory.cache_bytes), "blocks", VLLM)
    tokens = cache.tokens(memory.cache_bytes, setup.window_tokens)
    yield Figure(where, "cache size, as vLLM logs it", tokens, "tokens", VLLM)


def _ceilings(plan: CapacityPlan) -> Iterator[Figure]:
    if not plan.memory.fits:
        return
    data = plan.setup.layout.data
    for tokens in plan.contexts:
        fit = plan.memory.sequences(tokens, data)
        yield Figure("at once", f"contexts of {tokens:,} tokens", fit, "contexts", VLLM)
    limit = plan.setup.max_sequences * data
    yield Figure("at once", "requests that the scheduler takes", limit, "requests", "engine.max_concurrent_requests")


def _assumptions(plan: CapacityPlan) -> Iterator[Figure]:
    assumed, device, where = plan.assumed, plan.setup.device, "speed"
    yield Figure(where, "bandwidth", device.bandwidth_gb_per_second, "GB/s", device.source)
    peak = device.flops(plan.setup.fp8_weights, plan.setup.nvfp4_weights) / 1e12
    yield Figure(where, "matrix operations", peak, "T/s", device.source)
    yield Figure(where, "share of bandwidth reached", assumed.bandwidth_share, "", f"{FITTED}; --bandwidth-share")
    converts = plan.setup.fp8_weights or plan.setup.nvfp4_weights
    reached = assumed.compute_reached(plan.setup.layout.tensor) * (assumed.narrow_compute if converts else 1)
    yield Figure(where, "share of operations reached", reached, "", f"{FITTED}; --compute-share")
    fixed = assumed.fixed_seconds(plan.setup.shape.layers, converts)
    yield Figure(where, "fixed time per step", fixed * 1e3, "ms", f"{FITTED}; --step-ms")
    yield Figure(where, "and for each request in it", assumed.sequence_seconds * 1e6, "us", FITTED)
    start = assumed.exchange_seconds * log2(plan.setup.layout.tensor)
    yield Figure(where, "time to start an exchange", start * 1e6, "us", FITTED)
    if plan.knee is not None:
        yield Figure(where, "knee, requests at once", plan.knee, "requests", f"{PAPER}, throughput over response time")
    mix = plan.wanted.mix
    if mix.images:
        encode = Roofline(plan.setup, plan.memory.cache, assumed).encode_seconds(mix.tokens_per_image)
        yield Figure(where, "tokens of an image", mix.tokens_per_image, "tokens", "--image-pixels")
        yield Figure(where, "time to encode an image", encode * 1e3, "ms", f"{PAPER}, at the bfloat16 peak's share")
    if plan.setup.drafted:
        yield Figure(
            where,
            "tokens of a step, drafts included",
            tokens_per_step(plan.setup.drafted, assumed.acceptance),
            "",
            plan.wanted.acceptance_source,
        )
        yield Figure(where, "fixed time per draft pass", assumed.draft_seconds * 1e3, "ms", FITTED)
    if not plan.setup.async_scheduling:
        yield Figure(where, "the host's time per step", assumed.host_seconds * 1e3, "ms", HOST)
        yield Figure(where, "the host's time per request", assumed.host_sequence_seconds * 1e6, "us", HOST)
    if plan.fit:
        said = plan.fit.correction
        yield Figure(where, "step seconds, measured / paper", said.decode_factor, "x", said.source)
        yield Figure(where, "and added per step", said.decode_extra_seconds * 1e3, "ms", said.source)
        yield Figure(where, "prompt seconds, measured / paper", said.prefill_factor, "x", said.source)
        yield Figure(where, "mean error after calibration", plan.fit.error, "share", said.source)


def _money(plan: CapacityPlan) -> Iterator[Figure]:
    wanted = plan.wanted
    if wanted.usd_per_device_hour is None or plan.usd_per_hour is None:
        return
    yield Figure("cost", "one device, per hour", wanted.usd_per_device_hour, "USD", wanted.price_source)
    yield Figure("cost", f"{plan.setup.count} devices, per hour", plan.usd_per_hour, "USD", PAPER)
    if wanted.hosted is not None:
        yield Figure("cost", "hosted, per million input", wanted.hosted.input_usd, "USD", wanted.hosted.source)
        said = wanted.hosted.source
        yield Figure("cost", "hosted, per million output and thought", wanted.hosted.output_usd, "USD", said)
    if plan.break_even is not None:
        even = plan.break_even
        yield Figure("cost", "hosted, per 1,000 requests", even.hosted_usd_per_request * 1e3, "USD", PAPER)
        yield Figure("cost", "most requests per hour", even.capacity_requests_per_hour, "requests", PAPER)
        yield Figure("cost", "break-even requests per hour", even.requests_per_hour, "requests", PAPER)
        yield Figure("cost", "break-even load", even.load, "share", PAPER)


def rows(plan: CapacityPlan) -> list[dict[str, Any]]:
    """Return the table by concurrency as plain values."""
    costs: list[ServingCost | None] = [*plan.costs] if plan.costs else [None] * len(plan.points)
    return [_row(plan, point, cost) for point, cost in zip(plan.points, costs, strict=True)]


def _row(plan: CapacityPlan, point: Point, cost: ServingCost | None) -> dict[str, Any]:
    mix = plan.wanted.mix
    prompts = point.prompt_tokens_per_second / plan.setup.layout.data
    past = plan.knee is not None and point.concurrency > plan.knee
    row: dict[str, Any] = {
        "concurrency": point.concurrency,
        "fits": point.fits,
        "step_seconds": point.step_seconds,
        "limited_by": point.step.limit,
        "paper_step": asdict(point.step),
        "experts_read_share": point.step.expert_share,
        "tokens_per_step": point.tokens_per_step,
        "stream_tokens_per_second": point.stream_tokens_per_second,
        "decode_tokens_per_second": point.decode_tokens_per_second,
        "prompt_tokens_per_second": point.prompt_tokens_per_second,
        "prompt_seconds": mix.read_tokens / prompts,
        "requests_per_second": point.requests_per_second,
        "output_tokens_per_second": point.output_tokens_per_second(mix),
        "output_tokens_per_second_range": bounds(point.output_tokens_per_second(mix), past, plan.setup.device),
        "past_knee": past,
    }
    if plan.setup.device.watts is not None:
        watts = plan.setup.device.watts * plan.setup.count
        row["joules_per_output_token"] = watts / point.output_tokens_per_second(mix)
    if cost is not None:
        row |= {
            "input_usd_per_million": cost.input_usd,
            "output_usd_per_million": cost.output_usd,
            "thought_usd_per_million": cost.output_usd,
            "usd_per_1000_requests": cost.request_usd * 1e3,
            "thought_usd_per_1000_requests": cost.thought_usd_per_request * 1e3,
        }
    return row


def as_json(plan: CapacityPlan, notes: list[str]) -> dict[str, Any]:
    """Return the plan and its notes as plain values for JSON."""
    setup = plan.setup
    return {
        "model": setup.model,
        "fits": plan.memory.fits,
        "device": asdict(setup.device),
        "count": setup.count,
        "layout": asdict(setup.layout),
        "mix": asdict(plan.wanted.mix),
        "profile": [asdict(one) for one in plan.decisions],
        "figures": [{**asdict(one), "from": one.origin} for one in figures(plan)],
        "speed_from": plan.fit.correction.source if plan.fit else "paper: roofline of data-sheet peaks, " + FITTED,
        "points": rows(plan),
        "prompt_step": asdict(plan.prefill) | {"seconds": plan.prefill.seconds, "limited_by": plan.prefill.limit},
        "knee": plan.knee,
        "drafts_lose_from": plan.drafts_lose_from,
        "pareto": [asdict(one) for one in plan.frontier],
        "at_interactivity": asdict(chosen) if (chosen := wanted_choice(plan)) else None,
        "devices_that_would_fit": None if plan.memory.fits else (devices_needed(setup) or (None,))[0],
        "break_even": asdict(plan.break_even) | {"load": plan.break_even.load} if plan.break_even else None,
        "notes": notes,
    }


def show(console: Console, plan: CapacityPlan, notes: list[str]) -> None:
    """Print the tables and the notes."""
    setup, layout = plan.setup, plan.setup.layout
    spread = f"tensor {layout.tensor} x data {layout.data}" + (", experts over all" if layout.experts else "")
    console.out(f"{setup.model} on {setup.count} x {setup.device.name}: {spread}", style="bold", highlight=False)
    fits = "fits" if plan.memory.fits else f"DOES NOT FIT; {enough(plan)}"
    mix = plan.wanted.mix
    pictures = f", {mix.image_tokens:,} of image{'s' if mix.images > 1 else ''}" if mix.images else ""
    console.out(
        f"{fits}. A request: {mix.input_tokens:,} tokens in ({mix.cached_share:.0%} cached{pictures}), "
        f"{mix.thought_tokens:,} of thought, {mix.answer_tokens:,} of answer",
        highlight=False,
    )
    for section in dict.fromkeys(one.section for one in figures(plan)):
        table = _table(section, ("", True), ("from", False))
        for one in figures(plan):
            if one.section == section:
                table.add_row(one.name, _shown(one), one.origin)
        console.print()
        console.print(table)
    if plan.points:
        _show_points(console, plan)
    if plan.frontier:
        _show_frontier(console, plan)
    console.print()
    for note in notes:
        console.out(f"! {note}", highlight=False)


def _show_points(console: Console, plan: CapacityPlan) -> None:
    names = ("step ms", "limit", "tok/s/stream", "decode tok/s", "prompt tok/s", "output tok/s: range", "J/token")
    money = ("$/M in", "$/M out, thought", "$/1000 req", "of it thought") if plan.costs else ()
    table = _table("requests at once", *((name, True) for name in (*names, *money)))
    for row in rows(plan):
        cells = [
            f"{row['step_seconds'] * 1e3:.1f}",
            row["limited_by"],
            f"{row['stream_tokens_per_second']:.1f}",
            f"{row['decode_tokens_per_second']:,.0f}",
            f"{row['prompt_tokens_per_second']:,.0f}",
            "{:,.0f} to {:,.0f}".format(*row["output_tokens_per_second_range"]),
            f"{row['joules_per_output_token']:.3g}" if "joules_per_output_token" in row else "",
        ]
        if plan.costs:
            cells += [f"{row[name]:.3g}" for name in _PRICED]
        marks = [mark for mark, is_so in (("queues", not row["fits"]), ("past the knee", row["past_knee"])) if is_so]
        table.add_row(f"{row['concurrency']}" + (f" ({', '.join(marks)})" if marks else ""), *cells)
    console.print()
    console.print(table)
    said = (
        plan.fit.correction.source
        if plan.fit
        else "computed from data-sheet peaks and constants fitted to published runs; nothing was measured here"
    )
    console.out(said, style="dim", highlight=False)
    console.out("output tok/s: while prompts are read, too. J/token: at the devices' largest power", style="dim")


def wanted_choice(plan: CapacityPlan) -> Choice | None:
    """Return the cheapest choice at the wanted interactivity, or None."""
    wanted = plan.wanted.interactivity
    return None if wanted is None else at_interactivity(plan.frontier, wanted)


def _show_frontier(console: Console, plan: CapacityPlan) -> None:
    """Print the Pareto table: rates of a user and of a device."""
    money = (("$/M in + out", True),) if plan.usd_per_hour is not None else ()
    table = _table(
        "tok/s per user",
        ("tok/s per device", True),
        ("tensor x data", True),
        ("drafts", True),
        ("at once", True),
        *money,
    )
    for one in plan.frontier:
        cells = [f"{one.device_tokens_per_second:,.1f}", f"{one.tensor} x {one.data}", f"{one.drafted}"]
        cells.append(f"{one.concurrency:,}")
        if one.usd_per_million is not None:
            cells.append(f"{one.usd_per_million:.3g}")
        table.add_row(f"{one.user_tokens_per_second:.1f}", *cells)
    console.print()
    console.print(table)
    if plan.wanted.interactivity is None:
        return
    chosen, wanted = wanted_choice(plan), plan.wanted.interactivity
    if chosen is None:
        console.out(f"no layout of these devices gives each user {wanted:g} tok/s", highlight=False)
    else:
        price = "" if chosen.usd_per_million is None else f", {chosen.usd_per_million:.3g} USD per million in and out"
        console.out(
            f"at {wanted:g} tok/s per user: tensor {chosen.tensor} x data {chosen.data}, {chosen.drafted} drafts, "
            f"{chosen.concurrency:,} at once, {chosen.device_tokens_per_second:,.1f} tok/s per device{price}",
            highlight=False,
        )


def _shown(one: Figure) -> str:
    match one.unit:
        case "bytes" if one.value >= 1e9:
            return f"{one.value / 1e9:,.2f} GB"
        case "bytes" if abs(one.value) >= 1e6:
            return f"{one.value / 1e6:,.2f} MB"
        case "contexts":
            return f"{one.value:,.2f}"
        case "" if one.value >= 1e8:
            return f"{one.value / 1e9:,.2f} billion"
        case "" if one.value >= 1e4:
            return f"{one.value / 1e6:,.2f} million"
        case "share":
            return f"{one.value:.1%}"
        case "USD" | "x" | "ms" | "T/s" | "":
            return f"{one.value:,.4g} {one.unit}".strip()
    return f"{one.value:,.0f} {one.unit}"


def _table(first: str, *columns: tuple[str, bool]) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(first, no_wrap=True)
    for name, right in columns:
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    return made
