"""Send the calls: in open loops by the clock, in closed loops by callers that wait for their replies."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from penstock_bench.load import calls
from penstock_bench.load.arrivals import ScheduledCall
from penstock_bench.load.calls import Clock, Record
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.workload import Work, Workload, options_of
from penstock_client import AsyncClient, Message, Response, ToolCallStatus, ToolResult
from penstock_client.messages import MessageLike

_RETRY_SECONDS = 1.0
_WARM_CALLERS = 2
_MAX_TIMES = 5


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Lengths and settings of a run. `drain_seconds` is the longest time for running calls after its end."""

    seconds: float
    warm_up_seconds: float = 5.0
    drain_seconds: float = 60.0
    exact: bool = True
    temperature: float | None = None
    flush_interval_seconds: float | None = None
    resumable: bool = False
    seed: int = 0
    min_calls: int = 0
    """Number of calls that must end in the window: a closed loop continues for them, up to five times as long."""


@dataclass(slots=True)
class Live:
    """Counters for a progress line. Tokens are counted by whole second, as [thought, answer]."""

    sent: int = 0
    running: int = 0
    ended: int = 0
    by_outcome: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    window_thought_tokens: int = 0
    window_answer_tokens: int = 0


class Run:
    """One run of a load. However it ends, `records` has all calls; those of the warm-up have negative times.

    `end_seconds` is infinite until the end is decided.
    """

    def __init__(self, clients: Sequence[AsyncClient], prompts: Prompts, options: LoadOptions) -> None:
        self.records: list[Record] = []
        self.live = Live()
        self.clock = Clock(options.warm_up_seconds)
        self.end_seconds = options.seconds
        self._clients, self._prompts, self._options = clients, prompts, options
        self._rng = random.Random(options.seed)
        self._running: set[asyncio.Task[Record]] = set()
        self._bug: BaseException | None = None
        self._counted = 0
        self._enough = asyncio.Event()
        # Each run finds the prefix cache cold, even after a run with the same seed.
        self._cache_salt = secrets.token_hex(8)

    async def open_loop(self, arrivals: Iterable[ScheduledCall]) -> None:
        """Send each call at its time, without waiting for earlier ones."""
        try:
            for arrival in arrivals:
                messages = self._prompts.messages(arrival.work, self._rng)
                await self.clock.reach(arrival.at_seconds)
                task = asyncio.create_task(self._conversation(arrival.work, arrival.at_seconds, messages))
                self._running.add(task)
                task.add_done_callback(self._forget)
            await self.clock.reach(self.end_seconds)
            if self._running:
                await asyncio.wait(self._running, timeout=self._options.drain_seconds)
        finally:
            await self._give_up(self._running)
        if self._bug is not None:
            raise self._bug

    def _forget(self, task: asyncio.Task[Record]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()

    async def closed_loop(self, callers: int, workload: Workload) -> None:
        """Send calls from each caller one after the other."""
        options = self._options
        if options.min_calls:
            self.end_seconds = math.inf
        workers = {asyncio.create_task(self._caller(workload)) for _ in range(callers)}
        try:
            await self.clock.reach(options.seconds)
            if self.end_seconds == math.inf:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), (_MAX_TIMES - 1) * options.seconds)
                self.end_seconds = self.clock.now()
            await asyncio.wait(workers, timeout=options.drain_seconds)
        finally:
            await self._give_up(workers)

    async def replay(self, trace: Sequence[ScheduledCall], speed: float) -> None:
        """Send the trace's calls at `speed` times its rate, after a warm-up with its first calls."""
        self.end_seconds = trace[-1].at_seconds / speed
        warm = {asyncio.create_task(self._warm(trace, number)) for number in range(_WARM_CALLERS)}
        try:
            await asyncio.wait(warm)
        finally:
            await self._give_up(warm)
        await self.open_loop(ScheduledCall(one.at_seconds / speed, one.work) for one in trace)
        ends = [record.ended for record in self.records if record.ended is not None and record.intended >= 0]
        # Its window ends with its last call: a trace has no steady state to measure alone.
        self.end_seconds = max([self.end_seconds, *ends])

    async def _caller(self, workload: Workload) -> None:
        while (now := self.clock.now()) < self.end_seconds:
            work = workload.draw(self._rng)
            messages = self._prompts.messages(work, self._rng)
            record = await self._conversation(work, now, messages)
            if record.outcome == calls.REFUSED:
                await asyncio.sleep(record.retry_after or _RETRY_SECONDS)
            elif record.outcome == calls.FAILED:
                await asyncio.sleep(_RETRY_SECONDS)  # Do not call a service that is gone a thousand times a second.

    async def _warm(self, trace: Sequence[ScheduledCall], first: int) -> None:
        place = first
        while self.clock.now() < -_WARM_CALLERS / 10:
            work = trace[place % len(trace)].work
            place += _WARM_CALLERS
            await self._call(work, self.clock.now(), self._prompts.messages(work, self._rng))

    async def _conversation(self, work: Work, intended: float, messages: Sequence[MessageLike]) -> Record:
        """Make a call and the later ones of its conversation, until one does not end well or the window ends.

        Return the last one.
        """
        spoken = list(messages)
        record, response = await self._answered(work, intended, spoken, 0)
        for turn in range(1, work.calls):
            if record.outcome != calls.OK or not self._goes_on(work, turn, response, spoken):
                break
            if turn > work.tool_calls:
                await asyncio.sleep(work.pause_seconds)
            now = self.clock.now()
            if now >= self.end_seconds:
                break
            record, response = await self._answered(work, now, spoken, turn)
        return record

    def _goes_on(self, work: Work, turn: int, response: Response, spoken: list[MessageLike]) -> bool:
        """Add the reply and what comes after it: a tool's result, or the user's next message.

        Return False if the model did not ask for a tool, or not with a whole call.
        """
        if turn > work.tool_calls:
            answer = f"{response.thought}\n\n{response.answer}" if work.keep_thought else response.answer
            # The turn of a model without an answer is empty, which not every template accepts.
            spoken += [("assistant", answer or "."), ("user", self._prompts.next_message(work, self._rng))]
            return True
        asked = response.tool_calls
        if not asked or any(one.status is not ToolCallStatus.COMPLETE for one in asked):
            return False
        thought = response.thought if work.keep_thought else ""
        results = [ToolResult(one.id, self._prompts.tool_result(work, self._rng)) for one in asked]
        spoken += [Message.assistant(response.answer, thought=thought, tool_calls=asked), Message.tool(*results)]
        return True

    async def _call(self, work: Work, intended: float, messages: Sequence[MessageLike]) -> Record:
        return (await self._answered(work, intended, messages, 0))[0]

    async def _answered(
        self, work: Work, intended: float, messages: Sequence[MessageLike], turn: int
    ) -> tuple[Record, Response]:
        record = Record(work, intended, self.clock.now(), turn=turn)
        options = {
            **options_of(work, turn, exact=self._options.exact, temperature=self._options.temperature),
            "flush_interval_seconds": self._options.flush_interval_seconds,
            "resumable": self._options.resumable,
            "cache_salt": self._cache_salt,
        }
        self.records.append(record)
        client = self._clients[self.live.sent % len(self._clients)]
        self.live.sent += 1
        self.live.running += 1
        try:
            response = await calls.call(client, record, messages, options, self.clock, self._heard)
        finally:
            self.live.running -= 1
            self.live.ended += 1
            self.live.by_outcome[record.outcome] += 1
            if intended >= 0:
                self._counted += 1
                if self._counted >= self._options.min_calls:
                    self._enough.set()
        return record, response

    def _heard(self, when: float, tokens: int, is_thought: bool) -> None:
        self.live.tokens[int(when // 1)][0 if is_thought else 1] += tokens
        if 0 <= when < self.end_seconds:
            if is_thought:
                self.live.window_thought_tokens += tokens
            else:
                self.live.window_answer_tokens += tokens

    @staticmethod
    async def _give_up(tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel the running calls; their records stay unfinished."""
        ended = list(tasks)
        for task in ended:
            task.cancel()
        for task in ended:
            with suppress(asyncio.CancelledError):
                await task
