"""What may be used per minute: buckets that fill evenly and hold a minute's worth.

What is taken may exceed what is there: a call's output is known only when it was generated, so it is owed, and nothing
new is let in until the debt is paid. Over time no more than the rate is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

# Callers whose buckets are remembered; a full bucket says nothing and is forgotten first.
_MOST_BUCKETS = 10_000
_MINUTE_SECONDS = 60.0


class Minutes(Protocol):
    """Counts per caller and kind (`requests`, `tokens`)."""

    async def take(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        """Takes `amount` and returns 0, or takes nothing and returns the seconds until it may be tried again.

        More than a minute's worth at once waits only for a full bucket. With `owing` it is taken in any case.
        """
        ...

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        """What may be taken now; not below 0."""
        ...

    async def close(self) -> None: ...


class Bucket:
    """`level` may be negative: a debt."""

    __slots__ = ("at", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level, self.at = level, at

    def fill(self, per_minute: int, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / _MINUTE_SECONDS)
        self.at = now

    def wait_seconds(self, per_minute: int, amount: int) -> float:
        return max(0.0, (min(amount, per_minute) - self.level) * _MINUTE_SECONDS / per_minute)


class MemoryMinutes:
    """Counts of this process alone. `clock` tells seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def _bucket(self, caller: str, kind: str, per_minute: int) -> Bucket:
        now = self._clock()
        bucket = self._buckets.get((caller, kind))
        if bucket is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._forget()
            bucket = self._buckets[caller, kind] = Bucket(per_minute, now)
        bucket.fill(per_minute, now)
        return bucket

    def _forget(self) -> None:
        """Those that are left alone longest: after a minute a bucket without debt is full."""
        by_age = sorted(self._buckets.items(), key=lambda item: (item[1].level < 0, item[1].at))
        for key, _ in by_age[: _MOST_BUCKETS // 10]:
            del self._buckets[key]

    async def take(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        bucket = self._bucket(caller, kind, per_minute)
        wait = 0.0 if owing else bucket.wait_seconds(per_minute, amount)
        if wait == 0.0:
            bucket.level -= amount
        return wait

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        return max(0, int(self._bucket(caller, kind, per_minute).level))

    async def close(self) -> None:
        return None
