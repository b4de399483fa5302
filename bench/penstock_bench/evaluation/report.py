"""Report results as tables and as JSON, with all that is needed to repeat the measurement."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock_bench.evaluation.checks import Line
from penstock_bench.evaluation.frontier import Frontier
from penstock_bench.evaluation.questions import Question
from penstock_bench.evaluation.results import EvaluationSummary, Row, Share
from penstock_bench.load.machine import client_machine, model_facts
from penstock_client import ModelCard

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_SHARES = ("accuracy", "accuracy_with_thought_needed", "accuracy_without_thought_needed", "calls", "no_calls")
"""Shares of a summary that get their value and interval in the JSON."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The circumstances of a result."""

    command: str
    date: str
    client_machine: dict[str, Any]
    model: dict[str, Any]
    questions: dict[str, Any]
    calls: int
    max_output_tokens: int


# One parameter for each fact in the report.
def facts(
    command: str, card: ModelCard, file: Path, asked: Sequence[Question], *, calls: int, max_output_tokens: int
) -> Facts:
    """Return the facts of the report. `asked` are the questions that were taken from `file`."""
    needless = sum(not question.needs_thought for question in asked)
    return Facts(
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        client_machine=client_machine(),
        model=model_facts(card),
        questions={
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "asked": len(asked),
            "need_no_thought": needless,
            "kinds": dict(Counter(question.kind for question in asked)),
            "languages": dict(Counter(question.language for question in asked if question.language)),
        },
        calls=calls,
        max_output_tokens=max_output_tokens,
    )


def as_json(
    about: Facts,
    summaries: Sequence[EvaluationSummary],
    checks: Sequence[Line],
    rows: Sequence[Row],
    frontier: Frontier | None = None,
) -> dict[str, Any]:
    """Return the whole result as plain values; `rows` may be empty."""
    settings = []
    for summary in summaries:
        plain = asdict(summary)
        for name in _SHARES:
            plain[name] |= {"value": getattr(summary, name).value, "interval_95": getattr(summary, name).interval}
        settings.append({"name": summary.setting.name, **plain})
    made: dict[str, Any] = {**asdict(about), "settings": settings}
    if frontier is not None:
        made["frontier"] = frontier.to_dict()
    if checks:
        made["checks"] = [asdict(line) for line in checks]
    if rows:
        made["rows"] = [asdict(row) for row in rows]
    return {name: _without_nan(value) for name, value in made.items()}


def _without_nan(value: Any) -> Any:
    """Return the value with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def show_facts(console: Console, about: Facts) -> None:
    """Print model, profile, machine and questions, one line each."""
    model, asked, machine = about.model, about.questions, about.client_machine
    on = [f"{one['name']} {one['value']}".strip() for one in model["profile"] if one["enabled"]]
    lines = {
        "model": f"{model['name']}, service {model['service_version']}, engine {model['engine_version']}",
        "profile": ", ".join(on) or "nothing on",
        "questions": f"{asked['asked']} of {asked['file']}, {asked['need_no_thought']} need no thought; greedy",
        "client": f"{machine['cpu']}, {machine['cores']} cores; {about.calls} calls at a time",
        "taken": f"{about.date} by {about.command}",
    }
    for name, line in lines.items():
        console.out(f"{name:<11}{line}", highlight=False)


def show_results(console: Console, summaries: Sequence[EvaluationSummary], planned: int) -> None:
    """Print two tables: the results of each setting, and its accuracy by kind."""
    drafted = any(summary.drafted_tokens for summary in summaries)
    columns = ["accuracy", "hard", "easy", "thought", "answer", "p50 s", "p95 s", "tok/s", "$/1000"]
    table = _table("setting", *columns, *(["drafts"] if drafted else []), "thoughts ended by")
    for summary in summaries:
        unfinished = f" ({summary.accuracy.asked} of {planned})" if summary.accuracy.asked < planned else ""
        cost = summary.usd_per_1000_questions
        cells = [
            *(f"{one.value:.3f}" if one.asked else "-" for one in _accuracies(summary)),
            f"{summary.mean_thought_tokens:.1f}",
            f"{summary.mean_answer_tokens:.1f}",
            f"{summary.latency_p50_seconds:.2f}",
            f"{summary.latency_p95_seconds:.2f}",
            f"{summary.output_tokens_per_second:.0f}",
            "-" if cost is None else f"{cost:.4f}",
            *([_drafts(summary)] if drafted else []),
            ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in summary.outcomes.items()),
        ]
        table.add_row(summary.setting.name + unfinished, *cells)
    console.print()
    console.print(table)
    console.out("hard: needs thought; easy: needs none; thought, answer: mean tokens", style="dim", highlight=False)
    _show_shares(console, "accuracy by kind", {one.setting.name: one.by_kind for one in summaries})
    if any(len(summary.by_language) > 1 for summary in summaries):
        _show_shares(console, "accuracy by language", {one.setting.name: one.by_language for one in summaries})
    if any(summary.by_form.keys() - {"text"} for summary in summaries):
        _show_shares(console, "accuracy by form", {one.setting.name: one.by_form for one in summaries})
    if any(summary.calls.asked or summary.no_calls.asked for summary in summaries):
        calls = {one.setting.name: {"right calls": one.calls, "none needed": one.no_calls} for one in summaries}
        _show_shares(console, "tool calls", calls)


def _show_shares(console: Console, title: str, by_setting: Mapping[str, Mapping[str, Share]]) -> None:
    """Print a table of shares: a row for each setting, a column for each name."""
    names = list(dict.fromkeys(name for shares in by_setting.values() for name in shares))
    table = _table(title, *names)
    for setting, shares in by_setting.items():
        found = [shares.get(name) for name in names]
        table.add_row(setting, *("-" if one is None or not one.asked else f"{one.value:.2f}" for one in found))
    console.print()
    console.print(table)


def show_frontier(console: Console, frontier: Frontier) -> None:
    """Print what was chosen on one half of the questions, and how it does on the other one."""
    languages = frontier.languages
    columns = ["chosen", "accuracy", "95 %", "of THINKING", "thought", "decoded", "engine", "time", "beaten by"]
    table = _table("family", *columns, *languages)
    for one in frontier.chosen:
        low, high = one.accuracy.interval
        by_language = [one.by_language.get(language) for language in languages]
        table.add_row(
            one.family,
            one.setting,
            f"{one.accuracy.value:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{one.accuracy_ratio:.3f} ({one.difference:+.3f} ± {one.difference_error:.3f})",
            f"{one.thought_ratio:.2f}",
            f"{one.decoded_ratio:.2f}",
            f"{one.engine_ratio:.2f}",
            f"{one.time_ratio:.2f}",
            ", ".join(one.beaten_by) or "-",
            *("-" if share is None else f"{share.value:.3f}" for share in by_language),
        )
    console.print()
    console.print(table)
    note = (
        f"chosen on {frontier.chosen_on} questions: least time with {frontier.min_ratio:g} of THINKING's accuracy; "
        f"reported on the other {frontier.reported_on}; thought, decoded, engine (tokens), time: shares of THINKING's"
    )
    console.out(note, style="dim", highlight=False)


def show_checks(console: Console, lines: Sequence[Line]) -> None:
    """Print one line per check, with its figure."""
    table = _table("check", "", "found", "asked for")
    for line in lines:
        table.add_row(line.what, "ok" if line.ok else "FAILED", line.figure, line.limit)
    console.print()
    console.print(table)


def _accuracies(summary: EvaluationSummary) -> tuple[Any, ...]:
    return summary.accuracy, summary.accuracy_with_thought_needed, summary.accuracy_without_thought_needed


def _drafts(summary: EvaluationSummary) -> str:
    if not summary.drafted_tokens or summary.accepted_tokens is None:
        return "-"
    return f"{summary.accepted_tokens / summary.drafted_tokens:.0%} of {summary.drafted_tokens}"


def _table(first: str, *columns: str) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(first, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="left" if column in ("thoughts ended by", "found", "asked for") else "right")
    return made
