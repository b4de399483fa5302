"""Measure what the front end can carry, without an engine: tokens per second and core, and what limits it.

    python -m bench.capacity [--streams 64] [--tokens-per-step 2] [--json capacity.json]
    python -m bench.capacity --offered 32000 --streams 384    what several replicas of a small model make together

Canned tokens go the whole way: engine border, candidate and splitter, events and protos, gRPC, socket, to a client in
another process. The stages are also run in this process, each up to its own end: the difference is what the next one
costs. CPU time, not wall time: what else the machine does slows it, but is not counted.

With `--offered` tokens come at that pace, as from engines, and not as fast as it goes: how many arrive, and what share
of a core that takes, without coalescing and with what comes on by itself (at most `--coalesced-ms`).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from penstock.admission.queue import Admission
from penstock.auth.identity import ANONYMOUS
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.generation.control import GenerationRun
from penstock.generation.generation import generate
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.server.convert.generation import request_from_proto
from penstock.server.request_context import RequestContext
from penstock.server.rpc.call_runner import CallRunner
from penstock.server.service_context import ServiceContext
from penstock.sessions.streams import StreamStore
from penstock.types import EngineRequest, Sampling
from penstock_proto.v1 import generation_pb2 as pb

from bench import grpc_frames
from bench.drain import Work, drained
from bench.machine import machine

_METHOD = "/penstock.v1.GenerationService/StreamGenerate"
_SENTENCE = "The quick brown fox jumps over the lazy dog, again and again. "
_WINDOW_TOKENS = 100_000
_START_SECONDS = 60.0
_DEFAULT_ADAPTIVE_MS = round(Config().server.adaptive_flush_seconds * 1000)
_MAX_STREAMS = 1000
Stream = Callable[[int], AsyncGenerator[Any, None]]


def main(
    streams: Annotated[int, typer.Option(help="Side by side.", min=1, max=_MAX_STREAMS)] = 64,
    tokens_per_step: Annotated[int, typer.Option(help="Of each stream; MTP gives two to three.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Per thought and per answer.", min=1)] = 64,
    repeats: Annotated[int, typer.Option(help="The median counts.", min=1)] = 5,
    offered: Annotated[int, typer.Option(help="Tokens a second, over all streams; 0: as fast as it goes.", min=0)] = 0,
    coalesced_ms: Annotated[
        int, typer.Option(help="With --offered: most that deltas are held while the event loop lags.", min=1)
    ] = _DEFAULT_ADAPTIVE_MS,
    json_file: Annotated[Path | None, typer.Option("--json", help="The figures.", dir_okay=False)] = None,
) -> None:
    """Measure the front end on canned tokens."""
    text = (_SENTENCE * (steps * tokens_per_step // len(_SENTENCE) + 1))[: steps * tokens_per_step]
    if offered:
        _report_offered(text, streams, tokens_per_step, repeats, offered, coalesced_ms, json_file)
        return
    reply = Reply(thought=text, answer=text, chunk_tokens=tokens_per_step)
    tokens = 2 * len(text) * streams
    stages = {name: _median(repeats, stream, streams) / tokens for name, stream in _stages(reply).items()}
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "one message per step": _over_the_wire(Path(scratch), reply, streams, repeats, most_adaptive_ms=0),
            "gathered while the loop lags": _over_the_wire(Path(scratch), reply, streams, repeats),
            "gathered for 100 ms": _over_the_wire(Path(scratch), reply, streams, repeats, flush_ms=100),
        }
    figures = _figures(stages, runs, tokens_per_step) | {"streams": streams, "machine": machine()}
    print(_text(figures, streams, tokens_per_step))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _report_offered(
    text: str, streams: int, tokens_per_step: int, repeats: int, offered: int, coalesced_ms: int, json_file: Path | None
) -> None:
    step_seconds = streams * tokens_per_step / offered
    reply = Reply(thought=text, answer=text, chunk_tokens=tokens_per_step, step_seconds=step_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            name: _over_the_wire(Path(scratch), reply, streams, repeats, most_adaptive_ms=most_ms)
            for name, most_ms in (
                ("one message per step", 0),
                (f"coalesced for at most {coalesced_ms} ms", coalesced_ms),
            )
        }
    print(
        f"{streams} streams, {tokens_per_step} tokens per step of {step_seconds * 1e3:.1f} ms: "
        f"{offered:,} tokens a second offered"
    )
    for name, run in runs.items():
        print(
            f"{name}: {run['tokens_per_second_reached']:,.0f} tokens per second arrive "
            f"({run['tokens_per_second_reached'] / offered:.0%}), {run['messages_per_token']:.2f} messages per token, "
            f"{run['cpu_us_per_token']:.1f} us per token, {run['cores_used']:.2f} cores"
        )
    if json_file is not None:
        figures = {"offered_tokens_per_second": offered, "streams": streams, "tokens_per_step": tokens_per_step}
        json_file.write_text(
            json.dumps(figures | {"runs": runs, "machine": machine()}, indent=1) + "\n", encoding="utf-8"
        )


def _stages(reply: Reply) -> dict[str, Stream]:
    """Each does what the one before does, and more."""
    config = Config()
    engine = ScriptedEngine([reply], context_window_tokens=_WINDOW_TOKENS)
    admission = Admission(config.admission, lambda: 1 << 20)
    service = ServiceContext(
        config, PriceList(config.price_tiers), admission, StreamStore(config.resume), lambda: engine
    )
    calls = CallRunner(service)
    request = _request()
    plan = plan_generation(request_from_proto(request.spec), engine, config)
    prompt = plan.context.prompt_token_ids

    def engine_alone(number: int) -> AsyncGenerator[Any, None]:
        return engine.stream(EngineRequest(f"{number}", prompt, 1 << 20, 0, Sampling()))

    async def generation(number: int) -> AsyncGenerator[Any, None]:
        async with aclosing(
            generate(engine, plan, service.prices, GenerationRun(f"{number}", time.monotonic()))
        ) as events:
            async for event in events:
                yield event

    async def events(number: int) -> AsyncGenerator[Any, None]:
        call = calls.new_call(request.spec, RequestContext(ANONYMOUS, time.monotonic(), None))
        async with aclosing(calls.events(call)) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event).SerializeToString()

    return {"engine border": engine_alone, "candidate and splitter": generation, "events and protos": events}


def _request(flush_ms: int = 0) -> pb.StreamGenerateRequest:
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="go")]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING),
    )
    request = pb.StreamGenerateRequest(spec=spec)
    request.flush_interval.FromMilliseconds(flush_ms)
    return request


def _median(repeats: int, stream: Stream, streams: int) -> float:
    """CPU seconds that all streams take side by side in this process."""

    async def one(number: int) -> None:
        async with aclosing(stream(number)) as items:
            async for _ in items:
                pass

    async def run() -> float:
        began = time.process_time()
        await asyncio.gather(*(one(number) for number in range(streams)))
        return time.process_time() - began

    return statistics.median(asyncio.run(run()) for _ in range(repeats))


@contextmanager
def _serving(scratch: Path, reply: Reply, most_adaptive_ms: int) -> Iterator[tuple[psutil.Process, str]]:
    script, ready = scratch / "replies.json", scratch / "ready"
    played = {"thought": reply.thought, "answer": reply.answer}
    played |= {"chunk_tokens": reply.chunk_tokens, "step_seconds": reply.step_seconds}
    script.write_text(json.dumps([played]), encoding="utf-8")
    ready.unlink(missing_ok=True)
    settings = [
        f"engine.model={script}",
        f"engine.max_context_tokens={_WINDOW_TOKENS}",
        f"server.adaptive_flush_seconds={most_adaptive_ms / 1000}",
        # All streams are one caller here, and run at once.
        "admission.max_starts_per_second=1e6",
        f"admission.max_running_sequences={_MAX_STREAMS}",
        f"admission.max_queued_calls={_MAX_STREAMS}",
    ]
    flags = [part for setting in settings for part in ("--set", setting)]
    listening = ["--engine-kind", "scripted", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command = [sys.executable, "-m", "penstock", "serve", *listening, *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + _START_SECONDS
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("penstock serve did not start")
                time.sleep(0.05)
            yield psutil.Process(process.pid), ready.read_text().strip()
        finally:
            process.terminate()


def _over_the_wire(
    scratch: Path, reply: Reply, streams: int, repeats: int, *, flush_ms: int = 0, most_adaptive_ms: int = 100
) -> dict[str, float]:
    """As fast as it goes, in a server of its own; the first run only warms it up."""
    with _serving(scratch, reply, most_adaptive_ms) as (process, address):
        host, port = address.rsplit(":", 1)
        message = _request(flush_ms).SerializeToString()
        connections = tuple(grpc_frames.connection(address, _METHOD, [message]) for _ in range(streams))
        runs = []
        for _ in range(repeats + 1):
            before = process.cpu_times()
            done = drained(Work((host, int(port)), "grpc", connections))
            after = process.cpu_times()
            cpu = after.user + after.system - before.user - before.system
            messages = sum(1 for own in done.replies for one in own for _ in grpc_frames.messages(one))
            runs.append((cpu, done.ended - done.began, messages))
    tokens = streams * (len(reply.thought) + len(reply.answer))
    cpu, seconds, messages = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    return {
        "cpu_us_per_token": cpu / tokens * 1e6,
        "tokens_per_second_per_core": tokens / cpu,
        "tokens_per_second_reached": tokens / seconds,
        "messages_per_token": messages / tokens,
        "cores_used": cpu / seconds,
    }


def _figures(stages: dict[str, float], runs: dict[str, dict[str, float]], tokens_per_step: int) -> dict[str, Any]:
    us = {name: seconds * 1e6 for name, seconds in stages.items()}
    names, ends = list(us), [0.0, *us.values()]
    shares = {name: end - before for name, before, end in zip(names, ends, ends[1:], strict=False)}
    whole = runs["one message per step"]["cpu_us_per_token"]
    shares["gRPC, sockets and the calls' own cost"] = whole - ends[-1]
    limit = max(shares, key=lambda name: shares[name])
    return {
        "tokens_per_step": tokens_per_step,
        "runs": runs,
        "cpu_us_per_token_by_stage": shares,
        "limit": limit,
        "limit_share": shares[limit] / whole,
    }


def _text(figures: dict[str, Any], streams: int, tokens_per_step: int) -> str:
    lines = [f"{streams} streams, {tokens_per_step} tokens per step, canned"]
    for name, run in figures["runs"].items():
        lines.append(
            f"{name}: {run['tokens_per_second_per_core']:,.0f} tokens per second and core "
            f"({run['cpu_us_per_token']:.1f} us each, {run['messages_per_token']:.2f} messages per token; "
            f"{run['tokens_per_second_reached']:,.0f} tokens per second reached on {run['cores_used']:.2f} cores)"
        )
    for name, cost in figures["cpu_us_per_token_by_stage"].items():
        lines.append(f"  {name}: {cost:.1f} us per token")
    lines.append(f"limited by: {figures['limit']}, {figures['limit_share']:.0%} of the CPU; one event loop, one core")
    return "\n".join(lines)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
