"""Generate the intended times of calls, in seconds from the start of the window. The warm-up is before 0."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from penstock_bench.load.workload import Work


@dataclass(frozen=True, slots=True)
class ScheduledCall:
    """One call and its time."""

    at_seconds: float
    work: Work


def poisson(calls_per_second: float, begin_seconds: float, rng: random.Random) -> Iterator[float]:
    """Yield Poisson arrivals: exponential gaps, without an end."""
    at = begin_seconds
    while True:
        at += rng.expovariate(calls_per_second)
        yield at


def poisson_of_count(calls: int, begin_seconds: float, end_seconds: float, rng: random.Random) -> Iterator[float]:
    """Yield a Poisson process with a fixed number of arrivals between two moments: their times are uniform."""
    return iter(sorted(rng.uniform(begin_seconds, end_seconds) for _ in range(calls)))


def bursts(calls: int, every_seconds: float, begin_seconds: float) -> Iterator[float]:
    """Yield `calls` arrivals at each multiple of `every_seconds`."""
    first = -int(-begin_seconds // every_seconds) if begin_seconds < 0 else 0
    for number in itertools.count(first):
        yield from itertools.repeat(number * every_seconds, calls)


def drawn(times: list[Iterator[float]], end_seconds: float, draw: Callable[[], Work]) -> Iterator[ScheduledCall]:
    """Yield all arrivals in order of time, up to the end, each with its work."""
    for at in heapq.merge(*times):
        if at >= end_seconds:
            return
        yield ScheduledCall(at, draw())
