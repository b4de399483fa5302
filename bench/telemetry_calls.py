"""Measure the CPU microseconds of telemetry per call: on the event loop's thread, and on all others (export).

python -m bench.telemetry_calls [--rounds 5] [--calls 2000] [--against CHECKOUT] [--json]

One call of the scripted engine (7 spans, 10 histogram values, 8 additions) is recorded and reported again and again,
without a server. Each measurement is a process of its own, which sends everything by OTLP to a collector in another
process and has a Prometheus endpoint. Rounds alternate between the ratios, and with --against also between this
checkout and the other one, so that other work on the machine affects all of them. It prints medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from penstock.config.schema import Config, TelemetrySettings
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server
from penstock.telemetry.hooks import CallHooks, CandidateHooks, Cause, GenerationHooks, Headers, Step, TelemetryHooks
from penstock.types import CandidateEnd, EngineChunk, EngineRequest, Finished, GenerationPlan, ThinkingOutcome
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc
from rich.console import Console
from rich.table import Table

from bench.machine import about

ROOT = Path(__file__).parents[1]
METHOD = "/penstock.v1.GenerationService/StreamGenerate"
RATIOS = (1.0, 0.05)
PAUSE_EVERY, PAUSE_SECONDS = 50, 0.02
LOOP, EXPORT = "event_loop_us", "export_us"
CallCost = dict[str, float]


class Kept(TelemetryHooks, CallHooks):
    """Record the hook calls of one generation."""

    plan: GenerationPlan
    finished: Finished
    request: EngineRequest
    chunk: EngineChunk
    end: CandidateEnd

    def call(self, method: str, metadata: Any) -> CallHooks:
        return self

    def generation(
        self, *, model: str, chat: bool, streams: bool, parent_headers: Headers | None = None
    ) -> GenerationHooks:
        return _KeptGeneration(self)


class _KeptGeneration(GenerationHooks):
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def planned(self, plan: GenerationPlan, seconds_to_deadline: float | None) -> None:
        self._kept.plan = plan

    def candidate(self, index: int) -> CandidateHooks:
        return _KeptCandidate(self._kept)

    def finished(self, finished: Finished) -> None:
        self._kept.finished = finished


class _KeptCandidate(CandidateHooks):
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def run_began(self, cause: Cause, request: EngineRequest) -> Headers | None:
        self._kept.request = request
        return None

    def run_answered(self, chunk: EngineChunk) -> None:
        self._kept.chunk = chunk

    def ended(self, end: CandidateEnd) -> None:
        self._kept.end = end


async def one_real_call() -> Kept:
    kept = Kept()
    server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}), kept)
    address = await server.listen()
    await server.serve_with(ScriptedEngine((Reply(thought="a thought of some length", answer="an answer"),)))
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="What is 1 + 2?")]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async for _ in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec)):
            pass
    await server.drain(0)
    return kept


def report_to(hooks: TelemetryHooks, kept: Kept) -> None:
    """Report the call again, in the service's order."""
    call = hooks.call(METHOD, (("user-agent", "bench"),))
    call.caller_is("caller", "label")
    with call.generation(model="scripted", chat=True, streams=True) as generation:
        with generation.step(Step.PLAN):
            pass
        generation.planned(kept.plan, None)
        with generation.step(Step.QUEUE):
            pass
        generation.admitted("0" * 32, 0.001)
        candidate = generation.candidate(0)
        candidate.run_began(Cause.START, kept.request)
        candidate.run_answered(kept.chunk)
        candidate.first_token(is_thought=True)
        candidate.thought_ended(ThinkingOutcome.NATURAL_END, kept.end.usage.thought_tokens)
        candidate.first_answer_token()
        candidate.run_ended("stop", kept.chunk)
        candidate.ended(kept.end)
        generation.finished(kept.finished)
    call.ended("OK")


async def measured(endpoint: str, calls: int) -> CallCost:
    """Return the cost of a call in this process, with the sampler from the environment."""
    # Imported here: with another checkout's service/ first on the path, these are its own.
    from penstock.telemetry.otel.plan import plan_telemetry
    from penstock.telemetry.otel.start import Telemetry

    kept = await one_real_call()
    settings = TelemetrySettings(otlp="grpc", otlp_endpoint=endpoint, prometheus_listen=":0", engine_traces=False)
    telemetry = Telemetry(plan_telemetry(settings, {}), settings)
    for _ in range(100):
        report_to(telemetry.hooks, kept)
    before, thread = time.process_time(), 0.0
    for number in range(calls):
        began = time.thread_time()
        report_to(telemetry.hooks, kept)
        thread += time.thread_time() - began
        if number % PAUSE_EVERY == 0:
            await asyncio.sleep(PAUSE_SECONDS)
    # Includes the export of the queues.
    await telemetry.close()
    process = time.process_time() - before
    return {LOOP: thread / calls * 1e6, EXPORT: (process - thread) / calls * 1e6}


@contextmanager
def collecting() -> Iterator[str]:
    command = (sys.executable, "-m", "tests.rpc.otlp")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as collector:
        assert collector.stdin
        assert collector.stdout
        yield collector.stdout.readline().strip()
        collector.stdin.close()


def in_a_process(checkout: Path, ratio: float, calls: int) -> CallCost:
    environ = os.environ | {
        "PYTHONPATH": str(checkout / "service"),
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(ratio),
        # The queues are large enough to export everything.
        "OTEL_BSP_MAX_QUEUE_SIZE": "1000000",
    }
    with collecting() as endpoint:
        command = (sys.executable, "-m", "bench.telemetry_calls", "--endpoint", endpoint, "--calls", str(calls))
        done = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True)
    found: CallCost = json.loads(done.stdout)
    return found


def compare(rounds: int, measure: Callable[[str, float], CallCost], sides: list[str]) -> list[dict[str, Any]]:
    """Return a row of medians over rounds per checkout and ratio, with its ratio to the first row of the same round."""
    found: dict[tuple[str, float], list[CallCost]] = {(side, ratio): [] for side in sides for ratio in RATIOS}
    for _ in range(rounds):
        for key, costs in found.items():
            costs.append(measure(*key))
    rows: list[dict[str, Any]] = []
    for (side, ratio), costs in found.items():
        row: dict[str, Any] = {"side": side, "sampling_ratio": ratio}
        row |= {key: round(statistics.median(cost[key] for cost in costs)) for key in (LOOP, EXPORT)}
        first = found[sides[0], ratio]
        sums = [(sum(cost.values()), sum(base.values())) for cost, base in zip(costs, first, strict=True)]
        rows.append({**row, "to_first": round(statistics.median(cost / base for cost, base in sums), 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="calls of each measurement")
    parser.add_argument("--against", type=Path, help="another checkout of this project, to be measured beside this one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.endpoint:
        print(json.dumps(asyncio.run(measured(asked.endpoint, asked.calls))))
        return
    checkouts = {"this": ROOT} if asked.against is None else {"against": asked.against.resolve(), "this": ROOT}
    rows = compare(asked.rounds, lambda side, ratio: in_a_process(checkouts[side], ratio, asked.calls), list(checkouts))
    if asked.json:
        print(json.dumps({**about("bench.telemetry_calls"), "rounds": asked.rounds, "costs": rows}, indent=1))
        return
    table = Table("", "sampling ratio", "event loop, us a call", "export, us a call", "sum to the first")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("side", "sampling_ratio", LOOP, EXPORT, "to_first")))
    Console().print(table)


if __name__ == "__main__":
    main()
