"""Ask a running service questions with known answers at budgets and modes: `penstock eval`."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED, ended, no_client, nothing_measured

if TYPE_CHECKING:
    from penstock_bench.evaluation.measure import EvaluationOptions
    from penstock_bench.evaluation.questions import Question
    from penstock_bench.evaluation.report import Facts
    from penstock_bench.evaluation.results import Row
    from penstock_bench.evaluation.settings import Exit, Setting

MODES = ("fast", "thinking", "auto")
PICTURES = (".png", ".svg", ".pdf")
MIN_WIDTH = 140


class ToolMode(StrEnum):
    """The client's tool modes that an evaluation may use; the client itself is imported only when it runs."""

    AUTO = "auto"
    VALIDATED = "validated"


NumberT = TypeVar("NumberT", int, float)


# One parameter for each option.
def evaluate(
    questions: Annotated[int, typer.Option(min=1, help="Number of questions, each kind in proportion.")] = 500,
    budgets: Annotated[
        str, typer.Option(help="Thinking budgets in tokens, separated by commas; -1 is no limit.")
    ] = "0,4,8,16,32,64,-1",
    modes: Annotated[str, typer.Option(help="Modes, separated by commas: fast, thinking, auto.")] = ",".join(MODES),
    deadlines: Annotated[
        str, typer.Option(help="Deadlines in seconds; AUTO runs once more within each. Empty: none.")
    ] = "2",
    early_exit: Annotated[
        str,
        typer.Option(
            metavar="SIGN[:PROBABILITY],...",
            help="Early exits with which THINKING runs once more each, such as marker:0.3,probe:0.9. Empty: none.",
        ),
    ] = "",
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier", help="Choose budget and early exit on one half of the questions, and report the other half."
        ),
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of concurrent calls.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed that selects the questions if not all are asked.")] = 0,
    questions_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File of your own questions, one JSON object per line."),
    ] = None,
    max_output_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of output tokens, thought plus answer.")
    ] = 512,
    answer_reserve: Annotated[int | None, typer.Option(min=1, help="Output tokens reserved for the answer.")] = None,
    tool_mode: Annotated[
        ToolMode, typer.Option(help="Tool mode of questions with tools; validated holds calls to the tools' schemas.")
    ] = ToolMode.AUTO,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="File for all results as JSON; `-` is stdout.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Include each reply (needs --json).")] = False,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="File for the plot (.png, .svg or .pdf).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless thought is worth its cost.")] = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Ask a running service questions with known answers: accuracy against thought tokens, latency and cost.

    The shipped questions are held out from the demo model's training: 546 of
    thirteen kinds in six languages. Seven of the kinds need thought.
    Decoding is greedy. Ctrl-C shows the results so far.
    """
    from penstock_bench.evaluation.measure import EvaluationOptions
    from penstock_bench.evaluation.settings import THINKING, settings_of

    picked, file = _questions(questions_file, questions, seed)
    settings = settings_of(
        _numbers(budgets, int, -1, "--budgets"), _modes(modes), _numbers(deadlines, float, 0.001), _exits(early_exit)
    )
    if not settings:
        raise typer.BadParameter("must name at least one mode, and thinking needs --budgets")
    if frontier and THINKING not in settings:
        raise typer.BadParameter("needs THINKING without a limit (-1 in --budgets)", param_hint="--frontier")
    if rows and json is None:
        raise typer.BadParameter("needs --json", param_hint="--rows")
    _refuse_unwritable(json, plot)
    options = EvaluationOptions(concurrency, max_output_tokens, answer_reserve, tool_mode.value)
    run = _Run(picked, file, settings, options)
    exit_code = run.measure(target, o.encryption(tls, ca))
    checks_hold = run.report(json, rows, plot, check, frontier)
    if checks_hold is None:
        exit_code = nothing_measured(exit_code, "no question was answered, so there is no result")
    if exit_code or not checks_hold:
        raise typer.Exit(exit_code or EXIT_REFUSED)


def _questions(file: Path | None, count: int, seed: int) -> tuple[list[Question], Path]:
    from penstock_bench.evaluation.questions import SHIPPED, load, pick

    file = file or SHIPPED
    try:
        return pick(load(file), count, seed), file
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--questions-file") from None


def _numbers(text: str, kind: type[NumberT], least: float, option: str = "--deadlines") -> list[NumberT]:
    try:
        numbers = [kind(one) for one in text.split(",") if one.strip()]
    except ValueError:
        raise typer.BadParameter(f"must be numbers separated by commas, got {text!r}", param_hint=option) from None
    if wrong := [one for one in numbers if not least <= one < 2**31]:
        raise typer.BadParameter(f"{wrong[0]} is not in range", param_hint=option)
    return numbers


def _modes(text: str) -> list[str]:
    chosen = [mode.strip() for mode in text.split(",") if mode.strip()]
    if unknown := set(chosen) - set(MODES):
        raise typer.BadParameter(
            f"must be one or more of {', '.join(MODES)}, got {sorted(unknown)[0]!r}", param_hint="--modes"
        )
    return chosen


def _exits(text: str) -> list[Exit]:
    from penstock_bench.evaluation.settings import SIGNS, Exit

    found = []
    for one in filter(None, (part.strip() for part in text.split(","))):
        sign, _, probability = one.partition(":")
        if sign not in SIGNS:
            raise typer.BadParameter(f"must be one of {', '.join(SIGNS)}, got {sign!r}", param_hint="--early-exit")
        try:
            found.append(Exit(sign, float(probability) if probability else None))
        except ValueError:
            raise typer.BadParameter(
                f"must have a number behind {sign}:, got {probability!r}", param_hint="--early-exit"
            ) from None
    return found


def _refuse_unwritable(json: str | None, plot: Path | None) -> None:
    """Check the plot's format and matplotlib before the work, not after it."""
    if plot is not None:
        if find_spec("matplotlib") is None:
            raise typer.BadParameter("needs matplotlib: pip install 'penstock-bench[plots]'", param_hint="--plot")
        if plot.suffix not in PICTURES:
            raise typer.BadParameter(f"must end in one of {', '.join(PICTURES)}, got {plot}", param_hint="--plot")
    o.refuse_unwritable(("--json", json), ("--plot", plot))


class _Run:
    """One evaluation. It collects rows as they come, so that it has results to show whenever it ends."""

    def __init__(
        self, questions: list[Question], file: Path, settings: list[Setting], options: EvaluationOptions
    ) -> None:
        from rich.console import Console

        self._questions, self._file, self._settings, self._options = questions, file, settings, options
        self._rows: list[Row] = []
        self._facts: Facts | None = None
        self._notes = Console(stderr=True)

    def measure(self, target: str, tls: bool | Path | None) -> int:
        """Measure the rows. Return the exit code, which is not 0 if Ctrl-C or a failure ended it early."""
        return ended(self._measure(target, tls), target, tls)

    async def _measure(self, target: str, tls: bool | Path | None) -> None:
        from penstock_bench.evaluation.measure import measure
        from penstock_bench.evaluation.report import facts
        from penstock_client import AsyncClient
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        try:
            client = AsyncClient(target, tls=tls)
        except ValueError as error:
            raise no_client(error, target) from None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        async with client:
            self._facts = facts(
                shlex.join(["penstock", *sys.argv[1:]]),
                await client.model(),
                self._file,
                self._questions,
                calls=self._options.calls,
                max_output_tokens=self._options.max_output_tokens,
            )
            with Progress(
                *columns, console=self._notes, transient=True, disable=not self._notes.is_terminal
            ) as progress:
                task = progress.add_task("warming up", total=len(self._questions) * len(self._settings))

                def keep(row: Row) -> None:
                    """Store a row and show the progress."""
                    # A log has no progress bar: there, each setting has a line.
                    if not self._notes.is_terminal and (not self._rows or self._rows[-1].setting != row.setting):
                        self._notes.out(f"{row.setting} ...", highlight=False)
                    self._rows.append(row)
                    progress.update(task, advance=1, description=row.setting)

                await measure(client, self._questions, self._settings, self._options, keep)

    def report(self, json: str | None, rows: bool, plot: Path | None, check: bool, frontier: bool) -> bool | None:
        """Show and write the results. Return whether all requested checks hold; None without any answer."""

        from penstock.files import replacing, write_text
        from penstock_bench.evaluation import report
        from penstock_bench.evaluation.checks import check as run_checks
        from penstock_bench.evaluation.frontier import frontier_of
        from penstock_bench.evaluation.results import summarize

        summaries = [found for setting in self._settings if (found := summarize(setting, self._rows)) is not None]
        if self._facts is None or not summaries:
            return None
        validated = self._options.tool_mode == ToolMode.VALIDATED.value
        planned = len(self._questions)
        lines = run_checks(summaries, self._rows, planned, are_calls_validated=validated) if check else []
        chosen = frontier_of(summaries, self._rows) if frontier else None
        console = o.tables_beside(json, self._notes, MIN_WIDTH)
        report.show_facts(console, self._facts)
        report.show_results(console, summaries, len(self._questions))
        if chosen is not None:
            report.show_frontier(console, chosen)
        if lines:
            report.show_checks(console, lines)
        if json is not None:
            made = report.as_json(self._facts, summaries, lines, self._rows if rows else (), chosen)
            text = json_module.dumps(made, indent=1, ensure_ascii=False) + "\n"
            typer.echo(text, nl=False) if json == "-" else write_text(Path(json), text)
        if plot is not None:
            from penstock_bench.evaluation.plot import draw

            model, machine = self._facts.model, self._facts.client_machine
            title = f"{model['name']}, {len(self._questions)} questions, client on {machine['cpu']}"
            with replacing(plot) as partial:
                draw(summaries, title, partial)
        return all(line.ok for line in lines)
