"""Put load on a running service and report the result: `penstock bench`."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from penstock.cli import options as o
from penstock.cli.failures import ended, nothing_measured
from penstock_bench.commands import bench_options as b
from penstock_bench.commands.bench_compare import compare
from penstock_bench.commands.bench_knee import knee
from penstock_bench.commands.bench_service import Service, connected, write_json
from penstock_bench.commands.progress import watched

if TYPE_CHECKING:
    from penstock_bench.load.intervals import Estimate
    from penstock_bench.load.measure import Load, Pattern
    from penstock_bench.load.repeat import Repeat
    from penstock_bench.load.run import LoadOptions
    from penstock_bench.load.statistics import Objectives, Spread
    from penstock_bench.load.workload import Conversation, Pictures, ToolLoop, Workload
    from penstock_client import ModelCard
    from rich.console import Console

_WIDTH = 120
_SEED_STEP = 1000
"""Distance between the seeds of two runs: a run uses its seed and the two after it."""

_PIXELS = 16_384
"""Largest width or height of an image."""

commands = typer.Typer(invoke_without_command=True)
commands.command()(knee)
commands.command()(compare)


# One parameter for each option.
@commands.callback()
def bench(
    ctx: typer.Context,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Number of concurrent callers (closed loop). Default: 8.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Calls per second, with Poisson arrivals (open loop).")
    ] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Number of calls sent at one moment (open loop).")] = None,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between bursts.")] = 10.0,
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Trace file to replay (open loop).")
    ] = None,
    trace_calls: Annotated[
        int | None, typer.Option(min=1, help="Number of calls of the trace to replay. Default: all.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Factor of the trace's speed.")] = 1.0,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds to measure, after the warm-up. A trace has its own.")
    ] = 30.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of warm-up, which are not counted.")] = 5.0,
    drain: b.Drain = 60.0,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Number of runs, each with a new seed.")] = 1,
    narrow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE=PERCENT", help="Repeat until the figure's 95 % interval is at most this wide to each side."
        ),
    ] = None,
    max_runs: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of runs with --narrow.")] = 20,
    prompt_tokens: b.PromptTokens = "128",
    output_tokens: b.OutputTokens = "64",
    until_end: b.UntilEnd = False,
    thinking: b.Thinking = "fast",
    prefixes: b.Prefixes = 0,
    prefix_tokens: b.PrefixTokens = 64,
    deadline: b.Deadline = None,
    questions: b.Questions = None,
    turns: Annotated[str, typer.Option(help="Mix of calls per conversation, such as 1@3,2-8@1.")] = "1",
    turn_tokens: Annotated[str, typer.Option(help="Mix of lengths of each later user message.")] = "32",
    keep_thought: Annotated[
        bool, typer.Option("--keep-thought/--drop-thought", help="Send earlier thoughts with their answers.")
    ] = False,
    turn_pause: Annotated[float, typer.Option(min=0, help="Seconds between a reply and the next turn.")] = 0.0,
    images: Annotated[str, typer.Option(help="Mix of numbers of images per first message, such as 0@3,1-2.")] = "0",
    image_size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of each image.")] = "1024x1024",
    tool_calls: Annotated[
        str, typer.Option(help="Mix of numbers of tool calls before the first answer, such as 0,1-4.")
    ] = "0",
    tool_result_tokens: Annotated[str, typer.Option(help="Mix of lengths of tool results.")] = "64",
    objective: b.Objective = None,
    temperature: o.Temperature = None,
    seed: b.Seed = 0,
    connections: b.Connections = 1,
    flush_interval: Annotated[
        float | None, typer.Option(min=0, help="Seconds for which the server coalesces deltas.")
    ] = None,
    resumable: Annotated[bool, typer.Option("--resumable", help="Make streams resumable, as clients do.")] = False,
    pid: b.Pid = None,
    json: b.JsonFile = None,
    rows: Annotated[bool, typer.Option("--rows", help="Include each call (needs --json).")] = False,
    save_trace: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for a trace of the calls, to be replayed.")
    ] = None,
    aiperf: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the figures and the calls in aiperf's formats."),
    ] = None,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Put load on a running service: percentiles, goodput, tokens per second, CPU and memory.

    Open loops (--rate, --burst, --trace) send by the clock, and latency counts from the intended moment, so that a slow
    service cannot slow down its own measurement. Ctrl-C shows the results so far.

    `penstock bench knee` finds the largest rate that the service holds, `penstock bench compare` compares two results.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options_before(ctx)
        return
    from penstock_bench.load.repeat import Repeat, parse_narrow
    from penstock_bench.load.run import LoadOptions
    from penstock_bench.load.statistics import Objectives

    pattern = _pattern(concurrency, rate, burst, every, trace, speed, trace_calls)
    workload = b.workload_of(prompt_tokens, output_tokens, thinking, prefixes, prefix_tokens, deadline, questions)
    workload = replace(
        workload,
        conversation=_conversation(turns, turn_tokens, keep_thought, turn_pause),
        pictures=_pictures(images, image_size),
        tool_loop=_tool_loop(tool_calls, tool_result_tokens),
    )
    objectives = b.parsed(Objectives.parse, objective or [], "--objective")
    options = LoadOptions(
        seconds, warm_up, drain, exact=not until_end, temperature=temperature, seed=seed,
        flush_interval_seconds=flush_interval, resumable=resumable,
    )  # fmt: skip
    repeat = Repeat(runs, max_runs, b.parsed(parse_narrow, narrow or [], "--narrow"))
    _refuse_repeating(repeat, ("--save-trace", save_trace), ("--aiperf", aiperf))
    if rows and json is None:
        raise typer.BadParameter("needs --json", param_hint="--rows")
    o.refuse_unwritable(("--json", json), ("--save-trace", save_trace), ("--aiperf", _inside(aiperf)))
    run = _Bench(pattern, workload, options, objectives, repeat)
    exit_code = run.measure(target, o.encryption(tls, ca), connections, pid)
    if not run.report(json, rows, save_trace, aiperf):
        exit_code = nothing_measured(exit_code, run.why_nothing)
    if exit_code:
        raise typer.Exit(exit_code)


def _refuse_options_before(ctx: typer.Context) -> None:
    """Refuse options before a subcommand: `penstock bench --rate 4 knee` would read the rate and not use it."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            command = ctx.invoked_subcommand
            raise typer.BadParameter(f"give it behind `{command}`, if `{command}` has it", param_hint=option)


def _inside(folder: Path | None) -> Path | None:
    """Return a file in the folder if it is there, else the folder, which will be made."""
    return folder / "aiperf" if folder is not None and folder.is_dir() else folder


def _refuse_repeating(repeat: Repeat, *files: tuple[str, Path | None]) -> None:
    from penstock_bench.load import intervals

    for option, file in files:
        if file is not None and (repeat.runs > 1 or repeat.narrow):
            raise typer.BadParameter("writes one run; leave out --runs and --narrow", param_hint=option)
    if repeat.narrow and not intervals.available():
        raise typer.BadParameter(intervals.MISSING, param_hint="--narrow")


# One parameter for each option.
def _pattern(
    concurrency: int | None,
    rate: float | None,
    burst: int | None,
    every: float,
    trace: Path | None,
    speed: float,
    trace_calls: int | None,
) -> Pattern:
    from penstock_bench.load import public_traces
    from penstock_bench.load.measure import Closed, Open, Replay

    chosen = [concurrency is not None, rate is not None or burst is not None, trace is not None]
    if sum(chosen) > 1:
        raise typer.BadParameter("one of --concurrency, --rate with or without --burst, and --trace")
    if trace is not None:
        try:
            return Replay(tuple(public_traces.read(trace, trace_calls)), speed)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--trace") from None
    if rate is not None or burst is not None:
        return Open(rate or 0.0, burst or 0, every)
    return Closed(concurrency or 8)


def _conversation(turns: str, turn_tokens: str, keep_thought: bool, pause: float) -> Conversation | None:
    from penstock_bench.load.workload import Conversation, Lengths

    lengths = b.parsed(Lengths.parse, turns, "--turns")
    if lengths.longest == 1:
        return None
    return Conversation(lengths, b.parsed(Lengths.parse, turn_tokens, "--turn-tokens"), keep_thought, pause)


def _pictures(images: str, size: str) -> Pictures | None:
    from penstock_bench.load.workload import Lengths, Pictures

    number = b.parsed(lambda text: Lengths.parse(text, 0), images, "--images")
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 1 <= int(width) <= _PIXELS and 1 <= int(height) <= _PIXELS):
        raise typer.BadParameter(f"must be WIDTHxHEIGHT, such as 1024x768, got {size!r}", param_hint="--image-size")
    return Pictures(number, int(width), int(height)) if number.longest else None


def _tool_loop(tool_calls: str, result_tokens: str) -> ToolLoop | None:
    from penstock_bench.load.workload import Lengths, ToolLoop

    calls = b.parsed(lambda text: Lengths.parse(text, 0), tool_calls, "--tool-calls")
    lengths = b.parsed(Lengths.parse, result_tokens, "--tool-result-tokens")
    return ToolLoop(calls, lengths) if calls.longest else None


class _Bench:
    """One load, run once or repeatedly. It has results to show whenever it ends."""

    def __init__(
        self, pattern: Pattern, workload: Workload, options: LoadOptions, objectives: Objectives, repeat: Repeat
    ) -> None:
        from rich.console import Console

        self._pattern, self._workload, self._options, self._objectives = pattern, workload, options, objectives
        self._repeat = repeat
        self._loads: list[Load] = []
        self._card: ModelCard | None = None
        self._not_local: str | None = None
        self._round_trip: Spread | None = None
        self._target = ""
        self._notes = Console(stderr=True)

    def measure(self, target: str, tls: bool | Path | None, connections: int, pid: int | None) -> int:
        """Return the exit code, which is not 0 if Ctrl-C or a failure ended it early."""
        self._target = target
        return ended(self._measure(target, tls, connections, pid), target, tls)

    async def _measure(self, target: str, tls: bool | Path | None, connections: int, pid: int | None) -> None:
        from penstock_bench.load import round_trip

        async with connected(target, tls, connections, pid) as service:
            self._card, self._not_local = service.card, service.not_local
            self._round_trip = await round_trip.measure(service.clients[0])
            while not self._repeat.enough(len(self._loads), self._intervals()):
                await self._run_once(service)

    async def _run_once(self, service: Service) -> None:
        from penstock_bench.load import measure

        number = len(self._loads)
        options = replace(self._options, seed=self._options.seed + _SEED_STEP * number)
        load = measure.prepare(service.clients, service.prompts, self._pattern, self._workload, options)
        self._loads.append(load)
        title = load.pattern.name + (f", run {number + 1}" if number or self._repeats else "")
        async with watched(load, self._notes, title):
            await measure.carry_out(load, service.front_end)

    @property
    def _repeats(self) -> bool:
        return self._repeat.runs > 1 or bool(self._repeat.narrow)

    def _intervals(self) -> dict[str, Estimate]:
        """Return the intervals over complete runs or, for a single one, over its parts."""
        from penstock_bench.load import intervals

        whole = [load for load in self._loads if not load.interrupted]
        if not whole or not intervals.available():
            return {}
        if self._repeats:
            summaries = [load.summary(self._objectives) for load in whole]
            return intervals.of_runs(summaries, [load.joules_per_output_token for load in whole])
        load = whole[0]
        by_second = [sum(load.live.tokens[n]) if n in load.live.tokens else 0 for n in range(int(load.seconds))]
        return intervals.of_one_run(load.records, load.seconds, by_second, self._objectives)

    @property
    def why_nothing(self) -> str:
        """Return the reason why there is no call to show, and what to change."""
        sent = self._loads[-1].live.sent if self._loads else 0
        return (
            f"no call began within the measured {self._options.seconds:g} s ({sent} began during the warm-up); "
            "raise --seconds above the duration of a call, or lower --concurrency"
        )

    def report(self, json: str | None, rows: bool, save_trace: Path | None, aiperf: Path | None) -> bool:
        """Show and write the results. Return False, without output, if no call was measured."""

        from penstock.files import replacing
        from penstock_bench.load import trace
        from penstock_bench.load.arrivals import ScheduledCall

        measured = [load for load in self._loads if load.records]
        if self._card is None or not measured:
            return False
        console = o.tables_beside(json, self._notes, _WIDTH)
        self._show(console, measured)
        if save_trace is not None:
            # Later turns follow from the first one.
            first_turns = [record for record in measured[0].records if record.turn == 0]
            sent = sorted(first_turns, key=lambda record: record.intended)
            with replacing(save_trace) as partial:
                trace.write(partial, (ScheduledCall(record.intended, record.work) for record in sent))
        if aiperf is not None:
            self._write_aiperf(aiperf, measured[0], self._card.model)
        if json is not None:
            write_json(json, self._card, self._as_json(measured, rows))
        return True

    def _write_aiperf(self, folder: Path, load: Load, model: str) -> None:
        from penstock.files import write_text
        from penstock_bench.load import aiperf

        began = datetime.now(UTC) - timedelta(seconds=load.run.clock.now())
        facts = aiperf.RunFacts(began, shlex.join(["penstock", *sys.argv[1:]]), model, self._target)
        folder.mkdir(parents=True, exist_ok=True)
        figures = aiperf.export(load, self._objectives, facts)
        write_text(folder / aiperf.FIGURES, json_module.dumps(figures, indent=1) + "\n")
        write_text(folder / aiperf.CALLS, "".join(f"{line}\n" for line in aiperf.lines(load, facts)))

    def _show(self, console: Console, measured: list[Load]) -> None:
        from penstock_bench.load import intervals, report

        found = self._intervals()
        if self._repeats:
            report.show_runs(console, measured, self._objectives)
        else:
            report.show(console, measured[0], self._objectives, self._not_local)
        if self._round_trip is not None and self._round_trip.p50 is not None:
            console.out(
                f"round trip before the load: {self._round_trip.p50 * 1e3:.2f} ms at p50 (a call that does nothing: "
                "network and front end; part of every latency above)",
                highlight=False,
            )
        notes = []
        if found:
            report.show_intervals(console, found)
        elif not intervals.available():
            notes.append(intervals.MISSING)
        for name in self._repeat.missed(found):
            figure = name.replace("_", " ")
            notes.append(
                f"the interval of {figure} is still wider than wanted after {len(measured)} runs; raise --max-runs or "
                "--seconds"
            )
        report.show_notes(console, notes)

    def _as_json(self, measured: list[Load], rows: bool) -> dict[str, Any]:
        from penstock_bench.load import report

        each = [report.as_json(load, self._objectives, self._not_local, rows=rows) for load in measured]
        made: dict[str, Any] = {
            "load": report.load_facts(measured[0], self._objectives),
            "round_trip": None if self._round_trip is None else asdict(self._round_trip),
            "intervals": report.intervals_as_json(self._intervals()),
        }
        if not self._repeats:
            return {**made, **each[0]}
        warned = list(dict.fromkeys(line for one in each for line in one["warnings"]))
        return {**made, "interrupted": any(load.interrupted for load in measured), "warnings": warned, "runs": each}
