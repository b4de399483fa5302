"""Compare two results with confidence intervals: `penstock bench compare`."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED, fail

if TYPE_CHECKING:
    from penstock_bench.load.compare import BenchResult, Comparison


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", exists=True, dir_okay=False, help="File of the first result (A).")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="B", exists=True, dir_okay=False, help="File of the second result (B).")
    ],
    fail_if_worse: Annotated[
        bool,
        typer.Option("--fail-if-worse", help="Exit with 1 if B is worse than A in any figure by more than chance."),
    ] = False,
    json: o.Json = False,
) -> None:
    """Compare two results of `penstock bench --json`, or of `bench knee --json`, with 95 % confidence intervals.

    All intervals hold together: two equal services differ in any figure in at most one of twenty comparisons. Results
    of several runs (--runs, --narrow) are better than single ones, because they include the variation between runs.
    """
    from penstock_bench.load import intervals
    from penstock_bench.load.compare import compare as compared

    if not intervals.available():
        fail(intervals.MISSING)
        raise typer.Exit(EXIT_REFUSED)
    made = compared(_read(first, "A"), _read(second, "B"))
    if not made.differences:
        fail("the two results have no figure with an interval in common")
        raise typer.Exit(EXIT_REFUSED)
    if json:
        _print_json(made)
    else:
        _print_table(made)
    if fail_if_worse and made.worse:
        raise typer.Exit(EXIT_REFUSED)


def _read(path: Path, name: str) -> BenchResult:
    from penstock_bench.load.compare import read

    try:
        return read(path)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint=name) from None


def _print_json(made: Comparison) -> None:
    from penstock_bench.load.compare import verdict
    from penstock_bench.load.intervals import CONFIDENCE

    rows = {name: {**asdict(one), "verdict": verdict(name, one)} for name, one in made.differences.items()}
    told = {"confidence": CONFIDENCE, "differences": rows, "worse": made.worse, "notes": made.notes}
    typer.echo(json_module.dumps(told, indent=1))


def _print_table(made: Comparison) -> None:
    from penstock_bench.load.compare import verdict
    from penstock_bench.load.report import show_notes, table
    from rich.console import Console

    shown = table("figure", "A", "B", "B - A", "95 % interval of B - A", "of A", "B is")
    for name, one in made.differences.items():
        change = one.second - one.first
        relative = f"{change / one.first:+.1%}" if one.first else "-"
        shown.add_row(
            name.replace("_", " "), f"{one.first:.4g}", f"{one.second:.4g}", f"{change:+.4g}",
            f"{one.low:+.4g} to {one.high:+.4g}", relative, verdict(name, one),
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 120)
    console.print(shown)
    console.out("All intervals hold together with 95 % confidence.", style="dim", highlight=False)
    show_notes(console, made.notes)
