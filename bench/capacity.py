"""Measure the front end's capacity without an engine: tokens per second and core, and the stage that limits it.

    python -m bench.capacity [--streams 64] [--tokens-per-step 2] [--json capacity.json]
    python -m bench.capacity --offered 32000 --streams 384    # the load of several replicas of a small model

Prepared tokens pass all stages (the engine's interface, candidate and output parser, events and protos, gRPC, socket)
to a client in another process. This process also runs the stages alone, each with those before it: the difference
between two of them is the cost of the later one. Figures are CPU time, not wall time, so that other work on the
machine is not counted.

With `--offered`, tokens come at that rate, as from several engines (`bench.offered`), instead of as fast as possible.
The figures are then how many tokens arrive, and the share of a core that this takes: without coalescing, and with
automatic coalescing of at most `--coalesced-ms`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
from bench.machine import about, machine
from bench.offered import Offer, engine_cores, measure, summary
from bench.scripted_service import MAX_STREAMS, WINDOW_TOKENS, connection, request, serving, text_of

_DEFAULT_ADAPTIVE_MS = round(Config().server.adaptive_flush_seconds * 1000)
Stream = Callable[[int], AsyncGenerator[Any, None]]


def main(
    streams: Annotated[int, typer.Option(help="Number of concurrent streams.", min=1, max=MAX_STREAMS)] = 64,
    tokens_per_step: Annotated[
        int, typer.Option(help="Tokens of each stream in each engine step; MTP gives two to three.", min=1)
    ] = 2,
    steps: Annotated[int, typer.Option(help="Engine steps of each thought and of each answer.", min=1)] = 64,
    repeats: Annotated[int, typer.Option(help="Number of repeats; the median is reported.", min=1)] = 5,
    offered: Annotated[
        int, typer.Option(help="Tokens per second, over all streams; 0: as fast as possible.", min=0)
    ] = 0,
    coalesced_ms: Annotated[
        int, typer.Option(help="With --offered: longest time that deltas are held while the event loop lags.", min=1)
    ] = _DEFAULT_ADAPTIVE_MS,
    replicas: Annotated[int, typer.Option(help="With --offered: number of engines that share the streams.", min=1)] = 8,
    seconds: Annotated[float, typer.Option(help="With --offered: seconds that the streams run.", min=1)] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.", dir_okay=False)] = None,
) -> None:
    """Measure the front end on prepared tokens."""
    if offered:
        _report_offered(Offer(offered, streams, tokens_per_step, replicas, seconds), repeats, coalesced_ms, json_file)
        return
    text = text_of(steps * tokens_per_step)
    reply = Reply(thought=text, answer=text, chunk_tokens=tokens_per_step)
    tokens = 2 * len(text) * streams
    stages = {name: _median(repeats, stream, streams) / tokens for name, stream in _stages(reply).items()}
    runs = {
        "one message per step": _over_the_wire(reply, streams, repeats, max_adaptive_ms=0),
        "coalesced while the loop lags": _over_the_wire(reply, streams, repeats),
        "coalesced for 100 ms": _over_the_wire(reply, streams, repeats, flush_ms=100),
    }
    figures = _figures(stages, runs, tokens_per_step) | {"streams": streams, "machine": machine()}
    print(_text(figures, streams, tokens_per_step))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _report_offered(offer: Offer, repeats: int, coalesced_ms: int, json_file: Path | None) -> None:
    figures = {
        "about": about("bench.capacity"),
        "offer": asdict(offer),
        "step_ms": offer.step_seconds * 1e3,
        "scripted_engine_cores": engine_cores(offer),
        "runs": {name: summary(runs) for name, runs in measure(offer, (0, coalesced_ms), repeats).items()},
    }
    print(
        f"{offer.streams} streams of {offer.replicas} replicas, {offer.tokens_per_step} tokens per step of "
        f"{offer.step_seconds * 1e3:.1f} ms: {offer.tokens_per_second:,} tokens per second offered"
    )
    for max_ms, run in figures["runs"].items():
        name = f"coalesced for at most {max_ms} ms" if int(max_ms) else "not coalesced"
        print(f"{name}: {_line(run['median'], offer)}")
        print(f"  best of {run['turns']} turns: {_line(run['best'], offer)}")
    print(f"the scripted engine alone uses {figures['scripted_engine_cores']:.2f} of the service's cores")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _line(run: dict[str, float], offer: Offer) -> str:
    return (
        f"{run['tokens_per_second']:,.0f} tokens per second arrive "
        f"({run['tokens_per_second'] / offer.tokens_per_second:.0%}), {run['messages_per_token']:.2f} messages and "
        f"{run['cpu_us_per_token']:.1f} us per token, {run['service_cores']:.2f} cores (client: "
        f"{run['client_cores']:.2f}), the event loop lags by {run['loop_lag_ms_median']:.0f} ms "
        f"(at most {run['loop_lag_ms_max']:.0f}) and uses {run['loop_busy_share_median']:.2f} of a core; the last "
        f"stream's first token comes after {run['last_first_token_seconds']:.1f} s"
    )


def _stages(reply: Reply) -> dict[str, Stream]:
    """Return the stages by name. Each does the work of the one before, and more."""
    config = Config()
    engine = ScriptedEngine([reply], context_window_tokens=WINDOW_TOKENS)
    admission = Admission(config.admission, lambda: 1 << 20)
    service = ServiceContext(
        config, PriceList(config.price_tiers), admission, StreamStore(config.resume), lambda: engine
    )
    calls = CallRunner(service)
    spec = request().spec
    plan = plan_generation(request_from_proto(spec), engine, config)
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
        call = calls.new_call(spec, RequestContext(ANONYMOUS, time.monotonic(), None))
        async with aclosing(calls.events(call)) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event).SerializeToString()

    return {"engine interface": engine_alone, "candidate and parser": generation, "events and protos": events}


def _median(repeats: int, stream: Stream, streams: int) -> float:
    """Return the median CPU seconds of all concurrent streams in this process."""

    async def one(number: int) -> None:
        async with aclosing(stream(number)) as items:
            async for _ in items:
                pass

    async def run() -> float:
        began = time.process_time()
        await asyncio.gather(*(one(number) for number in range(streams)))
        return time.process_time() - began

    return statistics.median(asyncio.run(run()) for _ in range(repeats))


def _over_the_wire(
    reply: Reply, streams: int, repeats: int, *, flush_ms: int = 0, max_adaptive_ms: int = 100
) -> dict[str, float]:
    """Return the figures of a server process that streams as fast as possible. The first run is a warm-up."""
    with serving([reply], [f"server.adaptive_flush_seconds={max_adaptive_ms / 1000}"]) as (process, address):
        host, port = address.rsplit(":", 1)
        connections = tuple(connection(address, request(flush_ms=flush_ms)) for _ in range(streams))
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
    lines = [f"{streams} streams, {tokens_per_step} prepared tokens per step"]
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
