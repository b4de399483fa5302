"""What a caller may still use, asked before anything is done for it and told at the end of each call.

requests per minute   at the border, before the message is read
streams at once       }
tokens per minute     }  when the call was planned: the prompt is taken, the output owed as soon as it is known
cost per day          }  the call's worst case is charged, and what it did not use given back at its end
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from penstock.callers.caller import Caller
from penstock.errors import Overloaded, QuotaExceeded
from penstock.quotas.days import Days
from penstock.quotas.minutes import MemoryMinutes, Minutes

log = logging.getLogger(__name__)
# A stream may end at any moment; who asks more often than this asks for nothing.
_STREAM_RETRY_SECONDS = 1.0
_SETTLING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a call will use: its prompt for sure, `worst_usd_ticks` at most."""

    call: str
    sequences: int
    prompt_tokens: int
    worst_usd_ticks: int


Used = Callable[[], tuple[int, int]]
"""What a call has used so far, whenever asked: tokens, prompt included, and cost in ticks."""


@dataclass(eq=False, slots=True)
class _Running:
    """A call that holds its claim, and how many of its tokens its caller's bucket was charged for."""

    used: Used
    charged_tokens: int = 0


def utc_now() -> datetime:
    return datetime.now(UTC)


class Quotas:
    """Lives on the event loop. Without `days` no caller may have a limit per day, which the configuration sees to.

    Counts that cannot be reached are told as Overloaded, and nothing is let in.
    """

    def __init__(
        self, minutes: Minutes | None = None, days: Days | None = None, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._minutes = minutes or MemoryMinutes()
        self._days = days
        self._now = now
        self._streams: Counter[str] = Counter()
        self._running: dict[str, set[_Running]] = {}
        self._closed = False
        self._none_held = asyncio.Event()
        self._none_held.set()

    async def count_request(self, caller: Caller) -> None:
        """Raises QuotaExceeded where a minute's requests are used up."""
        await self._take(caller, "requests", caller.limits.requests_per_minute, 1)

    async def _take(self, caller: Caller, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        wait = await self._minutes.take(caller.id, kind, per_minute, amount, owing=False)
        if wait > 0:
            raise QuotaExceeded(
                f"this caller may use {per_minute} {kind} per minute",
                caller=caller.id,
                quota=f"{kind}_per_minute",
                retry_after_seconds=wait,
                limit=per_minute,
            )

    @asynccontextmanager
    async def holding(self, caller: Caller, claim: Claim, used: Used) -> AsyncIterator[None]:
        """Holds what the call claims while it runs.

        Raises QuotaExceeded.
        """
        async with AsyncExitStack() as held:
            running = held.enter_context(self._runs(caller, used))
            held.enter_context(self._stream(caller, claim.sequences))
            await held.enter_async_context(self._cost(caller, claim, used))
            await self._charge_tokens(caller, claim.prompt_tokens)
            running.charged_tokens = claim.prompt_tokens
            held.push_async_callback(self._settle_tokens, caller, running)
            yield

    @contextmanager
    def _runs(self, caller: Caller, used: Used) -> Iterator[_Running]:
        running = _Running(used)
        self._running.setdefault(caller.id, set()).add(running)
        self._none_held.clear()
        try:
            yield running
        finally:
            own = self._running[caller.id]
            own.discard(running)
            if not own:
                del self._running[caller.id]
            if not self._running:
                self._none_held.set()

    @contextmanager
    def _stream(self, caller: Caller, sequences: int) -> Iterator[None]:
        most, running = caller.limits.concurrent_streams, self._streams[caller.id]
        if most is not None and running + sequences > most:
            raise QuotaExceeded(
                f"this caller may have {most} streams at once, {running} are there",
                caller=caller.id,
                quota="concurrent_streams",
                retry_after_seconds=_STREAM_RETRY_SECONDS,
                limit=most,
            )
        self._streams[caller.id] += sequences
        try:
            yield
        finally:
            self._streams[caller.id] -= sequences
            if not self._streams[caller.id]:
                del self._streams[caller.id]

    @asynccontextmanager
    async def _cost(self, caller: Caller, claim: Claim, used: Used) -> AsyncIterator[None]:
        most = caller.limits.usd_ticks_per_day
        if most is None or self._days is None:
            yield
            return
        now, reserved = self._now(), claim.worst_usd_ticks
        day = now.date().isoformat()
        if not await self._days.reserve(caller.id, day, claim.call, reserved, most):
            spent = await self._days.spent(caller.id, day)
            raise QuotaExceeded(
                f"this call may cost {reserved} ticks of 1e-10 USD, and {max(0, most - spent)} are left of today's "
                f"{most}: a smaller max_output_tokens may fit",
                caller=caller.id,
                quota="usd_per_day",
                retry_after_seconds=_until_tomorrow(now),
                limit=most,
                left=max(0, most - spent),
                needed=reserved,
            )
        try:
            yield
        finally:
            await _whatever_happens(self._days.settle(caller.id, day, claim.call, reserved, used()[1]))

    async def _charge_tokens(self, caller: Caller, prompt_tokens: int) -> None:
        """Lets a prompt in, after what the caller's other calls have made since anybody looked."""
        if caller.limits.tokens_per_minute is None:
            return
        made = 0
        for running in self._running.get(caller.id, ()):
            since = running.used()[0] - running.charged_tokens
            if running.charged_tokens and since > 0:
                running.charged_tokens += since
                made += since
        if made:
            await self._minutes.take(caller.id, "tokens", caller.limits.tokens_per_minute, made, owing=True)
        await self._take(caller, "tokens", caller.limits.tokens_per_minute, prompt_tokens)

    async def _settle_tokens(self, caller: Caller, running: _Running) -> None:
        """What was not charged yet; gives back the prompt of a call that never ran."""
        per_minute, left = caller.limits.tokens_per_minute, running.used()[0] - running.charged_tokens
        if per_minute is not None and left:
            await _whatever_happens(self._minutes.take(caller.id, "tokens", per_minute, left, owing=True))

    async def trailers(self, caller: Caller) -> Sequence[tuple[str, str]]:
        """Limits, and what is left of them, as metadata; nothing of what is not limited."""
        limits = caller.limits
        told: list[tuple[str, int, int]] = []
        if limits.concurrent_streams is not None:
            left = limits.concurrent_streams - self._streams[caller.id]
            told.append(("streams", limits.concurrent_streams, max(0, left)))
        for kind, most in (("requests", limits.requests_per_minute), ("tokens", limits.tokens_per_minute)):
            if most is not None:
                told.append((kind, most, await self._minutes.left(caller.id, kind, most)))
        if limits.usd_ticks_per_day is not None and self._days is not None:
            spent = await self._days.spent(caller.id, self._now().date().isoformat())
            told.append(("usd-ticks", limits.usd_ticks_per_day, max(0, limits.usd_ticks_per_day - spent)))
        return [
            (f"x-ratelimit-{what}-{name}", str(value))
            for name, most, left in told
            for what, value in (("limit", most), ("remaining", left))
        ]

    async def close(self) -> None:
        """Waits a moment for calls that are being cut, so that they are settled and not left in doubt. May be called
        again: a second signal drains anew."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLING_SECONDS):
                await self._none_held.wait()
        if self._closed:
            return
        self._closed = True
        await self._minutes.close()
        if self._days is not None:
            await self._days.close()


async def _whatever_happens(counting: Coroutine[Any, Any, object]) -> None:
    """Counts to the end even where the call is being cancelled. Where the counts cannot be reached, what was charged
    before stays charged: the caller pays the worst case, and nobody gets anything for nothing."""
    task = asyncio.ensure_future(counting)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
    except Overloaded:
        log.error("a call's usage could not be counted: its worst case stays charged")


def _until_tomorrow(now: datetime) -> float:
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time.min, UTC)
    return (tomorrow - now).total_seconds()
