"""Limit the use per minute with token buckets that hold a minute's worth.

More may be taken than a bucket holds: the output of a call is known only after it was generated, so it leaves a debt,
and nothing new is admitted until the debt is paid. Over time no more than the rate is used.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

# Number of buckets, of about 350 bytes each. A bucket that is full again holds no information and is forgotten. While
# this many are in use, callers without a bucket share one per kind.
_MAX_BUCKETS = 100_000
# Number of buckets that are checked for each new one: more than one, so that their number falls again.
_BUCKETS_CHECKED = 8
_MINUTE_SECONDS = 60.0


class TokenBucketLimiter(Protocol):
    """Count use per caller and kind (`requests`, `tokens`)."""

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        """Take `amount` from a caller's bucket.

        Args:
            caller: Id of the caller.
            kind: `requests` or `tokens`.
            per_minute: Rate at which the bucket fills, and its size.
            amount: What to take. An amount above the bucket's size waits only for a full bucket.
            owing: Take it in any case, and leave a debt where the bucket holds less.

        Returns:
            0 where it was taken; else nothing was taken, and the result is the number of seconds to wait.
        """
        ...

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        """Return what may be taken now; at least 0."""
        ...

    async def close(self) -> None:
        """Release the store."""
        ...


class Bucket:
    """Hold one token bucket; a negative `level` is a debt."""

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: int, at: float) -> None:
        self.level: float = per_minute
        self.per_minute, self.at = per_minute, at

    def fill(self, per_minute: int, now: float) -> None:
        """Fill the bucket for the time since it was last filled, at the present rate."""
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / _MINUTE_SECONDS)
        self.per_minute, self.at = per_minute, now

    def wait_seconds(self, per_minute: int, amount: int) -> float:
        """Return the seconds until `amount`, or a full bucket, is there."""
        return max(0.0, (min(amount, per_minute) - self.level) * _MINUTE_SECONDS / per_minute)


class MemoryTokenBucketLimiter:
    """Keep the buckets of this process in memory. `clock` returns seconds.

    A caller that used something within the last minute, or has a debt, is never forgotten.
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
        """Forget full buckets among the next few. All buckets take turns, so that each is checked."""
        for _ in range(min(_BUCKETS_CHECKED, len(self._buckets))):
            key, bucket = next(iter(self._buckets.items()))
            bucket.fill(bucket.per_minute, now)
            if bucket.level >= bucket.per_minute:
                del self._buckets[key]
            else:
                self._buckets.move_to_end(key)

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        """Take `amount` from a caller's bucket; see `TokenBucketLimiter.acquire`."""
        bucket = self._bucket(caller, kind, per_minute)
        wait = 0.0 if owing else bucket.wait_seconds(per_minute, amount)
        if wait == 0.0:
            bucket.level -= amount
        return wait

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        """Return what may be taken now; at least 0."""
        bucket = self._buckets.get((caller, kind))
        if bucket is None and len(self._buckets) >= _MAX_BUCKETS:
            bucket = self._shared.get(kind)
        if bucket is None:
            return per_minute
        bucket.fill(per_minute, self._clock())
        return max(0, int(bucket.level))

    async def close(self) -> None:
        """Do nothing: the buckets end with the process."""
