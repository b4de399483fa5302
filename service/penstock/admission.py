"""Lets calls in, up to a limit. The permit is an argument of the work, so the door cannot be skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from penstock.errors import Draining, Overloaded

# Without a measurement of how long calls take, a refused caller is asked to come back after this.
_RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Proof that a call was let in; held for as long as it runs."""

    number: int


class Admission:
    """Counts the calls under way. Not thread-safe: lives on the server's event loop."""

    def __init__(self, max_concurrent_calls: int) -> None:
        self._most = max_concurrent_calls
        self._entered = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.running_calls = 0
        self.draining = False

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Raises Draining or Overloaded instead of waiting: a caller told early can go elsewhere."""
        if self.draining:
            raise Draining("this server is going away")
        if self.running_calls >= self._most:
            raise Overloaded(
                f"{self.running_calls} calls are running, the most this server takes",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
                concurrent_calls=self.running_calls,
            )
        self._entered += 1
        self.running_calls += 1
        self._idle.clear()
        try:
            yield Permit(self._entered)
        finally:
            self.running_calls -= 1
            if not self.running_calls:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()
