"""Measure the ratio of tokens per second with telemetry on and off, and with expert routing on and off.

python -m bench.telemetry_cost [--rounds 12] [--calls 16] [--tokens 96] [--json]

There is one real engine on the embedded default, and one server per measurement, with the same streams. A round is off,
on, on, off, so that other work on the machine affects both; its ratio is on divided by off. The result is the median
over rounds, the quartiles, and the difference between the two "off" of a round: a smaller cost cannot be seen.
Telemetry means traces, metrics and logs to a collector in a process of its own, and a Prometheus endpoint. Goals: at
least 0.97 for telemetry and 0.98 for routing. Exits with 1 if a median misses its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from penstock.config.schema import Config, EngineSettings, TelemetrySettings
from penstock.engine.base import Engine
from penstock.generation.percentiles import percentile
from penstock.server.server import Server
from penstock.telemetry.hooks import NO_HOOKS, TelemetryHooks
from penstock.telemetry.otel.plan import plan_telemetry
from penstock.telemetry.otel.start import Telemetry
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
AIMS = {"telemetry": 0.97, "routing": 0.98}
Measure = Callable[[bool], Awaitable[float]]


async def tokens_per_second(engine: Engine, hooks: TelemetryHooks, calls: int, tokens: int) -> float:
    """Measure `calls` concurrent streams of exactly `tokens` tokens each, after a warm-up."""
    server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}), hooks)
    address = await server.listen()
    await server.serve_with(engine)
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="What is 1 + 2?")]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
        sampling=pb.SamplingConfig(temperature=0.0),
        output=pb.OutputConfig(max_output_tokens=tokens, min_output_tokens=tokens),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def one() -> None:
            async for _ in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec)):
                pass

        await one()
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(calls)))
        seconds = time.perf_counter() - began
    await server.drain(0)
    return calls * tokens / seconds


async def compare(measure: Measure, rounds: int) -> dict[str, Any]:
    """Run `measure(on)` in rounds of off, on, on, off."""
    ratios, noise, rates = [], [], []
    for _ in range(rounds):
        first, second, third, fourth = [await measure(on) for on in (False, True, True, False)]
        ratios.append((second + third) / (first + fourth))
        noise.append(abs(first - fourth) / (first + fourth) * 2)
        rates.append((first + fourth) / 2)
    return {
        "on_over_off": round(statistics.median(ratios), 4),
        "quartiles": [round(percentile(ratios, percent), 4) for percent in (25, 75)],
        "rounds": rounds,
        "off_tokens_per_second": round(statistics.median(rates), 1),
        "off_against_itself": round(statistics.median(noise), 4),
    }


@asynccontextmanager
async def telling() -> AsyncIterator[TelemetryHooks]:
    """Return the settings that send all telemetry to a collector."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.rpc.otlp")
    collector = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    assert collector.stdin
    assert collector.stdout
    endpoint = (await collector.stdout.readline()).decode().strip()
    settings = TelemetrySettings(otlp="grpc", otlp_endpoint=endpoint, prometheus_listen=":0", engine_traces=False)
    telemetry = Telemetry(plan_telemetry(settings, {}), settings)
    yield telemetry.hooks
    await telemetry.close()
    collector.stdin.close()
    await collector.wait()


async def costs(rounds: int, calls: int, tokens: int) -> dict[str, dict[str, Any]]:
    from penstock.engine.vllm.start import plan, start

    settings = EngineSettings(routing="required")
    layout = plan(settings)[1].layout
    engine = await start(settings)
    try:
        async with telling() as hooks:

            async def telemetry(on: bool) -> float:
                return await tokens_per_second(engine, hooks if on else NO_HOOKS, calls, tokens)

            async def routing(on: bool) -> float:
                await engine.count_experts(layout if on else None)
                return await tokens_per_second(engine, NO_HOOKS, calls, tokens)

            found = {"telemetry": await compare(telemetry, rounds), "routing": await compare(routing, rounds)}
    finally:
        await engine.close()
    return {name: {**cost, "aim": AIMS[name]} for name, cost in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=16, help="number of concurrent streams")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each stream")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(costs(asked.rounds, asked.calls, asked.tokens))
    if asked.json:
        print(json.dumps(found))
    else:
        table = Table("", "on / off", "quartiles", "aim", "off / off differs by", "tokens/s off")
        for name, cost in found.items():
            spread = " to ".join(map(str, cost["quartiles"]))
            noise, rate = cost["off_against_itself"], cost["off_tokens_per_second"]
            table.add_row(name, str(cost["on_over_off"]), spread, str(cost["aim"]), str(noise), str(rate))
        Console().print(table)
    return int(any(cost["on_over_off"] < cost["aim"] for cost in found.values()))


if __name__ == "__main__":
    sys.exit(main())
