"""Report a load's figures as tables and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from penstock_bench.load.calls import OK, Record
from penstock_bench.load.intervals import Estimate
from penstock_bench.load.measure import Closed, Load, Replay
from penstock_bench.load.processes import FRONT_END, GENERATOR
from penstock_bench.load.statistics import Group, LoadSummary, Objectives, Spread, acceptance_length
from penstock_bench.load.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FROM_INTENDED = "latency counts from the intended send time; sends never wait for replies"
FROM_FREE = (
    "closed loop: latency counts from when a caller was free, and callers wait; what arrives at a rate of its own needs"
    " --rate, --burst or --trace"
)
_SPREADS = {
    "first_token": "time to first token",
    "first_answer": "time to first answer token",
    "per_token": "time per token",
    "end_to_end": "end to end",
    "longest_gap": "longest gap in a stream",
    "queue": "wait at the server",
    "send_lag": "generator late by",
}
_MAX_LAG_SECONDS = 0.05
_MAX_GENERATOR_CPU = 0.8


def as_json(load: Load, objectives: Objectives, not_local: str | None, *, rows: bool = False) -> dict[str, Any]:
    """Return all results as plain values. Infinite and unknown values are None."""
    summary = load.summary(objectives)
    made: dict[str, Any] = {
        "pattern": load.pattern.name,
        "interrupted": load.interrupted,
        "latency_from": FROM_FREE if isinstance(load.pattern, Closed) else FROM_INTENDED,
        "objectives_seconds": objectives.stated,
        "warnings": warnings(load, summary),
        **asdict(summary),
        "processes": processes(load),
        "processes_not_seen": not_local,
        "front_end_cpu_seconds_per_token": load.front_end_cpu_seconds_per_token,
        "joules_per_output_token": load.joules_per_output_token,
        "energy": None if load.energy is None else {"joules": load.energy.joules, "missing": load.energy.missing},
        "tokens_by_second": {second: sum(two) for second, two in sorted(load.live.tokens.items())},
    }
    if rows:
        made["rows"] = [_row(record) for record in load.records]
    plain: dict[str, Any] = without_nan(made)
    return plain


def load_facts(load: Load, objectives: Objectives) -> dict[str, Any]:
    """Return the load as plain values, so that two results of the same load can be recognised."""
    options, workload = load.options, load.workload
    return {
        "pattern": load.pattern.name,
        **({} if isinstance(load.pattern, Replay) else workload_facts(workload)),
        "exact": options.exact,
        "temperature": options.temperature,
        "flush_interval_seconds": options.flush_interval_seconds,
        "resumable": options.resumable,
        "objectives_seconds": objectives.stated,
    }


def workload_facts(workload: Workload) -> dict[str, Any]:
    """Return the workload without the texts of its questions."""
    return {
        **{name: value for name, value in asdict(workload).items() if name != "questions"},
        "questions": len(workload.questions),
    }


def intervals_as_json(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return the values that `penstock bench compare` reads."""
    return {name: asdict(one) for name, one in found.items()}


def show_runs(console: Console, loads: Sequence[Load], objectives: Objectives) -> None:
    """Print one line for each of several runs."""
    shown = table("run", "calls", "not ok", "calls/s", "output tok/s", "first token p95", "end to end p95", "goodput")
    for number, load in enumerate(loads, 1):
        summary = load.summary(objectives)
        shown.add_row(
            f"{number}{' (cut short)' if load.interrupted else ''}",
            f"{summary.calls}",
            f"{summary.calls - summary.outcomes.get(OK, 0)}",
            f"{summary.calls_per_second:.2f}",
            f"{summary.output_tokens_per_second:.1f}",
            *("lost" if one.p95 is None else f"{one.p95:.4f}" for one in (summary.first_token, summary.end_to_end)),
            "-" if summary.goodput_share is None else f"{summary.goodput_share:.1%}",
        )
    console.out(f"{loads[0].pattern.name}; {len(loads)} runs", highlight=False)
    console.print(shown)
    warned = dict.fromkeys(line for load in loads for line in warnings(load, load.summary(objectives)))
    show_notes(console, warned)


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """Print notes on the figures, one line each."""
    for note in notes:
        console.out(f"note: {note}", style="yellow", highlight=False)


def show_intervals(console: Console, found: Mapping[str, Estimate]) -> None:
    """Print the figures with their 95 % intervals."""
    shown = table("figure", "mean", "95 % interval", "to each side", "from")
    for name, one in found.items():
        width = f"{one.relative_half_width:.1%}" if math.isfinite(one.relative_half_width) else "-"
        interval = f"{one.low:.4g} to {one.high:.4g}"
        shown.add_row(name.replace("_", " "), f"{one.value:.4g}", interval, width, f"{len(one.samples)} {one.method}")
    console.print()
    console.print(shown)


def processes(load: Load) -> list[dict[str, Any]]:
    """Return each process with its CPU seconds per second and its memory over the window."""
    return [
        {
            "role": one.role,
            "name": one.name,
            "pid": pid if pid > 0 else None,
            "cpu": one.cpu_seconds / load.seconds,
            "memory_gib": one.memory_gib,
            "memory_at_start_gib": one.memory_at_start_gib,
        }
        for pid, one in load.used.items()
    ]


def warnings(load: Load, summary: LoadSummary) -> list[str]:
    """Return notes on the reliability of the figures."""
    found = generator_warnings(load, summary)
    if summary.end_to_end.count < 100:
        found.append(f"{summary.end_to_end.count} calls: with fewer than 100, p99 is the slowest one")
    return found


def generator_warnings(load: Load, summary: LoadSummary) -> list[str]:
    """Return reasons to suspect that the load generator limited the load, and not the service."""
    found = []
    if (lag := summary.send_lag.p99) is not None and lag > _MAX_LAG_SECONDS:
        found.append(f"the generator was late by {lag:.3f} s at p99: it may limit the load instead of the service")
    own = [one["cpu"] for one in processes(load) if one["role"] == GENERATOR]
    if own and own[0] > _MAX_GENERATOR_CPU:
        found.append(f"the generator used {own[0]:.2f} of a core: run it on another machine, or with fewer streams")
    return found


def without_nan(value: Any) -> Any:
    """Return the value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(console: Console, load: Load, objectives: Objectives, not_local: str | None) -> None:
    """Print rates, percentiles, goodput and processes."""
    summary = load.summary(objectives)
    console.out(f"{load.pattern.name}; {summary.seconds:.1f} s measured, {summary.calls} calls", highlight=False)
    outcomes = ", ".join(f"{name} {count}" for name, count in summary.outcomes.items())
    errors = ", ".join(f"{name} {count}" for name, count in summary.errors.items())
    for name, line in {
        "outcomes": (outcomes or "none") + (f" ({errors})" if errors else ""),
        "rates": f"{summary.calls_per_second:.2f} calls/s, {summary.output_tokens_per_second:.1f} output tokens/s"
        f" ({summary.thought_tokens_per_second:.1f} of them thought),"
        f" {summary.prompt_tokens_per_second:.1f} prompt tokens/s computed; {summary.mean_running:.1f} calls at a time",
        "means": f"prompt {_tokens(summary.mean_prompt_tokens)}, output {_tokens(summary.mean_output_tokens)},"
        f" thought {_tokens(summary.mean_thought_tokens)} tokens"
        + (f"; {summary.mean_image_tokens:.1f} of the prompt stand for images" if summary.mean_image_tokens else ""),
        "caching": _share(summary.cached_share, "of prompt tokens came from the prefix cache"),
        "drafts": _share(_acceptance(summary), f"of {summary.drafted_tokens} drafted tokens accepted")
        + _length(_length_of(load, summary)),
        "energy": _energy(load),
        "goodput": "no objectives stated (--objective)"
        if summary.goodput_share is None
        else f"{summary.goodput_share:.1%} of calls, {summary.goodput_calls_per_second:.2f} calls/s kept to "
        + ", ".join(f"{name.replace('_', ' ')} {limit:g} s" for name, limit in objectives.stated.items()),
    }.items():
        console.out(f"{name:<10}{line}", highlight=False)
    console.print()
    console.print(_percentiles(summary))
    for title, groups in (("kind of question", summary.by_kind), ("turn", summary.by_turn)):
        if groups:
            console.print()
            console.print(_groups(title, groups))
    console.out(FROM_FREE if isinstance(load.pattern, Closed) else FROM_INTENDED, style="dim", highlight=False)
    console.print()
    if not_local is None:
        console.print(_processes(load))
    else:
        console.out(f"CPU and memory of the service are left out: {not_local}", style="dim", highlight=False)
    show_notes(console, warnings(load, summary))


def _percentiles(summary: LoadSummary) -> Table:
    shown = table("seconds", "calls", "mean", "p50", "p90", "p95", "p99", "most")
    for name, title in _SPREADS.items():
        spread: Spread = getattr(summary, name)
        if spread.count:
            figures = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
            lost = f"{spread.count}" + (f" ({spread.lost} lost)" if spread.lost else "")
            shown.add_row(title, lost, *("lost" if figure is None else f"{figure:.4f}" for figure in figures))
    return shown


def _groups(title: str, groups: Mapping[str, Group]) -> Table:
    columns = ("calls", "prompt tok", "cached", "thought tok", "answer tok", "accepted", "tok/step")
    shown = table(title, *columns, "first token p50", "first answer p50")
    for name, group in groups.items():
        shown.add_row(
            name or "(none)",
            f"{group.calls}"
            + (f" ({group.calls - group.ended_well} not ok)" if group.calls > group.ended_well else ""),
            _tokens(group.mean_prompt_tokens),
            *(["-" if group.cached_share is None else f"{group.cached_share:.1%}"]),
            _tokens(group.mean_thought_tokens),
            _tokens(group.mean_answer_tokens),
            "-" if group.accepted_share is None else f"{group.accepted_share:.1%}",
            "-" if group.acceptance_length is None else f"{group.acceptance_length:.2f}",
            *("-" if one is None else f"{one:.4f}" for one in (group.first_token_p50, group.first_answer_p50)),
        )
    return shown


def _energy(load: Load) -> str:
    if load.energy is None:
        return "not told: the service is not seen on this machine"
    why = "; ".join(f"{name}: {reason}" for name, reason in load.energy.missing.items())
    joules = load.energy.total_joules
    if joules is None:
        return f"not told ({why})"
    each = load.joules_per_output_token
    told = f"{joules / load.seconds:.0f} W of " + ", ".join(load.energy.joules)
    told += f", {each:.3f} J per output token" if each is not None else ""
    return told + (f"; without {why}" if why else "")


def _length_of(load: Load, summary: LoadSummary) -> float | None:
    done = sum(record.output_tokens for record in load.records if record.outcome == OK)
    return acceptance_length(done, summary.drafted_tokens, summary.accepted_tokens)


def _length(length: float | None) -> str:
    return "" if length is None else f"; {length:.2f} output tokens per step"


def _processes(load: Load) -> Table:
    shown = table("process", "pid", "cores used", "memory GiB", "at start")
    for one in processes(load):
        numbers = (
            f"{one['pid'] or ''}",
            f"{one['cpu']:.2f}",
            f"{one['memory_gib']:.2f}",
            f"{one['memory_at_start_gib']:.2f}",
        )
        shown.add_row(f"{one['role']}: {one['name']}", *numbers)
    per_token = load.front_end_cpu_seconds_per_token
    if per_token is not None:
        shown.caption = f"{FRONT_END}: {per_token * 1e6:.0f} µs of CPU per output token"
        shown.caption_justify = "left"
    return shown


def _row(record: Record) -> dict[str, Any]:
    plain = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "work"}
    work = {name: value for name, value in asdict(record.work).items() if name not in ("prompt", "blocks")}
    return {**plain, "work": work}


def _acceptance(summary: LoadSummary) -> float | None:
    if not summary.drafted_tokens or summary.accepted_tokens is None:
        return None
    return summary.accepted_tokens / summary.drafted_tokens


def _share(share: float | None, of_what: str) -> str:
    return "not told" if share is None else f"{share:.1%} {of_what}"


def _tokens(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.1f}"


def table(first: str, *columns: str) -> Table:
    """Return an empty table without lines; all columns but the first are aligned right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(first, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right")
    return made
