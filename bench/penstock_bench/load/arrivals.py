"""When calls are meant to be sent, in seconds from the start of what is measured; the warm-up lies before 0."""

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
    """Independent callers: exponential gaps, without an end."""
    at = begin_seconds
    while True:
        at += rng.expovariate(calls_per_second)
        yield at


def poisson_of_count(calls: int, begin_seconds: float, end_seconds: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process given that it has so many arrivals between two moments: each is uniform over them."""
    return iter(sorted(rng.uniform(begin_seconds, end_seconds) for _ in range(calls)))


def bursts(calls: int, every_seconds: float, begin_seconds: float) -> Iterator[float]:
    """`calls` at the same moment, again and again; the first at the first multiple of `every_seconds` that is due."""
    first = -int(-begin_seconds // every_seconds) if begin_seconds < 0 else 0
    for number in itertools.count(first):
        yield from itertools.repeat(number * every_seconds, calls)


def drawn(times: list[Iterator[float]], end_seconds: float, draw: Callable[[], Work]) -> Iterator[ScheduledCall]:
    """All times together, in order, up to the end, each with its work."""
    for at in heapq.merge(*times):
        if at >= end_seconds:
            return
        yield ScheduledCall(at, draw())
