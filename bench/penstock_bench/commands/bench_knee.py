"""Find the largest arrival rate that a service holds or that keeps an objective: `penstock bench knee`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from penstock.cli import options as o
from penstock.cli.failures import ended, nothing_measured
from penstock_bench.commands import bench_options as b
from penstock_bench.commands.bench_service import connected, write_json
from penstock_bench.commands.progress import watched

if TYPE_CHECKING:
    from penstock_bench.load.knee import Criteria, Point
    from penstock_bench.load.measure import Load
    from penstock_bench.load.repeat import Repeat
    from penstock_bench.load.run import LoadOptions
    from penstock_bench.load.search import KneeSearch
    from penstock_bench.load.workload import Workload
    from penstock_client import ModelCard
    from rich.console import Console

_WIDTH = 120


# One parameter for each option.
def knee(
    start: Annotated[
        float | None, typer.Option(min=0.001, help="First rate in calls per second. Default: the rate of one caller.")
    ] = None,
    calls: Annotated[int, typer.Option(min=50, max=1_000_000, help="Smallest number of calls at each rate.")] = 300,
    seconds: Annotated[float, typer.Option(min=0, help="Shortest time in seconds at each rate.")] = 0.0,
    drain: b.Drain = 60.0,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of calls that must keep all objectives.")
    ] = 0.95,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.001, max=1.0, help="Largest distance, as a share, of the rates that hold and fail at the end."
        ),
    ] = 0.05,
    max_points: Annotated[int, typer.Option(min=3, max=1000, help="Largest number of rates in one search.")] = 24,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Number of searches; two or more give an interval.")] = 1,
    narrow: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=100,
            help="Repeat until the knee's 95 % interval is at most this many percent wide to each side.",
        ),
    ] = None,
    max_runs: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of searches with --narrow.")] = 20,
    prompt_tokens: b.PromptTokens = "128",
    output_tokens: b.OutputTokens = "64",
    until_end: b.UntilEnd = False,
    thinking: b.Thinking = "fast",
    prefixes: b.Prefixes = 0,
    prefix_tokens: b.PrefixTokens = 64,
    deadline: b.Deadline = None,
    questions: b.Questions = None,
    objective: b.Objective = None,
    temperature: o.Temperature = None,
    seed: b.Seed = 0,
    connections: b.Connections = 1,
    json: b.JsonFile = None,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Find the knee of a running service by bisection: the rate above which calls pile up.

    With --objective it also finds the largest rate at which a share of the calls keeps all objectives. Each rate is an
    open loop of Poisson arrivals. The search overloads the service, so nobody else should use it meanwhile. Ctrl-C
    shows the results so far.
    """
    from penstock_bench.load import intervals
    from penstock_bench.load.knee import Criteria
    from penstock_bench.load.repeat import Repeat
    from penstock_bench.load.run import LoadOptions
    from penstock_bench.load.search import KNEE_RATE
    from penstock_bench.load.statistics import Objectives

    if narrow is not None and not intervals.available():
        raise typer.BadParameter(intervals.MISSING, param_hint="--narrow")
    objectives = b.parsed(Objectives.parse, objective or [], "--objective")
    o.refuse_unwritable(("--json", json))
    run = _Knee(
        b.workload_of(prompt_tokens, output_tokens, thinking, prefixes, prefix_tokens, deadline, questions),
        LoadOptions(1.0, 0.0, drain, exact=not until_end, temperature=temperature, seed=seed),
        Criteria(objectives, share, tolerance=tolerance, max_points=max_points),
        Repeat(runs, max_runs, {} if narrow is None else {KNEE_RATE: narrow / 100}),
    )
    exit_code = run.measure(target, o.encryption(tls, ca), connections, (start, calls, seconds))
    if not run.report(json):
        exit_code = nothing_measured(exit_code, run.why_nothing)
    if exit_code:
        raise typer.Exit(exit_code)


class _Knee:
    """One or more searches. They have results to show whenever they end."""

    def __init__(self, workload: Workload, options: LoadOptions, criteria: Criteria, repeat: Repeat) -> None:
        from rich.console import Console

        self._workload, self._options, self._criteria, self._repeat = workload, options, criteria, repeat
        self._search: KneeSearch | None = None
        self._card: ModelCard | None = None
        self._notes = Console(stderr=True)
        self.why_nothing = "no rate was measured"

    def measure(
        self, target: str, tls: bool | Path | None, connections: int, begin: tuple[float | None, int, float]
    ) -> int:
        """Return the exit code. `begin`: the first rate, the fewest calls and the fewest seconds of a point."""
        return ended(self._measure(target, tls, connections, begin), target, tls)

    async def _measure(
        self, target: str, tls: bool | Path | None, connections: int, begin: tuple[float | None, int, float]
    ) -> None:
        from penstock_bench.load import measure
        from penstock_bench.load.search import KneeSearch, Loads, NoCallEnded

        start, calls, seconds = begin
        async with connected(target, tls, connections, None) as service:
            self._card = service.card

            async def carry_out(load: Load, title: str) -> None:
                """Run one load and show its progress."""
                async with watched(load, self._notes, title):
                    await measure.carry_out(load, service.front_end)

            loads = Loads(
                service.clients, service.prompts, service.front_end, self._workload, self._options, calls, seconds
            )
            self._search = KneeSearch(loads, self._criteria, carry_out)
            try:
                await self._search.run(start, self._repeat)
            except NoCallEnded as none:
                self.why_nothing = str(none)

    def report(self, json: str | None) -> bool:
        """Show and write the results. Return False, without output, if no rate was measured."""

        if self._search is None or self._card is None or not self._search.points:
            return False
        console = o.tables_beside(json, self._notes, _WIDTH)
        show(console, self._search, self._repeat)
        if json is not None:
            write_json(json, self._card, self._search.as_json())
        return True


def show(console: Console, search: KneeSearch, repeat: Repeat) -> None:
    """Print the points in order of their rate, then the result."""
    from penstock_bench.load import intervals, report

    columns = ("calls/s", "ended/s", "output tok/s", "calls", "growth", "lost", "first token p95", "end to end p95")
    shown = report.table(*columns, "kept", "holds")
    for point in sorted(search.points, key=lambda one: one.calls_per_second):
        shown.add_row(*_cells(point, search.criteria))
    console.print(shown)
    console.print()
    for line in sentences(search):
        console.out(line, highlight=False)
    found = search.intervals()
    if found:
        report.show_intervals(console, found)
    notes = list(search.warnings)
    if repeat.runs > 1 and not intervals.available():
        notes.append(intervals.MISSING)
    if repeat.missed(found):
        notes.append("the knee's interval is still wider than wanted; raise --max-runs or --calls")
    report.show_notes(console, notes)


def _cells(point: Point, criteria: Criteria) -> tuple[str, ...]:
    stated = bool(criteria.objectives.stated)
    holds = "all" if stated and point.keeps_objectives(criteria) else "rate" if point.keeps_up(criteria) else "no"
    return (
        f"{point.calls_per_second:.3g}",
        f"{point.served_calls_per_second:.3g}",
        f"{point.output_tokens_per_second:.1f}",
        f"{point.calls}",
        f"{point.growth_share:+.1%}",
        f"{point.unserved_share:.1%}",
        *("lost" if value is None else f"{value:.3f} s" for value in (point.first_token_p95, point.end_to_end_p95)),
        "-" if point.kept_share is None else f"{point.kept_share:.1%}",
        holds,
    )


def sentences(search: KneeSearch) -> list[str]:
    """Return the result of the search as sentences."""
    from penstock_bench.load.knee import KNEE, OBJECTIVE
    from penstock_bench.load.search import mean

    criteria, last = search.criteria, search.searches[-1]
    knee = mean(search.knees)
    known = last.bracket(KNEE)
    if knee is not None:
        said = [f"knee: {knee:.4g} calls/s (held {_rate(known.holds)}, did not hold {_rate(known.fails)})"]
    else:
        said = [f"knee: not found (held {_rate(known.holds)}, did not hold {_rate(known.fails)}); raise --max-points"]
    if criteria.objectives.stated:
        wanted = ", ".join(
            f"{name.replace('_', ' ')} {value:g} s" for name, value in criteria.objectives.stated.items()
        )
        rate, bracket = mean(search.objective_rates), last.bracket(OBJECTIVE)
        what = f"objective ({wanted} for {criteria.share:.0%} of calls)"
        if rate is not None:
            said.append(f"{what}: up to {rate:.4g} calls/s (did not hold {_rate(bracket.fails)})")
        elif bracket.holds is None:
            said.append(f"{what}: no rate that was tried holds it; the lowest was {_rate(bracket.fails)}")
        else:
            said.append(f"{what}: every rate that was tried holds it, up to {_rate(bracket.holds)}; raise --max-points")
    return said


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g} calls/s"
