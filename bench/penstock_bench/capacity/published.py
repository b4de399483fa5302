"""Fit the speed model to one half of the published runs, and compare it with the other half.

published-runs.toml has the runs and the rule for the halves. `scripts/published-runs` is the command.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from penstock.engine.sizing.shape import Shape
from penstock.engine.sizing.weights import ParallelLayout
from penstock_bench.capacity.acceptance import DEFAULT, load_acceptance
from penstock_bench.capacity.devices import load_devices
from penstock_bench.capacity.knee import bounds, knee
from penstock_bench.capacity.memory import Memory, Setup, plan_memory
from penstock_bench.capacity.published_floor import lines as floor_lines
from penstock_bench.capacity.published_floor import own_factor
from penstock_bench.capacity.published_host import lines as host_lines
from penstock_bench.capacity.roofline import Assumptions
from penstock_bench.capacity.speed import Correction, Mix, Point, ceiling, concurrencies, point

RUNS = Path(__file__).parent / "published-runs.toml"
MAX_TOKENS_OF_A_STEP = 8192
"""Largest number of prompt tokens in a step of these runs' engines."""
_SGLANG_RUNTIME_BYTES = 2**30
"""Memory of a device that SGLang's runtime and links take beside the weights; assumed."""
FITTED = (
    "bandwidth_share",
    "narrow_share",
    "narrow_compute",
    "draft_overlap",
    "expert_skew",
    "compute_share",
    "compute_width",
    "activation_passes",
    "step_seconds",
    "layer_seconds",
    "convert_seconds",
    "sequence_seconds",
    "exchange_seconds",
    "draft_seconds",
    "rocm_fixed",
    "rocm_share",
)
# Start of the fit, and the distance (a factor e^x) that costs little: rows without information on a term leave it
# there.
_START = (0.75, 0.85, 0.8, 0.4, 0.5, 0.25, 0.3, 30.0, 0.0015, 2e-5, 1e-5, 1e-5, 8e-6, 0.0004, 1.3, 0.9)
_LOOSE = (0.15, 0.15, 0.3, 0.4, 0.7, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.4, 0.3)
_PRIOR_WEIGHT, _FIRST_TOKEN_WEIGHT, _HUBER = 0.3, 0.5, 0.1

Fitted = tuple[float, ...]
Part = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One published row.

    `running` is the number of requests that the engine runs at once; more than that wait. `first_token_seconds` is None
    if the source neither states nor implies it.
    """

    group: int
    machine: str
    engine: str
    source: str
    setup: Setup
    memory: Memory
    mix: Mix
    concurrency: int
    running: int
    published: float
    first_token_seconds: float | None
    marks: tuple[str, ...]

    @property
    def fitted(self) -> bool:
        """Return whether the run is in the half that is fitted: every other group, by the rule in the file."""
        return self.group % 2 == 0

    @property
    def name(self) -> str:
        """Short name of the run for the table."""
        setup = self.setup
        weights = "NVFP4" if setup.nvfp4_weights else "FP8" if setup.fp8_weights else "BF16"
        drafts = f"{setup.drafted} drafts" if setup.drafted else "no drafts"
        spread = f"tensor {setup.layout.tensor}" + (", experts" if setup.layout.experts else "")
        return (
            f"{setup.model} {weights}, {setup.count} x {self.machine.upper()} ({spread}), {self.engine}, {drafts}, "
            f"{self.mix.input_tokens:,} in, {self.mix.output_tokens:,} out"
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A run, and the model's figure for it: output tokens per second of the machine, with its range."""

    run: Run
    planned: float
    past_knee: bool

    @property
    def error(self) -> float:
        """Return the relative error of the model's figure."""
        return self.planned / self.run.published - 1

    @property
    def in_range(self) -> bool:
        """Return whether the published figure is in the model's range."""
        low, high = bounds(self.planned, self.past_knee, self.run.setup.device)
        return low <= self.run.published <= high


def read_runs(shapes: Callable[[str], Shape], path: Path = RUNS) -> list[Run]:
    """Return all runs, groups sorted as the file's rule says. `shapes` gives a model's shape by its short name."""
    devices = load_devices()
    groups = tomllib.loads(path.read_text(encoding="utf-8"))["group"]
    groups.sort(key=lambda one: (one["machine"], one["engine"], one["source"]))
    return [
        _run(number, group, row, _setup(row, shapes(row["model"]), devices[group["machine"]]))
        for number, group in enumerate(groups)
        for row in group["rows"]
    ]


def _setup(row: dict[str, Any], shape: Shape, device: Any) -> Setup:
    return Setup(
        model=row["model"],
        shape=replace(shape, state_element_bytes=2) if row.get("bf16_state") else shape,
        device=device,
        count=row["devices"],
        layout=ParallelLayout(row["tensor"], 1, row.get("experts", False)),
        fp8_weights=row["weights"] == "fp8",
        kv_fp8=row.get("fp8_cache", False),
        drafted=row["drafts"],
        prefix_caching=False,
        window_tokens=shape.window_tokens,
        max_sequences=row.get("running", 1024),
        batch_tokens=MAX_TOKENS_OF_A_STEP,
        utilization=row.get("sglang_memory", 0.85),
        fixed_bytes=2**31,
        nvfp4_weights=row["weights"] == "nvfp4",
    )


def _run(number: int, group: dict[str, Any], row: dict[str, Any], setup: Setup) -> Run:
    memory, mix = plan_memory(setup), Mix(row["input"], 0, row["output"])
    by_rule = sglang_running(setup, memory, mix.total_tokens, row.get("prefix_cache", True))
    return Run(
        group=number,
        machine=group["machine"],
        engine=group["engine"],
        source=group["source"],
        setup=setup,
        memory=memory,
        mix=mix,
        concurrency=row["concurrency"],
        running=max(1, by_rule if "sglang_memory" in row else ceiling(setup, memory, mix.total_tokens)),
        published=row["output_tokens_per_second"],
        first_token_seconds=_first_token(row),
        marks=tuple(row["marks"]),
    )


def sglang_running(setup: Setup, memory: Memory, tokens: int, prefix_cache: bool) -> int:
    """Return the most requests of so many tokens that SGLang runs at once.

    With a prefix cache, SGLang gives 0.9 parts of its memory to recurrent states and 1 part to keys and values. A
    request takes five states, and one more for each token that a step verifies. Without a prefix cache, there is one
    state for each request that the command allows. Source: `_handle_max_mamba_cache` and `_resolve_max_num_reqs` in
    SGLang's KVCacheConfigurator (`mamba_full_memory_ratio`, the buffers of `extra_buffer`).
    """
    cache = memory.cache
    free = memory.usable_bytes - memory.weight_bytes - _SGLANG_RUNTIME_BYTES
    context = tokens * (cache.kv_bytes_per_token + cache.draft_kv_bytes_per_token)
    verified = 1 + setup.drafted if setup.drafted else 0
    if not prefix_cache:
        left = max(0, free - setup.max_sequences * cache.state_bytes * (1 + verified))
        return min(setup.max_sequences, left // context)
    states = int(free * 0.9 / 1.9)
    return min(setup.max_sequences, states // (cache.state_bytes * (5 + verified)), (free - states) // context)


def _first_token(row: dict[str, Any]) -> float | None:
    """Return the time to the first token of a single request: as published, or derived from its total time."""
    if row["concurrency"] != 1 or row["input"] < MAX_TOKENS_OF_A_STEP or "token_ms" not in row:
        return None
    if "first_token_ms" in row:
        return float(row["first_token_ms"]) / 1e3
    return float(row["output"] / row["output_tokens_per_second"] - (row["output"] - 1) * row["token_ms"] / 1e3)


def planned(run: Run, assumed: Assumptions, concurrency: int | None = None) -> Point:
    """Return the model's figure for a run. Requests above those that run at once wait and are not counted."""
    at_once = min(concurrency or run.concurrency, run.running)
    return point(run.setup, run.memory, assumed.on(run.setup.device), run.mix, at_once, Correction())


def compare_run(run: Run, assumed: Assumptions) -> Seen:
    """Return the model's figure, and whether the run is past the model's own knee."""
    curve = [(one, planned(run, assumed, one).requests_per_second) for one in concurrencies(run.running)]
    found = knee(curve) or 1
    return Seen(run, planned(run, assumed).output_tokens_per_second(run.mix), run.concurrency > found)


def assumptions(values: Fitted) -> Assumptions:
    """Return the model's assumptions with the fitted values."""
    given: dict[str, Any] = dict(zip(FITTED, values, strict=True))
    return Assumptions(acceptance=load_acceptance()[DEFAULT].shares, **given)


def fit(runs: Sequence[Run]) -> Fitted:
    """Return the constants, by robust least squares over the logarithms of ratios (Levenberg and Marquardt)."""
    import numpy as np

    def residuals(logs: Any) -> Any:
        """Return the damped errors of all runs and the distance from the first guess."""
        assumed = assumptions(tuple(map(float, np.exp(logs))))
        found = []
        for run in runs:
            made = planned(run, assumed)
            found.append(_huber(math.log(made.output_tokens_per_second(run.mix) / run.published)))
            if run.first_token_seconds:
                seconds = run.mix.input_tokens / made.prompt_tokens_per_second
                found.append(_huber(_FIRST_TOKEN_WEIGHT * math.log(seconds / run.first_token_seconds)))
        return np.array([*found, *(_PRIOR_WEIGHT * (logs - np.log(_START)) / np.array(_LOOSE))])

    logs, damping = np.log(np.array(_START)), 1e-2
    here = residuals(logs)
    for _ in range(60):
        slopes = np.column_stack([(residuals(logs + 1e-4 * unit) - here) / 1e-4 for unit in np.eye(len(logs))])
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ here)
        there = residuals(logs + step)
        better = here @ here - there @ there
        if better > 0:
            logs, here, damping = logs + step, there, damping / 3
        else:
            damping *= 4
        if damping > 1e6 or 0 < better < 1e-9:
            break
    return tuple(float(f"{value:.4g}") for value in np.exp(logs))


def _huber(residual: float) -> float:
    """Damp a large residual, so that one odd row does not bend all constants."""
    size = abs(residual)
    return residual if size <= _HUBER else math.copysign(math.sqrt(2 * _HUBER * size - _HUBER**2), residual)


def shipped() -> Fitted:
    """Return the constants in force."""
    defaults = {one.name: one.default for one in fields(Assumptions)}
    return tuple(float(str(defaults[name])) for name in FITTED)


def machine_of(run: Run) -> Part:
    """Return the run's machine."""
    return (run.machine,)


def group_of(run: Run) -> Part:
    """Return the run's group: machine, engine and source."""
    return (run.group,)


def server_of(run: Run) -> Part:
    """Return the server that the run asked: a model in one precision and layout, with or without drafts."""
    setup, layout = run.setup, run.setup.layout
    precision = 1 if setup.fp8_weights else 2 if setup.nvfp4_weights else 0
    return (run.group, setup.shape.hidden, precision, layout.tensor, int(layout.experts), setup.drafted)


def leave_one_out(runs: Sequence[Run], part: Callable[[Run], Part] = group_of) -> list[Seen]:
    """Return the figure for each run of a model that was fitted to all other parts of `runs`."""
    found = []
    for left in sorted({part(run) for run in runs}):
        assumed = assumptions(fit([run for run in runs if part(run) != left]))
        found += [compare_run(run, assumed) for run in runs if part(run) == left]
    return found


def summary(seen: Sequence[Seen]) -> dict[str, float]:
    """Return the median error, the largest error below the knee, and the share past it that is in the range."""
    past, below = [one for one in seen if one.past_knee], [one for one in seen if not one.past_knee]
    return {
        "rows": len(seen),
        "median": statistics.median(abs(one.error) for one in seen),
        "worst_below_knee": max((abs(one.error) for one in below), default=0.0),
        "below_knee_in_range": sum(one.in_range for one in below),
        "past_knee": len(past),
        "past_knee_in_range": sum(one.in_range for one in past),
    }


def table(runs: Sequence[Run]) -> str:
    """Return the page's generated part, in Markdown."""
    assumed = assumptions(shipped())
    seen = [compare_run(run, assumed) for run in runs]
    halves = {
        "fitted": [one for one in seen if one.run.fitted],
        "held out": [one for one in seen if not one.run.fitted],
        "each group left out in turn": leave_one_out(runs),
        "each machine left out in turn": leave_one_out(runs, machine_of),
    }
    machines = sorted({one.run.machine for one in halves["held out"]})
    apart = {
        f"held out, {name.upper()}": [one for one in halves["held out"] if one.run.machine == name] for name in machines
    }
    apart["held out, each group's own factor known"] = own_factor(halves["held out"])
    lines = [*_summaries(halves | apart)]
    lines += ["", "| constant | fitted value |", "|---|---|"]
    lines += [f"| `{name}` | {value:.4g} |" for name, value in zip(FITTED, shipped(), strict=True)]
    lines += ["", "## The host's time without asynchronous scheduling", "", *host_lines(RUNS)]
    lines += ["", "## The same setting, published twice", "", *floor_lines(runs, assumed, RUNS)]
    for half in ("held out", "fitted"):
        lines += ["", f"## Runs {half}", "", *_rows(halves[half])]
    return "\n".join(lines) + "\n"


def _summaries(parts: dict[str, list[Seen]]) -> Iterator[str]:
    yield "| rows | count | median error | worst below the knee | below it, in the range | past it, in the range |"
    yield "|---|---|---|---|---|---|"
    for name, part in parts.items():
        figures = summary(part)
        yield (
            f"| {name} | {figures['rows']:.0f} | {figures['median']:.1%} | {figures['worst_below_knee']:.1%} | "
            f"{figures['below_knee_in_range']:.0f} of {figures['rows'] - figures['past_knee']:.0f} | "
            f"{figures['past_knee_in_range']:.0f} of {figures['past_knee']:.0f} |"
        )


def _rows(seen: Sequence[Seen]) -> Iterator[str]:
    yield "| run | at once | published, tok/s | plan, tok/s | error | range | past knee | not stated |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in seen:
        run = one.run
        low, high = bounds(one.planned, one.past_knee, run.setup.device)
        inside = "" if one.in_range else " (outside)"
        yield (
            f"| [{run.name}]({run.source}) | {run.concurrency:,} | {run.published:,.0f} | {one.planned:,.0f} | "
            f"{one.error:+.0%} | {low:,.0f} to {high:,.0f}{inside} | {'yes' if one.past_knee else 'no'} | "
            f"{', '.join(run.marks) or 'nothing'} |"
        )


BEGIN, END = "<!-- generated: scripts/published-runs -->", "<!-- end of the generated part -->"


def with_table(page: str, made: str) -> str:
    """Return the page with its generated part replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n{END}{rest.split(END)[1]}"
