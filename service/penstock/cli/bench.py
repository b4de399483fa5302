"""`penstock bench`: load on a running service, and what comes of it."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from penstock.cli import options as o
from penstock.cli.failures import ended, nothing_measured
from penstock.cli.progress import watched

if TYPE_CHECKING:
    from penstock_client import AsyncClient, ModelCard

    from penstock.load.measure import Load, Pattern
    from penstock.load.run import Options
    from penstock.load.statistics import Objectives
    from penstock.load.workload import Workload

_WIDTH = 120
T = TypeVar("T")


def bench(
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: so many callers. Default: 8.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Open loop: Poisson, so many calls per second.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Open loop: so many calls at one moment.")] = None,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between bursts.")] = 10.0,
    trace: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Replay of a trace file.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="The trace's pace, times this.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured, after the warm-up. A trace has its own.")] = 30.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of load before anything counts.")] = 5.0,
    drain: Annotated[float, typer.Option(min=0, help="Most seconds that calls under way get at the end.")] = 60.0,
    prompt_tokens: Annotated[str, typer.Option(help="Mix of lengths, such as 128@3,1024-2048@1.")] = "128",
    output_tokens: Annotated[str, typer.Option(help="Mix of lengths; empty: as long as the service lets.")] = "64",
    until_end: Annotated[bool, typer.Option("--until-end", help="Outputs may end before their length.")] = False,
    thinking: Annotated[str, typer.Option(help="Mix of modes, such as fast@3,thinking:64@1,auto.")] = "fast",
    prefixes: Annotated[int, typer.Option(min=0, help="Prompts begin with one of so many shared ones.")] = 0,
    prefix_tokens: Annotated[int, typer.Option(min=1, help="Length of a shared prefix, part of the prompt.")] = 64,
    deadline: Annotated[float | None, typer.Option(min=0.001, help="Seconds that each call is given.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SECONDS", help="first-token, first-answer, per-token, end-to-end.")
    ] = None,
    temperature: o.Temperature = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Calls go round over so many.")] = 1,
    flush_interval: Annotated[
        float | None, typer.Option(min=0, help="Seconds to gather deltas, at the server.")
    ] = None,
    resumable: Annotated[
        bool, typer.Option("--resumable", help="Streams that the server keeps, as clients do.")
    ] = False,
    pid: Annotated[
        int | None, typer.Option(help="The service's process here; default: who listens at loopback.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything as JSON; `-` is stdout.")] = None,
    rows: Annotated[bool, typer.Option("--rows", help="With --json: every call too.")] = False,
    save_trace: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write what was sent, to be replayed.")
    ] = None,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Put load on a running service: percentiles, goodput, tokens per second, CPU and memory.

    Open loops (--rate, --burst, --trace) send by the clock, and latency counts from the intended moment, so that a slow
    service cannot slow down its own measurement. Ctrl-C shows what was measured so far.
    """
    from penstock.load.run import Options
    from penstock.load.statistics import Objectives
    from penstock.load.workload import Lengths, Thinking, Workload

    pattern = _pattern(concurrency, rate, burst, every, trace, speed)
    workload = Workload(
        prompt=parsed(Lengths.parse, prompt_tokens, "--prompt-tokens"),
        output=parsed(Lengths.parse, output_tokens, "--output-tokens") if output_tokens else None,
        thinking=parsed(Thinking.parse, thinking, "--thinking"),
        prefixes=prefixes,
        prefix_tokens=prefix_tokens,
        deadline_seconds=deadline,
    )
    objectives = parsed(Objectives.parse, objective or [], "--objective")
    options = Options(
        seconds, warm_up, drain, exact=not until_end, temperature=temperature, seed=seed,
        flush_interval_seconds=flush_interval, resumable=resumable,
    )  # fmt: skip
    if rows and json is None:
        raise typer.BadParameter("goes with --json", param_hint="--rows")
    o.refuse_unwritable(("--json", None if json in (None, "-") else Path(str(json))), ("--save-trace", save_trace))
    run = _Bench(pattern, workload, options, objectives)
    exit_code = run.measure(target, o.encryption(tls, ca), connections, pid)
    if not run.tell(json, rows, save_trace):
        exit_code = nothing_measured(exit_code, run.why_nothing)
    if exit_code:
        raise typer.Exit(exit_code)


def _pattern(
    concurrency: int | None, rate: float | None, burst: int | None, every: float, trace: Path | None, speed: float
) -> Pattern:
    from penstock.load import trace as traces
    from penstock.load.measure import Closed, Open, Replay

    chosen = [concurrency is not None, rate is not None or burst is not None, trace is not None]
    if sum(chosen) > 1:
        raise typer.BadParameter("one of --concurrency, --rate with or without --burst, and --trace")
    if trace is not None:
        try:
            return Replay(tuple(traces.read(trace)), speed)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--trace") from None
    if rate is not None or burst is not None:
        return Open(rate or 0.0, burst or 0, every)
    return Closed(concurrency or 8)


def parsed(parse: Callable[[Any], T], given: Any, option: str) -> T:
    try:
        return parse(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def client_for(target: str, tls: bool | Path | None, number: int = 0) -> AsyncClient:
    """A client whose connection is its own, and that does not hide a lost one."""
    from penstock_client import AsyncClient

    try:
        return AsyncClient(
            target,
            tls=tls,
            reconnect=None,
            channel_options=[("grpc.use_local_subchannel_pool", 1), ("grpc.channel_id", number)],
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


class _Bench:
    """One load; there is something to show whenever it ends."""

    def __init__(self, pattern: Pattern, workload: Workload, options: Options, objectives: Objectives) -> None:
        from rich.console import Console

        self._pattern, self._workload, self._options, self._objectives = pattern, workload, options, objectives
        self._load: Load | None = None
        self._card: ModelCard | None = None
        self._not_local: str | None = None
        self._notes = Console(stderr=True)

    def measure(self, target: str, tls: bool | Path | None, connections: int, pid: int | None) -> int:
        """The exit code: not 0 where Ctrl-C or a failure ended it early."""
        return ended(self._measure(target, tls, connections, pid), target, tls)

    async def _measure(self, target: str, tls: bool | Path | None, connections: int, pid: int | None) -> None:
        from penstock.load import measure, processes
        from penstock.load.prompts import Prompts

        async with AsyncExitStack() as stack:
            clients = [client_for(target, tls, number) for number in range(connections)]
            for client in clients:
                await stack.enter_async_context(client)
            self._card = await clients[0].model()
            prompts = await Prompts.learn(clients[0])
            try:
                front_end = processes.find(target, pid)
            except processes.NotLocal as error:
                front_end, self._not_local = None, str(error)
            self._load = measure.prepare(clients, prompts, self._pattern, self._workload, self._options)
            async with watched(self._load, self._notes, self._load.pattern.name):
                await measure.carry_out(self._load, front_end)

    @property
    def why_nothing(self) -> str:
        """Why there is no call to show, and what to change."""
        sent = self._load.live.sent if self._load is not None else 0
        return (
            f"no call began within the measured {self._options.seconds:g} s ({sent} began during the warm-up); "
            "raise --seconds above the duration of a call, or lower --concurrency"
        )

    def tell(self, json: str | None, rows: bool, save_trace: Path | None) -> bool:
        """Show and write what was measured. Return False, without output, where no call was measured."""
        from rich.console import Console

        from penstock.files import replacing, write_text
        from penstock.load import report, trace
        from penstock.load.arrivals import Arrival
        from penstock.load.machine import client_machine, model_facts

        if self._load is None or self._card is None or not self._load.records:
            return False
        console = self._notes if json == "-" else Console()
        console.width = max(console.width, _WIDTH)
        report.show(console, self._load, self._objectives, self._not_local)
        if save_trace is not None:
            sent = sorted(self._load.records, key=lambda record: record.intended)
            with replacing(save_trace) as partial:
                trace.write(partial, (Arrival(record.intended, record.work) for record in sent))
        if json is not None:
            made = {
                "command": shlex.join(["penstock", *sys.argv[1:]]),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "client_machine": client_machine(),
                "model": model_facts(self._card),
                **report.as_json(self._load, self._objectives, self._not_local, rows=rows),
            }
            text = json_module.dumps(made, indent=1) + "\n"
            typer.echo(text, nl=False) if json == "-" else write_text(Path(json), text)
        return True
