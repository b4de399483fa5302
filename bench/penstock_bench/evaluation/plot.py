"""Plot accuracy, latency and cost against thought tokens. Only this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock_bench.evaluation.results import EvaluationSummary
from penstock_bench.evaluation.settings import UNLIMITED
from penstock_client import ThinkingMode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can distinguish; markers and labels repeat the meaning.
_BLUE, _ORANGE, _GREEN, _GREY, _PINK = "#0072B2", "#D55E00", "#009E73", "#666666", "#CC79A7"
_MARKERS = {ThinkingMode.FAST: "s", ThinkingMode.THINKING: "o", ThinkingMode.AUTO: "D"}
_COLOURS = {ThinkingMode.FAST: _GREY, ThinkingMode.THINKING: _BLUE, ThinkingMode.AUTO: _GREEN}
# Where a label stands beside its point (points right, points up, alignment): left above the rising line; the modes
# where the budgets' labels are not.
_PLACES = {
    ThinkingMode.THINKING: (-3, 5, "right"),
    ThinkingMode.AUTO: (-7, -3, "right"),
    ThinkingMode.FAST: (0, -13, "center"),
}
# Inches at 200 dots each: shown at README width, the smallest letters are still 10 pixels high.
_SIZE, _DPI = (9.0, 4.4), 200
# Points nearer than this share of both axes get one label together.
_NEAR = 0.045


@dataclass(frozen=True, slots=True)
class Label:
    """A label beside a point."""

    x: float
    y: float
    text: str


def draw(summaries: Sequence[EvaluationSummary], title: str, file: Path) -> None:
    """Write the plot to `file`, in the format of its suffix. It shows costs if the service has prices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    priced = any(summary.usd_per_1000_questions is not None for summary in summaries)
    # Accuracy on the left; latency on the right, above costs where there are some.
    axes = figure.subplot_mosaic("al;ac" if priced else "al", width_ratios=[1.7, 1.0])
    _accuracy(axes["a"], summaries)
    _latency(axes["l"], summaries)
    if priced:
        _cost(axes["c"], summaries)
    else:
        axes["l"].set_xlabel("mean thought tokens spent")
    for one in axes.values():
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.margins(x=0.08)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file)


def _accuracy(axes: Axes, summaries: Sequence[EvaluationSummary]) -> None:
    thinking = _thinking(summaries)
    axes.plot(
        [s.mean_thought_tokens_where_needed for s in thinking],
        [s.accuracy_with_thought_needed.value for s in thinking],
        color=_ORANGE,
        marker="v",
        markersize=4,
        linewidth=1.2,
        linestyle="--",
        label="THINKING, where thought is needed",
    )
    axes.plot([s.mean_thought_tokens for s in thinking], [s.accuracy.value for s in thinking], color=_BLUE)
    axes.set(xlabel="mean thought tokens spent", ylabel="share of right answers", ylim=(-0.02, 1.08))
    for mode, name in (
        (ThinkingMode.THINKING, "THINKING at a budget, all questions"),
        (ThinkingMode.AUTO, "AUTO, all questions"),
        (ThinkingMode.FAST, "FAST, all questions"),
    ):
        of_mode = [s for s in summaries if s.setting.mode is mode and s.setting.early_exit is None]
        x, y = [s.mean_thought_tokens for s in of_mode], [s.accuracy.value for s in of_mode]
        if of_mode:
            axes.scatter(x, y, s=34, color=_COLOURS[mode], marker=_MARKERS[mode], zorder=3, label=name)
    early = [s for s in summaries if s.setting.early_exit is not None]
    if early:
        x, y = [s.mean_thought_tokens for s in early], [s.accuracy.value for s in early]
        axes.scatter(x, y, s=34, color=_PINK, marker="^", zorder=3, label="THINKING with early exit, all questions")
        _write_labels(axes, [Label(a, b, short_name(s)) for a, b, s in zip(x, y, early, strict=True)], (6, -10, "left"))
    for mode, place in _PLACES.items():
        of_mode = [s for s in summaries if s.setting.mode is mode and s.setting.early_exit is None]
        labels = [Label(s.mean_thought_tokens, s.accuracy.value, short_name(s)) for s in of_mode]
        _write_labels(axes, labels, place)
    axes.legend(fontsize=8, loc="lower right", frameon=False)


def _latency(axes: Axes, summaries: Sequence[EvaluationSummary]) -> None:
    for key, style in (("latency_p95_seconds", ":"), ("latency_p50_seconds", "-")):
        x = [s.mean_thought_tokens for s in _thinking(summaries)]
        y = [getattr(s, key) for s in _thinking(summaries)]
        axes.plot(x, y, color=_BLUE, linestyle=style, linewidth=1.2, label=key[8:11])
        _points(axes, summaries, [getattr(s, key) for s in summaries])
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    axes.set(ylabel="seconds", ylim=(0, None))
    axes.set_title("latency", fontsize=9)


def _cost(axes: Axes, summaries: Sequence[EvaluationSummary]) -> None:
    axes.set_title("cost of 1,000 questions", fontsize=9)
    axes.set_xlabel("mean thought tokens spent")
    priced = [(s, cost) for s in summaries if (cost := s.usd_per_1000_questions) is not None]
    thinking = [(s.mean_thought_tokens, cost) for s, cost in priced if s.setting.mode is ThinkingMode.THINKING]
    axes.plot([x for x, _ in thinking], [y for _, y in thinking], color=_BLUE, linewidth=1.2)
    _points(axes, [s for s, _ in priced], [cost for _, cost in priced])
    axes.set(ylabel="USD", ylim=(0, None))


def _thinking(summaries: Sequence[EvaluationSummary]) -> list[EvaluationSummary]:
    """Return THINKING at its budgets."""
    return [s for s in summaries if s.setting.mode is ThinkingMode.THINKING and s.setting.early_exit is None]


def _points(axes: Axes, summaries: Sequence[EvaluationSummary], values: Sequence[float]) -> None:
    for summary, value in zip(summaries, values, strict=True):
        mode, ends_early = summary.setting.mode, summary.setting.early_exit is not None
        colour, marker = (_PINK, "^") if ends_early else (_COLOURS[mode], _MARKERS[mode])
        axes.scatter([summary.mean_thought_tokens], [value], s=18, color=colour, marker=marker)


def short_name(summary: EvaluationSummary) -> str:
    """Return the text beside a point: the budget for THINKING, else the setting's name."""
    setting = summary.setting
    if setting.early_exit is not None:
        return setting.early_exit.name
    if setting.mode is not ThinkingMode.THINKING:
        return setting.name
    return "no limit" if setting.budget_tokens == UNLIMITED else str(setting.budget_tokens)


def merged(labels: Sequence[Label], x_span: float, y_span: float) -> list[Label]:
    """Return the labels with those that would overlap joined into one at the place of the first."""
    found: list[Label] = []
    for label in labels:
        for index, other in enumerate(found):
            if abs(label.x - other.x) <= _NEAR * x_span and abs(label.y - other.y) <= _NEAR * y_span:
                found[index] = Label(other.x, other.y, f"{other.text}, {label.text}")
                break
        else:
            found.append(label)
    return found


def _write_labels(axes: Axes, labels: Sequence[Label], place: tuple[float, float, str]) -> None:
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    x_offset, y_offset, side = place
    for label in merged(labels, right - left, high - low):
        axes.annotate(
            label.text, (label.x, label.y), (x_offset, y_offset), textcoords="offset points", fontsize=8, ha=side
        )
