"""Write the section about cost."""

from __future__ import annotations

from penstock_bench.pilot.cost import Costs, operating_point
from penstock_bench.pilot.document import Figure, Section, Table
from penstock_bench.pilot.formatting import number, usd
from penstock_bench.pilot.results import Result
from penstock_bench.pilot.svg import Bar, Mark, Series, bars, lines


def cost(result: Result, costs: Costs | None) -> list[Section]:
    """Return the section about cost."""
    if costs is None:
        why = (
            "no price per hour was given (--gpu-hour-usd)"
            if result.prices.hour is None
            else "no throughput was measured"
        )
        return [Section("cost", "Cost per million tokens", (f"Not computed: {why}.",))]
    kinds = (
        ("input", costs.input, costs.hosted_input),
        ("output", costs.output, costs.hosted_output),
        ("thought", costs.thought, costs.hosted_output),
    )
    groups = []
    for kind, here, hosted in kinds:
        group = [Bar(f"{kind}, here", here, usd(here), 1)]
        if hosted is not None:
            group.append(Bar(f"{kind}, hosted", hosted, usd(hosted), 2))
        groups.append(group)
    figures = [
        Figure(
            "USD per million tokens, always full",
            bars("cost", groups),
            "A thought token costs the same as an answer token, and is billed as output.",
        ),
    ]
    if costs.hosted_output is not None:
        figures.append(_utilization(costs))
    stage = operating_point(result)
    text = [
        f"{result.prices.gpus} GPU (or machine) at {usd(result.prices.hour)} an hour. When full, a prompt token takes"
        f" {costs.share.per_prompt_token * 1e6:,.0f} µs and an output token"
        f" {costs.share.per_output_token * 1e6:,.0f} µs. This follows from the stages"
        f" “{'” and “'.join(costs.share.from_stages)}”.",
    ]
    if costs.break_even_utilization is not None and stage is not None:
        text.append(
            f"For calls of {number(stage.mean_prompt_tokens)} prompt and {number(stage.mean_output_tokens)} output"
            f" tokens it costs as much as hosted when it is full {costs.break_even_utilization:.1%} of the time."
        )
    source = result.prices.hosted_source
    rows = [
        (kind, usd(here), usd(hosted), "-" if not hosted else f"{here / hosted:.2f}") for kind, here, hosted in kinds
    ]
    table = Table(
        f"USD per million tokens{f' (hosted: {source})' if source else ''}",
        ("tokens", "here, full", "hosted", "here / hosted"),
        rows,
    )
    return [Section("cost", "Cost per million tokens", text, figures, [table])]


def _utilization(costs: Costs) -> Figure:
    shares = [n / 20 for n in range(1, 21)]
    series = [Series("here", [(100 * at, costs.output / at) for at in shares], 1)]
    marks = [Mark(costs.hosted_output, f"hosted {usd(costs.hosted_output)}")] if costs.hosted_output else []
    svg = lines(
        "cost by utilization", series, "% of the time full", "USD per million output tokens", y_log=True, marks=marks
    )
    return Figure(
        "Cost by utilization",
        svg,
        "An idle machine costs the same, so the price of a token rises as the utilization falls.",
    )
