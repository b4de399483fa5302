"""Bounds the bytes of requests that are in memory at once, over all calls.

A request reserves the largest message while it arrives, because gRPC's core tells its size only once it is whole; then
its own size, until its call ends. Who finds no room waits, and callers take turns. Where the room is held by requests
that arrive slowly, the oldest one of the caller with the most gives way: one that arrives normally takes milliseconds.
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
    """Room for one request. `lost` is done once another request has taken it."""

    key: str
    size: int
    since: float = field(default_factory=time.monotonic)
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RequestMemory:
    """Not thread-safe: lives on the event loop. `budget_bytes` holds at least one message of `message_bytes`."""

    def __init__(self, budget_bytes: int, message_bytes: int) -> None:
        self._budget_bytes = max(budget_bytes, message_bytes)
        self._message_bytes = message_bytes
        self._arriving: dict[MemoryReservation, None] = {}
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.held_bytes = 0

    @asynccontextmanager
    async def reserve(self, key: str, wait_seconds: float) -> AsyncIterator[MemoryReservation]:
        """Hold room for the largest message; `arrived` makes it less. `key` is whoever fairness is between.

        Raises Overloaded where there is no room within `wait_seconds`.
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
        """Keep only what the request takes: it is whole now."""
        self._arriving.pop(reservation, None)
        self._give_back(reservation, reservation.size - min(size, reservation.size))

    @property
    def has_room(self) -> bool:
        return self.held_bytes + self._message_bytes <= self._budget_bytes

    def _give_back(self, reservation: MemoryReservation, size: int) -> None:
        reservation.size -= size
        self.held_bytes -= size
        self._wake()

    def _wake(self) -> None:
        """Give room to those who wait, one caller after the other."""
        while self._waiting and self.has_room:
            key, own = next(iter(self._waiting.items()))
            own.popleft().set_result(None)
            self.held_bytes += self._message_bytes
            self._waiting.move_to_end(key)
            if not own:
                del self._waiting[key]

    async def _acquire(self, key: str, wait_seconds: float) -> None:
        """Return once `held_bytes` has room for the largest message in it."""
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
            f"the requests in memory hold {self.held_bytes} of {self._budget_bytes} bytes",
            resource="request_memory",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def _evict(self) -> None:
        """Take the room of one request that arrives slowly."""
        too_old = time.monotonic() - _FAIR_SECONDS
        slow = [one for one in self._arriving if one.since < too_old and not one.lost.done()]
        if slow:
            most = Counter(one.key for one in slow).most_common(1)[0][0]
            next(one for one in slow if one.key == most).lost.set_result(None)
