"""What may be used per minute: buckets that fill evenly and hold a minute's worth.

What is taken may exceed what is there: a call's output is known only when it was generated, so it is owed, and nothing
new is let in until the debt is paid. Over time no more than the rate is used.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

# Buckets at once, some 350 bytes each. A bucket that is full again says nothing and is forgotten; while this many are
# not full, callers that have none yet share one for each kind.
_MAX_BUCKETS = 100_000
# How many buckets each new one looks at for some to forget: more than one, so that their number falls again.
_BUCKETS_CHECKED = 8
_MINUTE_SECONDS = 60.0


class TokenBucketLimiter(Protocol):
    """Counts per caller and kind (`requests`, `tokens`)."""

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
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

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: int, at: float) -> None:
        self.level: float = per_minute
        self.per_minute, self.at = per_minute, at

    def fill(self, per_minute: int, now: float) -> None:
        """Fill it for the time since it was last filled, at the rate that holds now."""
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / _MINUTE_SECONDS)
        self.per_minute, self.at = per_minute, now

    def wait_seconds(self, per_minute: int, amount: int) -> float:
        return max(0.0, (min(amount, per_minute) - self.level) * _MINUTE_SECONDS / per_minute)


class MemoryTokenBucketLimiter:
    """Counts of this process alone. `clock` tells seconds.

    No caller that used something within the last minute, or owes something, is forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()
        self._shared: dict[str, Bucket] = {}

    def _bucket(self, caller: str, kind: str, per_minute: int) -> Bucket:
        now = self._clock()
        bucket = self._buckets.get((caller, kind))
        if bucket is None:
            self._forget(now)
            if len(self._buckets) < _MAX_BUCKETS:
                bucket = self._buckets[caller, kind] = Bucket(per_minute, now)
            else:
                bucket = self._shared.setdefault(kind, Bucket(per_minute, now))
        bucket.fill(per_minute, now)
        return bucket

    def _forget(self, now: float) -> None:
        """Forgets those that are full again, of a few. They take turns, so that each is looked at."""
        for _ in range(min(_BUCKETS_CHECKED, len(self._buckets))):
            key, bucket = next(iter(self._buckets.items()))
            bucket.fill(bucket.per_minute, now)
            if bucket.level >= bucket.per_minute:
                del self._buckets[key]
            else:
                self._buckets.move_to_end(key)

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        bucket = self._bucket(caller, kind, per_minute)
        wait = 0.0 if owing else bucket.wait_seconds(per_minute, amount)
        if wait == 0.0:
            bucket.level -= amount
        return wait

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        bucket = self._buckets.get((caller, kind))
        if bucket is None and len(self._buckets) >= _MAX_BUCKETS:
            bucket = self._shared.get(kind)
        if bucket is None:
            return per_minute
        bucket.fill(per_minute, self._clock())
        return max(0, int(bucket.level))

    async def close(self) -> None:
        return None
