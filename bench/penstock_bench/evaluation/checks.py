"""Check whether a model's thought is worth its cost, for `penstock eval --check`.

Each check has a figure and a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock_bench.evaluation.results import EvaluationSummary, Row, Share, paired_difference, share
from penstock_bench.evaluation.settings import AUTO, FAST, THINKING
from penstock_client import ThinkingMode


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The limits of `--check`. Shares are in [0, 1]."""

    min_questions: int = 500
    min_share_without_thought: float = 1 / 3
    unlimited_accuracy: float = 0.95
    fast_to_unlimited: float = 0.6
    """Largest accuracy of FAST where thought is needed, as a share of the unlimited one."""
    drop_standard_errors: float = 2.0
    """Number of standard errors of the paired difference that a larger budget may lose (noise)."""
    auto_thought_tokens: float = 0.7
    """Largest number of AUTO's thought tokens over all questions, as a share of unlimited THINKING's."""
    auto_accuracy: float = 0.97
    """Smallest accuracy of AUTO over all questions, as a share of unlimited THINKING's."""
    language_accuracy: float = 0.85
    follow_up_accuracy: float = 0.9
    image_accuracy: float = 0.9
    calls: float = 0.95
    calls_validated: float = 0.98
    """Where the service holds calls to the tools (`--tool-mode validated`)."""
    no_calls: float = 0.97
    tools_accuracy: float = 0.93
    """Smallest share of right answers after the tools' results, over all questions with tools."""


@dataclass(frozen=True, slots=True)
class Line:
    """One check. `figure` and `limit` are texts."""

    what: str
    ok: bool
    figure: str
    limit: str


def check(
    summaries: Sequence[EvaluationSummary],
    rows: Sequence[Row],
    planned: int,
    limits: Thresholds = Thresholds(),
    *,
    are_calls_validated: bool = False,
) -> list[Line]:
    """Return all checks. One fails if its figure was not measured, or not with all `planned` questions.

    What thought is worth is checked where a question has text alone. Questions with images or tools need only THINKING
    without a limit.
    """
    by_name = {summary.setting.name: summary for summary in summaries}
    unlimited = by_name.get(THINKING.name)
    lines = _thought(summaries, rows, planned, limits) if any(row.form == "text" for row in rows) else []
    if not lines and unlimited is None:
        return [Line("measured", False, f"not {THINKING.name}", THINKING.name)]
    if unlimited is not None:
        lines += [*_parts(unlimited, limits, are_calls_validated), _budgets_hold(summaries)]
    return lines


def _thought(
    summaries: Sequence[EvaluationSummary], rows: Sequence[Row], planned: int, limits: Thresholds
) -> list[Line]:
    """Check what thought is worth."""
    by_name = {summary.setting.name: summary for summary in summaries}
    missing = [setting.name for setting in (FAST, THINKING, AUTO) if setting.name not in by_name]
    if missing:
        return [Line("measured", False, f"not {', '.join(missing)}", "FAST, THINKING unlimited and AUTO")]
    fast, unlimited, auto = (by_name[setting.name] for setting in (FAST, THINKING, AUTO))
    return [
        *_questions(unlimited, min(summary.accuracy.asked for summary in summaries), planned, limits),
        *_thinking(fast, unlimited, limits),
        *_rising(summaries, rows, limits),
        *_auto(auto, unlimited, limits),
    ]


def _parts(unlimited: EvaluationSummary, limits: Thresholds, are_calls_validated: bool) -> Iterator[Line]:
    """Check each language, follow-ups, images and tools, where there are such questions."""
    none = Share(0, 0)
    parts = {f"language {name}": (found, limits.language_accuracy) for name, found in unlimited.by_language.items()}
    parts |= {
        "follow-ups": (unlimited.by_form.get("follow_up", none), limits.follow_up_accuracy),
        "questions with an image": (unlimited.by_form.get("image", none), limits.image_accuracy),
        "questions with tools": (unlimited.by_form.get("tools", none), limits.tools_accuracy),
        "right tool calls": (unlimited.calls, limits.calls_validated if are_calls_validated else limits.calls),
        "no tool call where none is needed": (unlimited.no_calls, limits.no_calls),
    }
    for what, (found, least) in parts.items():
        if found.asked:
            yield Line(what, found.value >= least, _with_interval(found), f"at least {least}")


def _questions(unlimited: EvaluationSummary, fewest: int, planned: int, limits: Thresholds) -> Iterator[Line]:
    enough = max(limits.min_questions, planned)
    yield Line("questions in every setting", fewest >= enough, f"{fewest}", f"at least {enough}")
    total = unlimited.accuracy.asked
    without = unlimited.accuracy_without_thought_needed.asked / total
    least = limits.min_share_without_thought
    yield Line("share that needs no thought", without >= least, f"{without:.3f}", f"at least {least:.3f}")


def _thinking(fast: EvaluationSummary, unlimited: EvaluationSummary, limits: Thresholds) -> Iterator[Line]:
    least = limits.unlimited_accuracy
    for name, measured in (
        ("all questions", unlimited.accuracy),
        ("where thought is needed", unlimited.accuracy_with_thought_needed),
    ):
        yield Line(f"unlimited, {name}", measured.value >= least, _with_interval(measured), f"at least {least}")
    most = limits.fast_to_unlimited * unlimited.accuracy_with_thought_needed.value
    found = fast.accuracy_with_thought_needed
    yield Line("FAST, where thought is needed", found.value <= most, _with_interval(found), f"at most {most:.3f}")


def _rising(summaries: Sequence[EvaluationSummary], rows: Sequence[Row], limits: Thresholds) -> Iterator[Line]:
    """Compare the budgets on the questions that need thought; the others are answered rightly at any budget."""
    by_setting: Mapping[str, list[Row]] = {
        summary.setting.name: [row for row in rows if row.setting == summary.setting.name and row.needs_thought]
        for summary in summaries
        if summary.setting.mode is ThinkingMode.THINKING and summary.setting.early_exit is None
    }
    for (name, before), (next_name, after) in pairwise(by_setting.items()):
        growth, error = paired_difference(before, after)
        least = -limits.drop_standard_errors * error
        figure = f"{share(before).value:.3f} to {share(after).value:.3f} ({growth:+.3f})"
        yield Line(f"{name} to {next_name}", growth >= least, figure, f"at least {least:+.3f}")
    first, last = next(iter(by_setting.values())), list(by_setting.values())[-1]
    growth, error = paired_difference(first, last)
    least = limits.drop_standard_errors * error
    yield Line("smallest budget to largest", growth > least, f"{growth:+.3f}", f"above {least:+.3f}")


def _auto(auto: EvaluationSummary, unlimited: EvaluationSummary, limits: Thresholds) -> Iterator[Line]:
    most = limits.auto_thought_tokens * unlimited.mean_thought_tokens
    spent = auto.mean_thought_tokens
    figure = f"{spent:.1f} ({_ratio(spent, unlimited.mean_thought_tokens)} of THINKING's)"
    yield Line("AUTO, mean thought tokens", spent <= most, figure, f"at most {most:.1f}")
    least, found = limits.auto_accuracy * unlimited.accuracy.value, auto.accuracy.value
    figure = f"{found:.3f} ({_ratio(found, unlimited.accuracy.value)} of THINKING's)"
    yield Line("AUTO, all questions", found >= least, figure, f"at least {least:.3f}")


def _budgets_hold(summaries: Sequence[EvaluationSummary]) -> Line:
    over = sum(summary.over_budget for summary in summaries)
    return Line("thoughts longer than their budget", over == 0, f"{over}", "0")


def _with_interval(measured: Share) -> str:
    low, high = measured.interval
    return f"{measured.value:.3f} ({low:.3f} to {high:.3f})"


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "all"
