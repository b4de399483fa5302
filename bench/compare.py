"""Compare AsyncLLM alone, `vllm serve` over HTTP and gRPC, and Penstock on the same model, arguments and questions.

    python -m bench.compare [--quick] [--json results.json] [--png results.png]

It measures throughput and latencies on the real engine; `bench.front_end` measures the cost of a front end, with
prepared tokens. Each server runs its own engine on this machine. The servers take turns, round by round, so that other
work on the machine affects all of them. The load comes from a process that costs the same for each (`bench.drain`).
Penstock has its default settings and sends traces to a collector; vLLM's servers keep their default statistics. Without
smg-grpc-servicer, the comparison leaves out `vllm serve --grpc` and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from penstock.config.schema import EngineSettings
from penstock.engine.tokenizer import load
from penstock.engine.vllm.start import plan as plan_engine

from bench.contenders import MAKERS, Contender, Setting
from bench.machine import about
from bench.report import Round, judged, plot, summary, table
from bench.work import MAX_TOKENS, job

_STREAMS = (1, 8, 32, 64)
_GPU_STREAMS = (1, 8, 64, 256)
_QUICK_STREAMS = (8, 64)
_ROUNDS, _QUICK_ROUNDS = 6, 2
# Few streams need several requests each to give enough tokens; many streams need one each.
_REQUESTS_PER_STREAM = {1: 6, 8: 2}
_KV_CACHE_GIB = 0.25  # each of four engines
_GPU_SHARE = 0.2  # likewise


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Run two rounds, at 8 and 64 streams.")] = False,
    streams: Annotated[
        str, typer.Option(help="Numbers of streams; empty: 1,8,32,64 (8,64 with --quick; 1,8,64,256 on a GPU).")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Number of rounds; 0: six, or two with --quick.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures.", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="File for a plot of them.", dir_okay=False)] = None,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Let Penstock send traces and metrics to a collector.")
    ] = True,
) -> None:
    """Compare front ends on the real engine."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        at = stack.enter_context(collector()) if trace else ""
        setting = _setting(Path(scratch), at)
        contenders = [maker(setting) for maker in MAKERS]
        notes: list[str] = []
        contenders = started(contenders, stack, notes)
        counts = _streams(streams, setting, quick)
        measured = _measure(contenders, counts, rounds or (_QUICK_ROUNDS if quick else _ROUNDS))
    results = summary(measured)
    ratios, targets = judged(measured)
    print(table(results, {one.name: one.label for one in contenders}))
    for line in (*notes, *targets):
        print(line)
    whole = {
        "about": {**about("bench.compare"), "notes": notes},
        "labels": {one.name: one.label for one in contenders},
        "results": results,
        "ratios": ratios,
        "targets": targets,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if png is not None:
        plot(results, {one.name: one.label for one in contenders}, png)


def _streams(given: str, setting: Setting, quick: bool) -> tuple[int, ...]:
    if given:
        return tuple(int(one) for one in given.split(","))
    if quick:
        return _QUICK_STREAMS
    return _GPU_STREAMS if "gpu_memory_utilization" in setting.plan.arguments else _STREAMS


def started(makings: Sequence[Contender], stack: ExitStack, notes: list[str]) -> list[Contender]:
    """Start all servers and return those that answer. Add the reason why each of the others does not to `notes`.

    On a GPU they start one after the other: vLLM measures there how much memory its own start takes, and what another
    server takes or frees meanwhile would count.
    """
    waiting = [one for one in makings if not one.missing]
    in_turn = any("gpu_memory_utilization" in one.setting.plan.arguments for one in waiting)
    for one in waiting:
        stack.callback(one.stop)
        if not in_turn:
            one.start()
    up = []
    for one in makings:
        try:
            if not one.missing:
                if in_turn:
                    one.start()
                one.wait()
                one.serve(job(8, 1, seed=0))
                up.append(one)
                print(f"{one.label} is ready", file=sys.stderr)
        except (RuntimeError, OSError, ValueError, IndexError, subprocess.CalledProcessError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            one.missing = "it did not start or did not answer; the message above has the cause"
        if one.missing:
            notes.append(f"{one.label} is left out: {one.missing}")
    return up


def _measure(contenders: Sequence[Contender], streams: Sequence[int], rounds: int) -> list[Round]:
    measured = []
    for turn in range(rounds):
        for count in streams:
            work = job(count, _REQUESTS_PER_STREAM.get(count, 1), seed=1000 * turn + count)
            # Each round begins with another server.
            for one in [*contenders[turn % len(contenders) :], *contenders[: turn % len(contenders)]]:
                measured.append(Round(turn, count, one.name, one.serve(work)))
        print(f"round {turn + 1} of {rounds} has ended", file=sys.stderr)
    return measured


def _setting(folder: Path, at: str) -> Setting:
    settings = EngineSettings(kv_cache_gib=_KV_CACHE_GIB, gpu_memory_utilization=_GPU_SHARE)
    checkpoint, plan, _ = plan_engine(settings)  # for the build of vLLM that is installed, as the service does
    os.environ.update(plan.environment)
    tokenizer = load(checkpoint.model, checkpoint.vocab_size)
    # All streams of a round start at the same time.
    admitted = {"admission.max_queued_calls": 1024, "admission.max_starts_per_second": 1e6}
    return Setting(folder, checkpoint.model, plan, tokenizer, at, MAX_TOKENS, settings=admitted)


@contextmanager
def collector() -> Iterator[str]:
    """Run a process that receives traces and keeps them. Yields its address."""
    command = [sys.executable, "-m", "tests.rpc.otlp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
