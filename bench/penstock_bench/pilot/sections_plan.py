"""Write the section that lays what `penstock plan` says beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock_bench.pilot.document import Figure, Section, Table
from penstock_bench.pilot.formatting import seconds, share
from penstock_bench.pilot.results import Calibration, PlanBeside, PlannedFigure, Result, Stage
from penstock_bench.pilot.results import Figure as FigureName
from penstock_bench.pilot.sections_limits import is_small
from penstock_bench.pilot.svg import Series, lines

_NAMES: dict[FigureName, str] = {
    "output_tokens_per_second": "output tok/s",
    "prompt_tokens_per_second": "prompt tok/s",
    "seconds_per_token": "per token, mean",
    "first_token_seconds": "first token, p50",
}


def plan(result: Result) -> Section | None:
    """Return the section; None for a result without it."""
    beside = result.plan
    if beside is None:
        return None
    stages = {stage.name: stage for stage in result.stages}
    text = [*_about(beside), *_verdict(beside.figures), *_small(result, beside.figures), *_fitted(beside)]
    figures, tables = [], []
    if beside.figures:
        figures += _figure("Measured figures over planned ones", _ranges(beside.figures, stages))
        tables.append(_planned_table(beside.figures, stages))
    if beside.calibration is not None:
        figures += _figure("Measured, and predicted from all other stages", _predictions(beside.calibration, stages))
        tables.append(_left_out_table(beside.calibration, stages))
    return Section("plan", "Plan and measurement", text, figures, tables)


def _about(beside: PlanBeside) -> list[str]:
    if beside.devices is None:
        return [f"Nothing can be compared with `penstock plan`: {beside.not_planned}."]
    origin = "as measured" if beside.tokens_per_step_measured else "as the plan assumes for code"
    drafts = (
        f"{beside.drafted} drafts, and {beside.tokens_per_step:.2f} tokens a step, {origin}"
        if beside.drafted
        else "no drafts"
    )
    said = [
        f"The plan is that of {beside.devices} x `{beside.device}` ({beside.layout}), with the service's own precision;"
        f" {drafts}. Rates of open loops are not compared: the arrivals decide them."
    ]
    if beside.not_planned is not None:
        said.append(
            f"The plan's own figures are left out: {beside.not_planned}. Only a calibration by measured stages can tell"
            " something of this machine."
        )
    return said


def _verdict(figures: Iterable[PlannedFigure]) -> list[str]:
    """Return how many figures with a range of two ends are in it."""
    ranged = [one for one in figures if one.high is not None]
    if not ranged:
        return []
    inside = sum(one.inside for one in ranged)
    return [
        f"{inside} of {len(ranged)} figures are in the plan's range. Time per token is what a call takes without its"
        " own prompt, so it includes steps that read other callers' prompts. The plan has no queue: with several"
        " callers it has only a lower end for the first token, the steps of a single prompt."
    ]


def _small(result: Result, figures: Sequence[PlannedFigure]) -> list[str]:
    """Return why the plan's figures of a small model are not reached."""
    if not figures or not is_small(result):
        return []
    return [
        "The model is small, and the plan's constants are fitted to published runs of models from 35 billion parameters"
        " on. The matrices of a small one take a GPU hardly any time, so the host's work for each step weighs"
        " most. These figures say nothing about the plan of a large model."
    ]


def _fitted(beside: PlanBeside) -> list[str]:
    found = beside.calibration
    if found is None:
        return [] if beside.not_calibrated is None else [f"Not calibrated: {beside.not_calibrated}."]
    said = (
        f"`penstock plan --calibrate` fits to these stages: a step takes {found.decode_factor:.3g} times the computed"
        f" time plus {found.decode_extra_seconds * 1e3:.3g} ms, and prompts {found.prefill_factor:.3g} times theirs."
        f" Mean error of the fitted steps: {found.error:.0%}."
    )
    if not found.left_out:
        return [said]
    errors = sorted(abs(one.error) for one in found.left_out)
    worst = max(found.left_out, key=lambda one: abs(one.error))
    return [
        said,
        f"Each stage is then predicted by a fit to all others: the median error is {share(errors[len(errors) // 2])},"
        f" the largest {worst.error:+.0%} ({_NAMES[worst.figure]}, {worst.stage}). The first and the last number of"
        " callers are extrapolated.",
    ]


def _figure(title: str, drawn: tuple[str, str] | None) -> list[Figure]:
    return [] if drawn is None else [Figure(title, *drawn)]


def _ranges(figures: Sequence[PlannedFigure], stages: dict[str, Stage]) -> tuple[str, str] | None:
    """Return the plot of the sweep of callers, and its caption; None with fewer than two loads."""

    def swept(figure: FigureName) -> list[tuple[int, PlannedFigure]]:
        """Return a figure of each number of callers, the fewest first."""
        found = [one for one in figures if one.figure == figure and stages[one.stage].kind == "concurrency"]
        return sorted(((stages[one.stage].concurrency or 1, one) for one in found), key=lambda pair: pair[0])

    rates, times = swept("output_tokens_per_second"), swept("seconds_per_token")
    if len(rates) < 2:
        return None
    series = [
        Series("plan's range", [(at, one.low / one.planned) for at, one in rates], 5, "dash"),
        Series("", [(at, (one.high or one.planned) / one.planned) for at, one in rates], 5, "dash"),
        Series("per token", [(at, one.measured / one.planned) for at, one in times], 2),
        Series("output tok/s", [(at, one.measured / one.planned) for at, one in rates], 1),
    ]
    return (
        lines("measured over planned", series, "callers", "measured / planned", x_log=True),
        "1 is the plan's own figure. More is faster for the rate and slower for the time per token.",
    )


def _predictions(found: Calibration, stages: dict[str, Stage]) -> tuple[str, str] | None:
    """Return the plot of the sweep of callers, and its caption; None with fewer than two loads."""
    rates = [one for one in found.left_out if one.figure == "output_tokens_per_second"]
    swept = sorted(((stages[one.stage].concurrency or 1, one) for one in rates), key=lambda pair: pair[0])
    if len(swept) < 2:
        return None
    series = [
        Series("predicted", [(at, one.predicted) for at, one in swept], 5, "dash"),
        Series("measured", [(at, one.measured) for at, one in swept], 1),
    ]
    return (
        lines("predicted throughput", series, "callers", "output tokens per second", x_log=True, y_log=True),
        "Each prediction is by a calibration without that number of callers.",
    )


def _planned_table(figures: Iterable[PlannedFigure], stages: dict[str, Stage]) -> Table:
    rows = [
        (
            *_load(one.stage, stages),
            _NAMES[one.figure],
            _shown(one.figure, one.measured),
            _shown(one.figure, one.planned),
            _range(one),
            _place(one),
        )
        for one in figures
    ]
    columns = ("stage", "streams", "prompt", "output", "figure", "measured", "plan", "plan's range", "in the range")
    return Table("What penstock plan says of each stage", columns, rows)


def _left_out_table(found: Calibration, stages: dict[str, Stage]) -> Table:
    rows = [
        (
            *_load(one.stage, stages),
            _NAMES[one.figure],
            _shown(one.figure, one.measured),
            _shown(one.figure, one.predicted),
            f"{one.error:+.0%}",
        )
        for one in found.left_out
    ]
    columns = ("stage", "streams", "prompt", "output", "figure", "measured", "predicted", "error")
    return Table("Each stage, predicted by a calibration with all others", columns, rows)


def _load(name: str, stages: dict[str, Stage]) -> tuple[str, ...]:
    """Return the cells of a stage: name, streams, prompt and output tokens."""
    stage = stages[name]
    prompt, output = stage.mean_prompt_tokens or 0, stage.mean_output_tokens or 0
    return name, f"{stage.concurrency}", f"{prompt:,.0f}", f"{output:,.0f}"


def _shown(figure: FigureName, value: float) -> str:
    if figure in ("seconds_per_token", "first_token_seconds"):
        return f"{value * 1e3:.2f} ms" if value < 0.01 else seconds(value)
    return f"{value:,.0f}"


def _range(one: PlannedFigure) -> str:
    low = _shown(one.figure, one.low)
    if one.high is None:
        return f"from {low}"
    return f"{low} to {_shown(one.figure, one.high)}" + (" (past the knee)" if one.past_knee else "")


def _place(one: PlannedFigure) -> str:
    """Return whether the measured figure is in the range, and on which side it is outside."""
    if one.high is None:
        return "not below" if one.inside else "no, below"
    if one.inside:
        return "yes"
    return "no, below" if one.measured < one.low else "no, above"
