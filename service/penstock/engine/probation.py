"""Who may begin to run beside whom. A run is unsettled until the engine has made some steps with it and lived.

Runs begin side by side. A suspect begins alone: nothing that is unsettled runs beside it, so that a death before it has
settled is its own. Suspects and others take turns: after each suspect all that wait to begin do, and settle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from penstock.types import EngineRequest

SETTLING_STEPS = 4
"""Chunks after which a run is settled: the prompt's, and some with drafts that were accepted and that were not."""
SETTLING_SECONDS = 1.0
"""After its first chunk, a run that is not alone settles in this time too: its client may read slowly."""


@dataclass(eq=False, slots=True)
class Run:
    """One run of a request on one engine; `engine` is None until it has begun."""

    request: EngineRequest
    alone: bool
    engine: Any = None
    chunks: int = 0
    settled: bool = False
    blamed: bool = False
    """The engine died before it had settled."""
    convicted: bool = False

    @property
    def candidate(self) -> str:
        """Return what the runs of one candidate have in common."""
        return self.request.request_id.rpartition("-")[0]


class Probation:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._unsettled: set[Run] = set()
        self._suspects: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._others: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._others_turn = False

    async def start_run(self, run: Run) -> None:
        """Wait until this run may begin. Whoever enters must `end_run`, once it is settled or over."""
        if self._may_begin(run):
            self._unsettled.add(run)
            return
        queue = self._suspects if run.alone else self._others
        waiting = (run, asyncio.get_running_loop().create_future())
        queue.append(waiting)
        try:
            await waiting[1]
        except BaseException:
            if waiting in queue:
                queue.remove(waiting)
            self.end_run(run)
            raise

    def end_run(self, run: Run) -> None:
        """Make room for those that wait. Without effect for a run that has left."""
        self._unsettled.discard(run)
        if self._unsettled:
            return
        if self._suspects and not (self._others_turn and self._others):
            self._others_turn = True
            self._begin(*self._suspects.popleft())
            return
        self._others_turn = False
        while self._others:
            self._begin(*self._others.popleft())

    def _may_begin(self, run: Run) -> bool:
        if run.alone:
            return not self._unsettled
        return not self._suspects and not any(other.alone for other in self._unsettled)

    def _begin(self, run: Run, waiting: asyncio.Future[None]) -> None:
        if not waiting.done():
            self._unsettled.add(run)
            waiting.set_result(None)
