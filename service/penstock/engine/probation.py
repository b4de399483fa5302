"""Decide which runs may start together, and which of them may have killed an engine.

A run is unsettled until the engine has survived some steps with it. Runs start together. A suspect starts alone: no
unsettled run runs beside it, so that a death before it has settled is its own. Suspects and others take turns: after
each suspect, all other waiting runs start, and settle.

A run that had settled when an engine died has a note of its place: the number of tokens that it had given. If it killed
the engine, its next run does so at once (the cause is a place of the whole output) or at the same place. No run starts
while another one is near its place.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from penstock.types import Accountable, EngineChunk, EngineRequest

SETTLING_STEPS = 4
"""Chunks after which a run is settled: that of the prompt, and some with accepted and rejected drafts."""
SETTLING_SECONDS = 1.0
"""Seconds between two looks at the engine's steps, by which a run that is not alone settles too: its client may read
slowly."""
HOLD_SECONDS = 20.0
"""Seconds after a restart for which runs that had settled start one at a time, and for which starts are put off in all
because a run is near its place."""
_MARGIN_TOKENS = 2
"""Tokens by which the places of two deaths may differ: what an engine gave in its last steps is lost."""
_MAX_MARGIN_TOKENS = 16
_NEAR_STEPS = 2 * SETTLING_STEPS
"""Steps before a place in which no other run starts any more, so that it has settled by then; some for its prompt."""
_POLL_SECONDS = 0.02


@dataclass(eq=False, slots=True)
class Death:
    """Hold one death of an engine."""

    suspects: int = 0
    """Suspected runs that have not passed since."""
    counted_at: float | None = None
    """When it was counted as the engine's own; None while it is not."""
    is_explained: bool = False
    """Whether a run was convicted of it."""


@dataclass(eq=False, slots=True)
class Note:
    """Hold what is known of a run that was on an engine when it died."""

    place: int
    """Number of tokens that the run had given."""
    margin: int
    deaths: tuple[Death, ...]
    """Deaths that the run may have caused."""
    suspected: bool
    """Whether it was suspected at the last one: unsettled, or near its place."""
    settled: bool
    """Whether it had settled at the last one, so that only its place can be why."""
    rank: float
    """Its order among those that start alone; infinite for those that start after them, together."""
    who: Accountable | None
    until: float
    """Time of the monotonic clock at which it is forgotten."""
    run: Run | None = None
    """The run that it is about now."""
    answered: bool = False
    """Whether its run was answered, with less after the death than it had given before it."""

    @property
    def evidence(self) -> int:
        """Return how many of its deaths count against the run that it is about now.

        Another request of the caller that takes over the note of an answered one may meet a death at the same place by
        chance: one death is not held against it.
        """
        return len(self.deaths) - (self.answered and self.settled)


@dataclass(eq=False, slots=True)
class Run:
    """Hold one run of a request on one engine; `engine` is None until it has started."""

    request: EngineRequest
    alone: bool
    note: Note | None = None
    engine: Any = None
    chunks: int = 0
    tokens: int = 0
    widest: int = 1
    """Tokens of the largest chunk."""
    settled: bool = False
    passed: bool = False
    """Whether it has settled, and has gone on beyond its place."""
    blamed: bool = False
    """Whether it is suspected of the engine's death."""
    convicted: bool = False

    @property
    def candidate(self) -> str:
        """Return the part of the request id that all runs of a candidate share."""
        return self.request.request_id.rpartition("-")[0]

    @property
    def margin(self) -> int:
        """Return by how many tokens its place is uncertain."""
        return max(_MARGIN_TOKENS, min(self.widest, _MAX_MARGIN_TOKENS))

    def add(self, chunk: EngineChunk) -> None:
        """Count a chunk."""
        self.chunks += 1
        tokens = len(chunk.token_ids)
        self.tokens += tokens
        self.widest = max(self.widest, tokens)

    @property
    def is_suspect(self) -> bool:
        """Return whether a death of the engine now may be its doing."""
        note = self.note
        return not self.settled or (note is not None and abs(self.tokens - note.place) <= note.margin)

    @property
    def is_near(self) -> bool:
        """Return whether it is so near its place that a run which starts now would be unsettled there."""
        note = self.note
        near = _NEAR_STEPS * min(self.widest, _MAX_MARGIN_TOKENS)
        return note is not None and -note.margin <= note.place - self.tokens <= near + note.margin

    @property
    def had_settled(self) -> bool:
        """Return whether it was not suspected of the last death that it met."""
        return self.note is not None and not self.note.suspected

    @property
    def is_beyond(self) -> bool:
        """Return whether it has settled and is beyond its place."""
        return self.settled and (self.note is None or self.tokens > self.note.place + self.note.margin)

    @property
    def rank(self) -> float:
        """Return its order among those that start alone."""
        return self.note.rank if self.note is not None else -1.0


class Probation:
    """Order the starts of runs. Lives on one event loop."""

    def __init__(self) -> None:
        self._unsettled: set[Run] = set()
        self._suspects: list[tuple[Run, asyncio.Future[None]]] = []
        self._others: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._others_turn = False
        self._noted: set[Run] = set()
        self._is_open = True
        self._held_until = 0.0
        self._seconds_put_off = 0.0
        self._poll: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Let no run start until `open`: the engine is dead, and the order of its runs is not known yet."""
        self._is_open = False

    def open(self) -> None:
        """Let runs start."""
        self._is_open = True
        self._held_until = time.monotonic() + HOLD_SECONDS
        self._seconds_put_off = 0.0
        self._start_next()

    async def start_run(self, run: Run) -> None:
        """Wait until this run may start. Call `end_run` once it has settled, and `forget` once it has ended."""
        if self._may_begin(run):
            self._begin(run)
            return
        queue = self._suspects if run.alone else self._others
        waiting = (run, asyncio.get_running_loop().create_future())
        queue.append(waiting)
        self._start_next()
        try:
            await waiting[1]
        except BaseException:
            if waiting in queue:
                queue.remove(waiting)
            self.forget(run)
            raise

    def watch(self, run: Run) -> None:
        """Put off starts while this run is near its place."""
        if run.note is not None:
            self._noted.add(run)

    def meets_another(self, note: Note | None) -> bool:
        """Return whether a run with this note that starts now would be near its place when another one is near its own.

        A death there would not tell which of them was the cause.
        """
        return note is not None and any(_meet(note, run) for run in self._noted)

    def end_run(self, run: Run) -> None:
        """Let waiting runs start: this one has settled. Has no effect for a run that was ended before."""
        self._unsettled.discard(run)
        self._start_next()

    def forget(self, run: Run) -> None:
        """Let waiting runs start: this one has ended, or is beyond its place."""
        self._noted.discard(run)
        self.end_run(run)

    def _start_next(self) -> None:
        if not self._is_open or self._unsettled or not (self._suspects or self._others):
            return
        if self._is_near_a_place():
            self._look_again()
            return
        if self._suspects and not (self._others_turn and self._others):
            self._start_suspects()
            return
        self._others_turn = False
        while self._others:
            self._start_now(*self._others.popleft())

    def _start_suspects(self) -> None:
        """Start the first suspect, or all that start together."""
        first = min(self._suspects, key=lambda waiting: waiting[0].rank)
        together = [first]
        if first[0].rank == math.inf or (first[0].had_settled and time.monotonic() > self._held_until):
            together = [waiting for waiting in self._suspects if waiting[0].had_settled]
        elif self._seconds_put_off < HOLD_SECONDS and self.meets_another(first[0].note):
            self._look_again()
            return
        self._others_turn = True
        for waiting in together:
            self._suspects.remove(waiting)
            self._start_now(*waiting)

    def _is_near_a_place(self) -> bool:
        return self._seconds_put_off < HOLD_SECONDS and any(run.is_near for run in self._noted)

    def _look_again(self) -> None:
        if self._poll is None:
            began = time.monotonic()
            self._poll = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._looked, began)

    def _looked(self, began: float) -> None:
        self._poll = None
        self._seconds_put_off += time.monotonic() - began
        self._start_next()

    def _may_begin(self, run: Run) -> bool:
        if not self._is_open or self._suspects or self._is_near_a_place():
            return False
        if run.alone:
            return not self._unsettled
        return not any(other.alone for other in self._unsettled)

    def _begin(self, run: Run) -> None:
        self._unsettled.add(run)
        self.watch(run)

    def _start_now(self, run: Run, waiting: asyncio.Future[None]) -> None:
        if not waiting.done():
            self._begin(run)
            waiting.set_result(None)


def _meet(note: Note, other: Run) -> bool:
    if other.note is None or other.passed:
        return False
    apart = other.note.place - other.tokens - note.place
    return abs(apart) <= note.margin + other.note.margin + _MARGIN_TOKENS
