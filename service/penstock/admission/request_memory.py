"""Limit the bytes of requests that are in memory at once, over all calls.

A request reserves the size of the largest message while it arrives, because gRPC's core tells the size only of a
complete message; then its own size, until its call ends. A request that finds no room waits, and callers take turns.
Where the room is held by requests that arrive slowly, the oldest of the caller with the most slow requests is evicted:
a request normally arrives within milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penstock.errors import Overloaded

_FAIR_SECONDS = 0.25
_RETRY_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class MemoryReservation:
    """Hold room for one request.

    Attributes:
        key: Caller that fairness is between.
        size: Bytes reserved.
        since: Start of the reservation, in seconds of time.monotonic().
        lost: Done once another request has taken the room.
    """

    key: str
    size: int
    since: float = field(default_factory=time.monotonic)
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RequestMemory:
    """Account for the bytes of requests. Not thread-safe: lives on the event loop.

    Args:
        budget_bytes: Bytes for all requests; at least one message of `message_bytes` is allowed.
        message_bytes: Size of the largest message.
    """

    def __init__(self, budget_bytes: int, message_bytes: int) -> None:
        self._budget_bytes = max(budget_bytes, message_bytes)
        self._message_bytes = message_bytes
        self._arriving: dict[MemoryReservation, None] = {}
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.held_bytes = 0

    @asynccontextmanager
    async def reserve(self, key: str, wait_seconds: float) -> AsyncIterator[MemoryReservation]:
        """Reserve room for the largest message; `arrived` reduces it to the message's size.

        Args:
            key: Caller that fairness is between.
            wait_seconds: Longest wait for room.

        Raises:
            Overloaded: There was no room within `wait_seconds`.
        """
        await self._acquire(key, wait_seconds)
        reservation = MemoryReservation(key, self._message_bytes)
        self._arriving[reservation] = None
        try:
            yield reservation
        finally:
            self._arriving.pop(reservation, None)
            self._give_back(reservation, reservation.size)

    def arrived(self, reservation: MemoryReservation, size: int) -> None:
        """Reduce a reservation to the size of the request, which has arrived completely."""
        self._arriving.pop(reservation, None)
        self._give_back(reservation, reservation.size - min(size, reservation.size))

    @property
    def has_room(self) -> bool:
        """Return whether the largest message fits."""
        return self.held_bytes + self._message_bytes <= self._budget_bytes

    def _give_back(self, reservation: MemoryReservation, size: int) -> None:
        reservation.size -= size
        self.held_bytes -= size
        self._wake()

    def _wake(self) -> None:
        """Give room to waiting requests, one caller after the other."""
        while self._waiting and self.has_room:
            key, own = next(iter(self._waiting.items()))
            own.popleft().set_result(None)
            self.held_bytes += self._message_bytes
            self._waiting.move_to_end(key)
            if not own:
                del self._waiting[key]

    async def _acquire(self, key: str, wait_seconds: float) -> None:
        """Return once room for the largest message has been added to `held_bytes`."""
        if self.has_room and not self._waiting:
            self.held_bytes += self._message_bytes
            return
        until, waiter = time.monotonic() + wait_seconds, asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(waiter)
        try:
            while not waiter.done():
                await asyncio.wait((waiter,), timeout=max(0.0, min(until - time.monotonic(), _FAIR_SECONDS)))
                if not waiter.done():
                    self._evict()
                    if time.monotonic() >= until:
                        raise self._overloaded()
        except BaseException:
            self._leave(key, waiter)
            raise

    def _leave(self, key: str, waiter: asyncio.Future[None]) -> None:
        if waiter.done():
            self.held_bytes -= self._message_bytes
            self._wake()
            return
        own = self._waiting[key]
        own.remove(waiter)
        if not own:
            del self._waiting[key]

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"request memory exceeded: {self.held_bytes} of {self._budget_bytes} bytes in use",
            resource="request_memory",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def _evict(self) -> None:
        """Free the space of one request that arrives slowly."""
        too_old = time.monotonic() - _FAIR_SECONDS
        slow = [one for one in self._arriving if one.since < too_old and not one.lost.done()]
        if slow:
            most = Counter(one.key for one in slow).most_common(1)[0][0]
            next(one for one in slow if one.key == most).lost.set_result(None)
