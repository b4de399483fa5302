"""Measure the front end while prepared tokens come at a given rate, as from several engines, even if it cannot keep up.

Each stream belongs to one of `replicas` engines, whose steps are not in phase. Tokens that a stream does not take in
time come with its next chunk, as vLLM's own queue merges them. Counting begins when all streams run and stops when the
first one ends, so that the beginning and the end of calls are left out.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvloop
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.types import EngineRequest, Sampling
from penstock_proto.v1 import generation_pb2 as pb

from bench import grpc_frames
from bench.drain import Drained, Work, drained
from bench.machine import free_port
from bench.scripted_service import WINDOW_TOKENS, connection, request, serving, text_of

_LAG, _BUSY = "penstock_event_loop_lag_seconds", "penstock_event_loop_busy_ratio"
_CPU_EVERY_SECONDS = 0.1
_SCRAPE_EVERY_SECONDS = 1.0
# Ratio of one replica's step to the next one's: their steps are never in phase for long, and the rate hardly changes.
_PACE_APART = 0.002
_MIN_STEADY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Offer:
    """The load: `tokens_per_second` of all streams together, for `seconds`."""

    tokens_per_second: int
    streams: int
    tokens_per_step: int
    replicas: int
    seconds: float

    @property
    def step_seconds(self) -> float:
        return self.streams * self.tokens_per_step / self.tokens_per_second

    def replies(self) -> list[Reply]:
        """Return the reply of each replica; the prompt selects it."""
        tokens = round(self.seconds / self.step_seconds / 2) * self.tokens_per_step
        middle = (self.replicas - 1) / 2
        return [
            Reply(
                match=_prompt(number),
                thought=text_of(tokens),
                answer=text_of(tokens),
                chunk_tokens=self.tokens_per_step,
                step_seconds=self.step_seconds * (1 + _PACE_APART * (number - middle)),
                keeps_schedule=True,
            )
            for number in range(self.replicas)
        ]


def _prompt(replica: int) -> str:
    return f"replica {replica}."


@dataclass(slots=True)
class _Samples:
    """Samples of the running service, as (time.monotonic(), value)."""

    cpu: list[tuple[float, float]] = field(default_factory=list)
    gauges: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def cpu_seconds(self, began: float, ended: float) -> tuple[float, float]:
        """Return the CPU seconds and the elapsed seconds between the samples nearest to these times."""
        inside = [one for one in self.cpu if began <= one[0] <= ended]
        (first, before), (last, after) = inside[0], inside[-1]
        return after - before, last - first

    def values(self, gauge: str, began: float, ended: float) -> list[float]:
        """Return the values of the service's metric in that time; [0.0] if there is no sample."""
        return [found.get(gauge, 0.0) for when, found in self.gauges if began <= when <= ended] or [0.0]


@contextmanager
def _watched(process: psutil.Process, metrics: str) -> Iterator[_Samples]:
    """Sample the process's CPU time and its event loop's lag at intervals, in a thread."""
    samples, over = _Samples(), threading.Event()

    def watch() -> None:
        scrape_due = 0.0
        while not over.wait(_CPU_EVERY_SECONDS):
            times = process.cpu_times()
            samples.cpu.append((time.monotonic(), times.user + times.system))
            if time.monotonic() >= scrape_due:
                scrape_due = time.monotonic() + _SCRAPE_EVERY_SECONDS
                samples.gauges.append((time.monotonic(), _gauges(metrics)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _gauges(metrics: str) -> dict[str, float]:
    with urllib.request.urlopen(metrics, timeout=60) as page:
        lines = page.read().decode().splitlines()
    return {line.split("{")[0].split()[0]: float(line.split()[-1]) for line in lines if line.startswith((_LAG, _BUSY))}


def measure(offer: Offer, adaptive_ms: Sequence[int], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return each turn's figures, by the longest automatic coalescing in milliseconds. The settings take turns.

    The first turn is a warm-up. A turn is left out if all streams did not run at once for half of their time. Raises
    RuntimeError if all turns were left out.
    """
    runs: dict[str, list[dict[str, float]]] = {str(max_ms): [] for max_ms in adaptive_ms}
    with ExitStack() as stack:
        services = {}
        for max_ms in adaptive_ms:
            port = free_port()
            settings = [
                f"server.adaptive_flush_seconds={max_ms / 1000}",
                f"telemetry.prometheus_listen=127.0.0.1:{port}",
            ]
            process, address = stack.enter_context(serving(offer.replies(), settings))
            services[str(max_ms)] = process, address, f"http://127.0.0.1:{port}/metrics"
        for turn in range(repeats + 1):
            for name, service in services.items():
                run = _run(offer, *service)
                if turn and run:
                    runs[name].append(run)
    if missing := [name for name, found in runs.items() if not found]:
        raise RuntimeError(
            f"coalesced for at most {missing[0]} ms: the {offer.streams} streams did not run at once for half of "
            f"{offer.seconds:g} s in any of {repeats} turns; use more --seconds or fewer --streams"
        )
    return runs


def _run(offer: Offer, process: psutil.Process, address: str, metrics: str) -> dict[str, float] | None:
    host, port = address.rsplit(":", 1)
    requests = [request(_prompt(number % offer.replicas)) for number in range(offer.streams)]
    connections = tuple(connection(address, made) for made in requests)
    with _watched(process, metrics) as samples:
        done = drained(Work((host, int(port)), "grpc", connections))
    return _figures(done, samples, offer)


def _figures(done: Drained, samples: _Samples, offer: Offer) -> dict[str, float] | None:
    """Return a turn's figures; None if the streams did not run at once for half of their time."""
    streams = [_deltas(grpc_frames.messages(own[0])) for own in done.replies]
    began, ended = max(deltas[0][0] for deltas in streams), min(deltas[-1][0] for deltas in streams)
    if ended - began < _MIN_STEADY_SHARE * offer.seconds:
        return None
    steady = [(when, tokens) for deltas in streams for when, tokens in deltas if began < when <= ended]
    tokens = sum(count for _, count in steady)
    cpu, cpu_over = samples.cpu_seconds(began, ended)
    lags = samples.values(_LAG, began, ended)
    per_second = tokens / (ended - began)
    return {
        "tokens_per_second": per_second,
        "messages_per_token": len(steady) / tokens,
        "service_cores": cpu / cpu_over,
        "cpu_us_per_token": cpu / cpu_over / per_second * 1e6,
        "loop_lag_ms_median": statistics.median(lags) * 1e3,
        "loop_lag_ms_max": max(lags) * 1e3,
        "loop_busy_share_median": statistics.median(samples.values(_BUSY, began, ended)),
        "last_first_token_seconds": began - done.began,
        "client_cores": done.cpu_seconds / (done.ended - done.began),
        "seconds_counted": ended - began,
    }


def _deltas(messages: Iterator[tuple[float, bytes]]) -> list[tuple[float, int]]:
    """Yield each delta's time and number of tokens."""
    found = []
    for when, data in messages:
        event = pb.StreamGenerateResponse.FromString(data).event
        kind = event.WhichOneof("event")
        if kind in ("thought", "answer"):
            found.append((when, getattr(event, kind).token_count))
    return found


def engine_cores(offer: Offer) -> float:
    """Return the cores that the scripted engine alone uses at this rate, on the service's kind of event loop."""
    engine = ScriptedEngine(offer.replies(), context_window_tokens=WINDOW_TOKENS)

    async def one(number: int) -> None:
        prompt = tuple(engine.tokenizer.encode(f"{_prompt(number % offer.replicas)}<think>"))
        async with aclosing(engine.stream(EngineRequest(f"{number}", prompt, 1 << 20, 0, Sampling()))) as chunks:
            async for _ in chunks:
                pass

    async def every() -> float:
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.gather(*(one(number) for number in range(offer.streams)))
        return (time.process_time() - cpu) / (time.monotonic() - began)

    return uvloop.run(every())


def summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the turn in which the most tokens arrived, and each figure's median."""
    best = max(runs, key=lambda run: run["tokens_per_second"])
    median = {name: statistics.median(run[name] for run in runs) for name in best}
    return {"turns": len(runs), "median": median, "best": best}
