"""Limit the time that a client has for something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_PARTS = 4


class ClientTimer:
    """Call back once a client has had its time.

    Where the event loop stands still, because it is busy or because the process is stopped or starved, what the client
    has done meanwhile is learned of only afterwards. So the time has parts, of which a standstill uses up one at most.
    """

    def __init__(self, seconds: float, call_back: Callable[[], object]) -> None:
        """Start the timer in the running event loop."""
        self._part_seconds = seconds / _PARTS
        self._call_back = call_back
        self._left = _PARTS
        self._handle = self._wait()

    def cancel(self) -> None:
        """Never call back."""
        self._handle.cancel()

    def _wait(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._part_seconds, self._next)

    def _next(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._handle = self._wait()
        else:
            self._call_back()
