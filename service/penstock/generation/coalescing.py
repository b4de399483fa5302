"""Coalesce deltas of text and of tool-call arguments into fewer, larger ones, to save work per message.

A client may ask for it (`flush_interval`), and a server whose event loop is full or late does it by itself
(`EventLoopLagMonitor`). It happens before events get their sequence numbers: these have no gaps, and Resume replays
what was sent. The first delta of each thought and answer, the end of a thought and the end of the call are never held;
nothing is held while the engine's steps take longer than the interval.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import chain

from penstock import tasks
from penstock.types import Delta, Event, ToolCallArguments

Held = Delta | ToolCallArguments
"""Events that can be joined with later ones of their kind."""

_CHECK_SECONDS = 0.05
_IDLE_CHECK_SECONDS = 0.5  # While no call runs: twenty wake-ups per second cost half a percent of a core.
_SMOOTHING = 0.2  # Weight of the newest measurement.
_LATE_SECONDS = 0.05
# Shares of a core. A loop that is never idle may still run what is due within some milliseconds, because vLLM's queues
# merge the steps that it does not fetch in time. But what takes many turns of the loop, such as the start of a call,
# then takes seconds. Between the two shares the interval stays as it is.
_FULL, _EASY = 0.9, 0.7
_MIN_FLUSH_SECONDS = 0.02
_MAX_SHARED_SECONDS = 1.0  # Longest interval whose streams are sent together: longer ones wake up seldom anyway.
_GROWTH, _DECAY = 1.25, 0.95  # of the interval, at each measurement


class EventLoopLagMonitor:
    """Measure how late and how busy the event loop is, and how long deltas are held because of it.

    A loop that is full has more to write than it can: fewer, larger messages cost it less. `most_flush_seconds`
    0 disables that.
    """

    def __init__(self, most_flush_seconds: float) -> None:
        self._most_flush_seconds = most_flush_seconds
        self.seconds = 0.0
        """Lag in seconds, as a running mean."""
        self.busy_share = 0.0
        """Share of a core that its thread takes, as a running mean."""
        self.flush_seconds = 0.0
        """Seconds that deltas are held at present; 0 while the loop keeps up."""

    def record(self, late_seconds: float, busy_share: float) -> None:
        """Add one measurement: the lag, and the loop's share of a core since the last measurement."""
        self.seconds += _SMOOTHING * (late_seconds - self.seconds)
        self.busy_share += _SMOOTHING * (busy_share - self.busy_share)
        if self.seconds > _LATE_SECONDS or self.busy_share > _FULL:
            longer = max(_MIN_FLUSH_SECONDS, _GROWTH * self.flush_seconds)
            self.flush_seconds = min(self._most_flush_seconds, longer)
        elif self.busy_share < _EASY:
            shorter = _DECAY * self.flush_seconds
            self.flush_seconds = shorter if shorter >= _MIN_FLUSH_SECONDS else 0.0

    async def watch(self, is_busy: Callable[[], bool]) -> None:
        """Measure on the loop's own thread until cancelled, more often while `is_busy` returns True."""
        while True:
            seconds = _CHECK_SECONDS if is_busy() else _IDLE_CHECK_SECONDS
            began, cpu_seconds = time.monotonic(), time.thread_time()
            await asyncio.sleep(seconds)
            passed = time.monotonic() - began
            self.record(max(0.0, passed - seconds), (time.thread_time() - cpu_seconds) / passed)


async def coalesce_deltas(
    events: AsyncGenerator[Event, None], interval_seconds: Callable[[], float]
) -> AsyncGenerator[Event, None]:
    """Yield `events` with deltas held for at most the interval, which is read again for each delta.

    Deltas pass at once as long as the interval is 0 or shorter than the engine's steps. From then on they are read
    ahead, by a task of their own.
    """
    async with aclosing(events):
        buffer = _Buffer(interval_seconds)
        async for event in events:
            if isinstance(event, Held) and (seconds := buffer.hold_seconds(event)):
                buffer.hold(event, seconds)
                break
            yield event
        else:
            return
        reading = asyncio.create_task(buffer.read(events))
        try:
            over = False
            while not over:
                await buffer.ripe.wait()
                over = buffer.over  # Read before the events are taken: more may arrive while these are sent.
                for event in buffer.pop_all():
                    yield event
            await reading
        finally:
            await tasks.end(reading)


class _Buffer:
    """Hold deltas by candidate and kind; other events keep their place between them."""

    def __init__(self, interval_seconds: Callable[[], float]) -> None:
        self._interval_seconds = interval_seconds
        self._held: list[list[Held] | Event] = []
        self._open: dict[tuple[int, bool | int], list[Held]] = {}
        self._last_at: dict[tuple[int, bool | int], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.ripe = asyncio.Event()
        self.over = False

    async def read(self, events: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in events:
                self._put(event)
        finally:
            self.over = True
            self.ripe.set()

    def hold_seconds(self, delta: Held) -> float:
        """Return how long to hold a delta; 0 for the first of its kind, or if the next one would come too late."""
        interval = self._interval_seconds()
        if interval <= 0:
            return 0.0
        kind, now = _kind(delta), time.monotonic()
        before, self._last_at[kind] = self._last_at.get(kind), now
        return interval if before is not None and now - before < interval else 0.0

    def _put(self, event: Event) -> None:
        if isinstance(event, Held):
            self.hold(event, self.hold_seconds(event))
            return
        self._held.append(event)
        self._open.clear()
        self.ripe.set()

    def hold(self, delta: Held, seconds: float) -> None:
        kind = _kind(delta)
        if kind not in self._open:
            self._open[kind] = []
            self._held.append(self._open[kind])
        self._open[kind].append(delta)
        if seconds <= 0:
            self.ripe.set()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(send_time(loop.time(), seconds), self.ripe.set)

    def pop_all(self) -> list[Event]:
        """Return everything held, in order, and forget it."""
        held, self._held = self._held, []
        self._open.clear()
        self.ripe.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.over:
            self.ripe.set()
        return [_joined(entry) if isinstance(entry, list) else entry for entry in held]


def send_time(now: float, seconds: float) -> float:
    """Return when a delta that is held from `now` on is sent, at most `seconds` later.

    It is a multiple of `seconds`: all streams with one interval are sent at the same times, so that this process, and
    each that reads several of the streams, wakes up once for all of them.
    """
    return now + seconds if seconds > _MAX_SHARED_SECONDS else (math.floor(now / seconds) + 1) * seconds


def _kind(delta: Held) -> tuple[int, bool | int]:
    """Return what only deltas of the same text share: the candidate, and thought or answer or the number of a call."""
    # True equals 1 as a key: calls are told from thoughts by negative numbers.
    kind = delta.is_thought if isinstance(delta, Delta) else -1 - delta.call_index
    return delta.candidate_index, kind


def _joined(deltas: Sequence[Held]) -> Held:
    first = deltas[0]
    if len(deltas) == 1:
        return first
    tokens = sum(delta.token_count for delta in deltas)
    if isinstance(first, ToolCallArguments):
        fragment = "".join(delta.json_fragment for delta in deltas if isinstance(delta, ToolCallArguments))
        return ToolCallArguments(first.candidate_index, first.call_index, fragment, tokens)
    texts = [delta for delta in deltas if isinstance(delta, Delta)]
    return Delta(
        candidate_index=first.candidate_index,
        is_thought=first.is_thought,
        text="".join(delta.text for delta in texts),
        token_count=tokens,
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in texts)),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in texts)),
    )
