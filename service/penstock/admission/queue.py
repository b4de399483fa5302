"""Admit calls: at once while there is capacity, else after waiting in a bounded queue, else not at all.

Capacity is counted in sequences (candidates), because that is what the engine runs concurrently. The queue is bounded
by calls and by tokens. Higher priorities go first; within a priority, callers take turns, however many calls each has
waiting. A full queue evicts the lowest priority first, then the newest call of the caller with the most waiting calls.
A call whose deadline passes in the queue is dropped and never reaches the engine.

The permit is an argument of the work, so that no work starts without it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penstock.config.schema import AdmissionSettings
from penstock.errors import DeadlinePassed, Draining, Overloaded, PenstockError
from penstock.types import Priority

# Number of completions that the pace is measured over: enough to be steady, few enough to follow changes of load.
_PACE_COMPLETIONS = 32
_MIN_RETRY_SECONDS = 0.1
# Each dispatch takes a millisecond or more, and streams often end together: other work must not wait for all of them.
_MAX_DISPATCHES_AT_ONCE = 4
_MAX_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """Describe the capacity that a call needs.

    Attributes:
        caller: Key that fairness is between.
        priority: Priority of the call.
        sequences: Candidates of the call.
        tokens: Prompt tokens and maximum output tokens of all candidates.
        deadline_monotonic: In seconds of time.monotonic(); None without a deadline.
        limit_key: Key that the start rate is counted by; empty for `caller`.
    """

    caller: str
    priority: Priority
    sequences: int
    tokens: int
    deadline_monotonic: float | None = None
    limit_key: str = ""


@dataclass(frozen=True, slots=True)
class Permit:
    """Prove that a call was admitted; held for as long as it runs.

    Attributes:
        waited_seconds: Time in the queue; 0 where there was capacity at once.
    """

    waited_seconds: float


@dataclass(eq=False, slots=True)
class _Waiting:
    request: AdmissionRequest
    turn: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Result: the sequences that it was admitted with. Capacity may have changed by the time it ends."""


class StartRate:
    """Limit the engine starts per caller and second: a client that starts and cancels costs the engine all the same.

    A second's worth may start at once. Callers that started nothing for a second are forgotten.
    """

    def __init__(self, most_per_second: float) -> None:
        self._most = max(1.0, most_per_second)
        self._per_second = most_per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens left and the time of that count, by key; the caller that started last comes last."""

    def acquire(self, key: str, starts: int) -> None:
        """Count `starts` of a caller. More starts than fit at once leave a debt.

        Raises:
            Overloaded: The rate is exceeded; carries the seconds until there is room.
        """
        now = time.monotonic()
        while self._buckets and self._left(next(iter(self._buckets)), now) >= self._most:
            self._buckets.popitem(last=False)
        left = self._left(key, now)
        self._buckets.pop(key, None)
        if left < min(starts, self._most):
            self._buckets[key] = left, now
            raise Overloaded(
                f"start rate limit exceeded: a caller may start {self._per_second:g} candidates per second",
                resource="starts",
                retry_after_seconds=max(_MIN_RETRY_SECONDS, (min(starts, self._most) - left) / self._per_second),
            )
        self._buckets[key] = left - starts, now

    def _left(self, key: str, now: float) -> float:
        left, at = self._buckets.get(key, (self._most, now))
        return min(self._most, left + (now - at) * self._per_second)


class Admission:
    """Decide which calls run now, which wait and which are refused. Not thread-safe: lives on the server's event loop.

    Args:
        settings: Limits of the queue and of starts.
        capacity: Returns the number of sequences that may run concurrently.
    """

    def __init__(self, settings: AdmissionSettings, capacity: Callable[[], int]) -> None:
        self._settings = settings
        self._capacity = capacity
        self._queues: dict[Priority, OrderedDict[str, deque[_Waiting]]] = {p: OrderedDict() for p in Priority}
        self._completions: deque[float] = deque(maxlen=_PACE_COMPLETIONS)
        self._starts = StartRate(settings.max_starts_per_second)
        self._idle = asyncio.Event()
        self._idle.set()
        self.running_calls = 0
        self.running_sequences = 0
        self.queued_calls = 0
        self.queued_tokens = 0
        self.draining = False

    def check_capacity(self, priority: Priority, caller: str) -> None:
        """Refuse a call that would be refused anyway, before any work is done for it.

        Raises:
            Draining: The server is shutting down.
            Overloaded: The queue is full and the call may not evict another one.
        """
        if self.draining:
            raise Draining("the server is draining and admits no calls; retry on another server")
        if not self.queued_calls and self.running_sequences < self._capacity():
            return
        if self._full(1, 0) and self._select_for_eviction(priority, caller) is None:
            raise self._overloaded()

    @asynccontextmanager
    async def permit(self, request: AdmissionRequest) -> AsyncIterator[Permit]:
        """Wait for capacity and hold it until the context ends.

        Raises:
            Draining: The server is shutting down.
            Overloaded: The queue is full, or the caller's start rate is exceeded.
            DeadlinePassed: The deadline passed in the queue.
        """
        began = time.monotonic()
        sequences, waited_seconds = min(request.sequences, self._capacity()), 0.0
        self.check_capacity(request.priority, request.caller)
        self._starts.acquire(request.limit_key or request.caller, sequences)
        self._idle.clear()
        try:
            if self.queued_calls or self.running_sequences + sequences > self._capacity():
                sequences = await self._wait(request)
                waited_seconds = time.monotonic() - began
            else:
                self.running_sequences += sequences
            self.running_calls += 1
            try:
                yield Permit(waited_seconds)
            finally:
                self.running_calls -= 1
                self.running_sequences -= sequences
                self._completions.append(time.monotonic())
                self._dispatch()
        finally:
            if not self.running_calls and not self.queued_calls:
                self._idle.set()

    async def _wait(self, request: AdmissionRequest) -> int:
        if self._full(1, request.tokens):
            evicted = self._select_for_eviction(request.priority, request.caller)
            if evicted is None:
                raise self._overloaded()
            self._remove(evicted)
            evicted.turn.set_exception(self._overloaded())
        waiting = _Waiting(request)
        self._queues[request.priority].setdefault(request.caller, deque()).append(waiting)
        self.queued_calls += 1
        self.queued_tokens += request.tokens
        left = None if request.deadline_monotonic is None else max(0.0, request.deadline_monotonic - time.monotonic())
        try:
            self._dispatch()
            return await asyncio.wait_for(asyncio.shield(waiting.turn), left)
        except TimeoutError:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                return (
                    waiting.turn.result()
                )  # Admitted and timed out at the same moment: the deadline of the work decides.
            raise DeadlinePassed("the deadline passed in the queue", queued_calls=self.queued_calls) from None
        except asyncio.CancelledError:
            if waiting.turn.done() and waiting.turn.exception() is None:
                self.running_sequences -= waiting.turn.result()
                self._dispatch()
            raise
        finally:
            if not waiting.turn.done():
                self._remove(waiting)
                waiting.turn.cancel()

    def _full(self, calls: int, tokens: int) -> bool:
        settings = self._settings
        if self.queued_calls + calls > settings.max_queued_calls:
            return True
        # An empty queue takes a call of any length: its length was checked against the context window already.
        return self.queued_calls > 0 and self.queued_tokens + tokens > settings.max_queued_tokens

    def _select_for_eviction(self, priority: Priority, caller: str) -> _Waiting | None:
        """Return the call that a new one may displace; None where there is none.

        Calls of a lower priority go first, then the newest call of the caller with the most waiting calls of the same
        priority.
        """
        for lowest in sorted(self._queues, key=lambda p: p.value):
            queues = self._queues[lowest]
            if lowest.value > priority.value or not queues:
                continue
            longest = max(queues.values(), key=len)
            if lowest.value < priority.value or len(longest) > len(queues.get(caller, ())) + 1:
                return longest[-1]
            return None
        return None

    def _dispatch(self) -> None:
        """Admit waiting calls while there is capacity: highest priority first, callers of a priority in turn.

        Dispatches a few at once and the others in the next iteration of the event loop.
        """
        turns = 0
        for priority in sorted(self._queues, key=lambda p: -p.value):
            queues = self._queues[priority]
            while queues:
                caller, waiting = next(iter(queues.items()))
                first = waiting[0]
                sequences = min(first.request.sequences, self._capacity())
                if self.running_sequences + sequences > self._capacity():
                    return
                if turns == _MAX_DISPATCHES_AT_ONCE:
                    asyncio.get_running_loop().call_soon(self._dispatch)
                    return
                turns += 1
                self._remove(first)
                if caller in queues:
                    queues.move_to_end(caller)
                self.running_sequences += sequences
                first.turn.set_result(sequences)

    def _remove(self, waiting: _Waiting) -> None:
        queues = self._queues[waiting.request.priority]
        own = queues[waiting.request.caller]
        own.remove(waiting)
        if not own:
            del queues[waiting.request.caller]
        self.queued_calls -= 1
        self.queued_tokens -= waiting.request.tokens

    def _overloaded(self) -> PenstockError:
        return Overloaded(
            f"queue limit exceeded: {self.queued_calls} of {self._settings.max_queued_calls} calls and "
            f"{self.queued_tokens} of {self._settings.max_queued_tokens} tokens wait, {self.running_calls} calls run",
            resource="queue",
            retry_after_seconds=self.retry_after_seconds(),
            running_calls=self.running_calls,
            queued_calls=self.queued_calls,
        )

    def retry_after_seconds(self) -> float:
        """Return the seconds after which the present queue will be admitted, at the pace of recent completions."""
        if len(self._completions) < 2:
            return 1.0
        span = time.monotonic() - self._completions[0]
        pace_seconds = span / len(self._completions)
        return min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, pace_seconds * (self.queued_calls + 1)))

    def drain(self) -> None:
        """Refuse new calls, and refuse those that wait."""
        self.draining = True
        for queues in self._queues.values():
            for waiting in [one for own in queues.values() for one in own]:
                self._remove(waiting)
                waiting.turn.set_exception(
                    Draining("the server is draining and admits no calls; retry on another server")
                )

    async def idle(self) -> None:
        """Wait until no call runs or waits."""
        await self._idle.wait()
