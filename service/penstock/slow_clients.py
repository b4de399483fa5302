"""Clients that take too long: to send what they ask, or to take what they are sent."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

log = logging.getLogger(__name__)
_MOST_UNSENT = 1024


class Held:
    """Calls that wait for their client, each for a time. Who waits too long is cut off."""

    def __init__(self, most_seconds: float, fault: str) -> None:
        self._most_seconds = most_seconds
        self._fault = fault
        self._held: dict[asyncio.Task[Any], float] = {}

    def hold(self, task: asyncio.Task[Any]) -> None:
        self._held[task] = time.monotonic()

    def release(self, task: asyncio.Task[Any]) -> None:
        self._held.pop(task, None)

    async def watch(self) -> None:
        """Runs as long as the server does."""
        while True:
            await asyncio.sleep(min(1.0, self._most_seconds / 4))
            too_old = time.monotonic() - self._most_seconds
            late = [task for task, since in self._held.items() if since < too_old]
            if late:
                log.warning("%d clients %s for %.0f s: cut off", len(late), self._fault, self._most_seconds)
                self._cut(late)

    def _cut(self, handlers: Sequence[asyncio.Task[Any]]) -> None:
        calls = _calls()
        for handler in handlers:
            self.release(handler)
            handler.cancel()
            if handler in calls:
                calls[handler].cancel()


class SlowReaders(Held):
    """gRPC's flow control holds a stream at its `yield`, which bounds its memory; this bounds its time."""

    def __init__(self, most_seconds: float) -> None:
        super().__init__(most_seconds, "took no message")


class SlowSenders(Held):
    """gRPC waits for a request without end, and keeps what it has of it. This bounds the time, and how many are kept:
    beyond that the oldest give way, which a request on its way for milliseconds never is."""

    def __init__(self, most_seconds: float) -> None:
        super().__init__(most_seconds, "sent no whole request")

    def hold(self, task: asyncio.Task[Any]) -> None:
        if len(self._held) >= _MOST_UNSENT:
            self._cut(list(islice(self._held, _MOST_UNSENT // 8)))
        super().hold(task)
        task.add_done_callback(self.release)

    def arrived(self) -> None:
        """The current task's request is here."""
        task = asyncio.current_task()
        if task is not None:
            self.release(task)


def _calls() -> dict[asyncio.Task[Any], asyncio.Task[Any]]:
    """By handler: gRPC's own task that waits for the end of the handler's call.

    A handler that is cancelled says nothing to its client, and where the client's window is closed could not: the call
    stays, with what was to be sent, as long as its connection. Once nothing waits for its end either, gRPC lets go of
    it and resets its stream. grpc.aio has no other way (1.85); tests/hostile/ holds this one.
    """
    calls = {}
    for task in asyncio.all_tasks():
        if task.get_name() == "rpc_task":
            for reached in gc.get_referents(*gc.get_referents(task.get_coro())):
                if isinstance(reached, asyncio.Task) and reached is not task:
                    calls[reached] = task
    return calls
