"""Convert a load to a stage of the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from penstock.generation.percentiles import percentile
from penstock_bench.load import intervals
from penstock_bench.load.calls import OK, Record
from penstock_bench.load.measure import Closed, Load, Open
from penstock_bench.load.processes import ENGINE, FRONT_END, GENERATOR, Used
from penstock_bench.load.report import without_nan
from penstock_bench.load.statistics import Objectives, Spread
from penstock_bench.pilot.results import EngineSeen, Kind, Seconds, Stage

_MAX_POINTS = 240
"""Largest number of values that are kept over time."""


def stage_of(kind: Kind, name: str, load: Load, objectives: Objectives, engine: EngineSeen | None) -> Stage:
    """Return the stage of one load, complete or interrupted."""
    summary, pattern, workload = load.summary(objectives), load.pattern, load.workload
    used = list(load.used.values())
    return Stage(
        kind=kind,
        name=name,
        interrupted=load.interrupted,
        concurrency=pattern.callers if isinstance(pattern, Closed) else None,
        rate=pattern.calls_per_second if isinstance(pattern, Open) else None,
        prompt_tokens=workload.prompt.longest,
        output_tokens=workload.output.longest if workload.output else 0,
        shared_prefix_tokens=workload.prefix_tokens,
        **{part: _seconds(getattr(summary, part)) for part in _SPREADS},
        **{part: getattr(summary, part) for part in _SAME},
        outcomes=dict(summary.outcomes),
        errors=dict(summary.errors),
        front_end_cores=_cores(used, FRONT_END, load.seconds),
        front_end_cpu_seconds_per_token=load.front_end_cpu_seconds_per_token,
        engine_cores=_cores(used, ENGINE, load.seconds),
        generator_cores=_cores(used, GENERATOR, load.seconds),
        memory_gib=_memory(used),
        memory_over_time_gib=_over_time(used),
        tokens_by_second=_by_second(load),
        end_to_end_p50_by_half=_halves(load.records, load.seconds),
        engine=engine,
        intervals_95=_intervals(load, objectives),
        other_cores=load.other_cores,
    )


def _intervals(load: Load, objectives: Objectives) -> dict[str, tuple[float, float]]:
    if not intervals.available() or load.interrupted:
        return {}
    found = intervals.of_one_run(load.records, load.seconds, _by_second(load), objectives)
    return {name: (one.low, one.high) for name, one in found.items()}


_SPREADS = ("first_token", "first_answer", "per_token", "end_to_end", "queue", "send_lag")
_SAME = (
    "seconds",
    "calls",
    "calls_per_second",
    "output_tokens_per_second",
    "prompt_tokens_per_second",
    "mean_running",
    "mean_prompt_tokens",
    "mean_output_tokens",
    "cached_share",
    "drafted_tokens",
    "accepted_tokens",
    "over_budget",
    "goodput_share",
)


def _seconds(spread: Spread) -> Seconds:
    return Seconds(**without_nan(asdict(spread)))


def _cores(used: Sequence[Used], role: str, seconds: float) -> float | None:
    of_role = [one.cpu_seconds for one in used if one.role == role]
    return sum(of_role) / seconds if of_role else None


def _memory(used: Iterable[Used]) -> dict[str, float]:
    by_role: dict[str, float] = defaultdict(float)
    for one in used:
        if one.role != GENERATOR:
            by_role[one.role] += one.memory_gib
    return dict(by_role)


def _over_time(used: Sequence[Used]) -> tuple[tuple[float, float], ...]:
    """Return the memory of all the service's processes without GPUs, if each was sampled equally often."""
    served = [one.samples for one in used if one.role in (FRONT_END, ENGINE)]
    if not served:
        return ()
    count = min(map(len, served))
    every = max(1, count // _MAX_POINTS)
    return tuple(
        (round(served[0][n][0], 1), round(sum(samples[n][1] for samples in served), 4)) for n in range(0, count, every)
    )


def _by_second(load: Load) -> tuple[int, ...]:
    tokens = load.live.tokens
    return tuple(sum(tokens[second]) if second in tokens else 0 for second in range(int(load.seconds)))[:_MAX_SECONDS]


_MAX_SECONDS = 3600


def _halves(records: Iterable[Record], seconds: float) -> tuple[float | None, float | None]:
    """Return the end-to-end p50 of the calls meant for each half."""
    halves: tuple[list[float], list[float]] = ([], [])
    for record in records:
        if record.outcome == OK and record.ended is not None:
            halves[record.intended >= seconds / 2].append(record.ended - record.intended)
    first, second = (percentile(half, 50) if half else None for half in halves)
    return first, second
