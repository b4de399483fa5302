"""Decide which runs may start together. A run is unsettled until the engine has survived some steps with it.

Runs start together. A suspect starts alone: no unsettled run runs beside it, so that a death before it has settled is
its own. Suspects and others take turns: after each suspect, all other waiting runs start, and settle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from penstock.types import EngineRequest

SETTLING_STEPS = 4
"""Chunks after which a run is settled: that of the prompt, and some with accepted and rejected drafts."""
SETTLING_SECONDS = 1.0
"""Seconds after its first chunk in which a run that is not alone settles too: its client may read slowly."""


@dataclass(eq=False, slots=True)
class Run:
    """Hold one run of a request on one engine; `engine` is None until it has started."""

    request: EngineRequest
    alone: bool
    engine: Any = None
    chunks: int = 0
    settled: bool = False
    blamed: bool = False
    """Whether the engine died before the run had settled."""
    convicted: bool = False

    @property
    def candidate(self) -> str:
        """Return the part of the request id that all runs of a candidate share."""
        return self.request.request_id.rpartition("-")[0]


class Probation:
    """Order the starts of runs. Lives on one event loop."""

    def __init__(self) -> None:
        self._unsettled: set[Run] = set()
        self._suspects: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._others: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._others_turn = False

    async def start_run(self, run: Run) -> None:
        """Wait until this run may start. Call `end_run` once it has settled or ended."""
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
        """Let waiting runs start. Has no effect for a run that was ended before."""
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
