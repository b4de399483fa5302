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
from functools import partial
from typing import Any, TypeVar

from penstock import tasks
from penstock.admission.quotas.days import DailyBudget
from penstock.admission.quotas.minutes import MemoryTokenBucketLimiter, TokenBucketLimiter
from penstock.auth.identity import Principal
from penstock.config.security import TICKS_PER_USD
from penstock.errors import Overloaded, QuotaExceeded

log = logging.getLogger(__name__)
T = TypeVar("T")
_LOST = "a call's usage could not be counted: its worst case stays charged"
# A stream may end at any moment; who asks more often than this asks for nothing.
_STREAM_RETRY_SECONDS = 1.0
_SETTLING_SECONDS = 5.0
# Seconds before each further try to settle a day's cost where the counts could not be reached.
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# Settlements that may wait for another try at once; more are given up, and stay charged at their worst case.
_MAX_RETRIES = 10_000


@dataclass(frozen=True, slots=True)
class Reservation:
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
        self,
        limiter: TokenBucketLimiter | None = None,
        daily_budget: DailyBudget | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._limiter = limiter or MemoryTokenBucketLimiter()
        self._daily_budget = daily_budget
        self._now = now
        self._streams: Counter[str] = Counter()
        self._running: dict[str, set[_Running]] = {}
        self._closed = False
        self._counting: set[asyncio.Task[Any]] = set()
        self._none_held = asyncio.Event()
        self._none_held.set()

    async def count_request(self, caller: Principal) -> None:
        """Raises QuotaExceeded where a minute's requests are used up."""
        await self._acquire(caller, "requests", caller.limits.requests_per_minute, 1)

    async def _acquire(self, caller: Principal, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        wait = await self._limiter.acquire(caller.id, kind, per_minute, amount, owing=False)
        if wait > 0:
            raise QuotaExceeded(
                f"this caller may use {per_minute} {kind} per minute",
                caller=caller.id,
                quota=f"{kind}_per_minute",
                retry_after_seconds=wait,
                limit=per_minute,
            )

    @asynccontextmanager
    async def holding(self, caller: Principal, reservation: Reservation, used: Used) -> AsyncIterator[None]:
        """Holds what the call claims while it runs.

        Raises QuotaExceeded.
        """
        async with AsyncExitStack() as held:
            running = held.enter_context(self._runs(caller, used))
            held.enter_context(self._stream(caller, reservation.sequences))
            await held.enter_async_context(self._cost(caller, reservation, used))
            await held.enter_async_context(self._tokens(caller, reservation.prompt_tokens, running))
            yield

    @contextmanager
    def _runs(self, caller: Principal, used: Used) -> Iterator[_Running]:
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
    def _stream(self, caller: Principal, sequences: int) -> Iterator[None]:
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
    async def _cost(self, caller: Principal, reservation: Reservation, used: Used) -> AsyncIterator[None]:
        most = caller.limits.usd_ticks_per_day
        if most is None or self._daily_budget is None:
            yield
            return
        now, reserved = self._now(), reservation.worst_usd_ticks
        day = now.date().isoformat()
        settle = partial(self._daily_budget.settle, caller.id, day, reservation.call, reserved)
        if not await self._reserve(
            self._daily_budget.reserve(caller.id, day, reservation.call, reserved, most), settle
        ):
            spent = await self._daily_budget.spent(caller.id, day)
            left, resets_at = max(0, most - spent), _tomorrow(now).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise QuotaExceeded(
                f"daily cost limit exceeded: this call may cost up to {_usd(reserved)} USD, and {_usd(left)} USD of "
                f"{_usd(most)} USD are left until {resets_at}; ask for fewer max_output_tokens, or wait",
                caller=caller.id,
                quota="usd_per_day",
                retry_after_seconds=_until_tomorrow(now),
                limit=most,
                left=left,
                needed=reserved,
                limit_usd=_usd(most),
                left_usd=_usd(left),
                needed_usd=_usd(reserved),
                resets_at=resets_at,
            )
        try:
            yield
        finally:
            await self._settle(lambda: settle(used()[1]))

    async def _reserve(
        self, reserving: Coroutine[Any, Any, bool], settle: Callable[[int], Coroutine[Any, Any, None]]
    ) -> bool:
        """Reserve to the end, whatever happens to the call: where it is cancelled, or the answer is lost, what may have
        been reserved is given back. Settling what was never reserved changes nothing."""
        try:
            return await self._to_the_end(reserving)
        except asyncio.CancelledError:
            await self._settle(lambda: settle(0))
            raise
        except Overloaded:
            self._keep(self._settle(lambda: settle(0)))
            raise

    @asynccontextmanager
    async def _tokens(self, caller: Principal, prompt_tokens: int, running: _Running) -> AsyncIterator[None]:
        """Charge the prompt, and at the end what else the call turned out to use."""
        try:
            await self._charge_tokens(caller, prompt_tokens, running)
            yield
        finally:
            per_minute, left = caller.limits.tokens_per_minute, running.used()[0] - running.charged_tokens
            if per_minute is not None and left:
                running.charged_tokens += left
                with _log_lost_usage():
                    await self._to_the_end(self._limiter.acquire(caller.id, "tokens", per_minute, left, owing=True))

    async def _charge_tokens(self, caller: Principal, prompt_tokens: int, running: _Running) -> None:
        """Let a prompt in, after what the caller's other calls have made since anybody looked.

        Raises QuotaExceeded. The charge is noted in `running` even where the call is cancelled meanwhile.
        """
        per_minute = caller.limits.tokens_per_minute
        if per_minute is None:
            return
        made = 0
        for other in self._running.get(caller.id, ()):
            since = other.used()[0] - other.charged_tokens
            if other.charged_tokens and since > 0:
                other.charged_tokens += since
                made += since
        if made:
            await self._to_the_end(self._limiter.acquire(caller.id, "tokens", per_minute, made, owing=True))

        async def charge() -> None:
            await self._acquire(caller, "tokens", per_minute, prompt_tokens)
            running.charged_tokens = prompt_tokens

        await self._to_the_end(charge())

    async def _settle(self, settle: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Settle to the end, whatever happens to the call; tried again for a minute where the counts are away.

        Where that does not help, what was charged stays charged: the caller pays the worst case, and nobody gets
        anything for nothing.
        """
        try:
            await self._to_the_end(settle())
        except Overloaded:
            if len(self._counting) >= _MAX_RETRIES:
                log.error(_LOST)
                return
            self._keep(_try_again(settle))

    async def _to_the_end(self, counting: Coroutine[Any, Any, T]) -> T:
        """Await `counting`, which goes on even where the call is cancelled, however often."""
        task = self._keep(counting)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Counted before the call is over. Bounded: the stores answer or fail within seconds.
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            raise

    def _keep(self, counting: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(counting)
        self._counting.add(task)
        task.add_done_callback(self._counted)
        return task

    def _counted(self, task: asyncio.Task[Any]) -> None:
        self._counting.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever waits for it raises it; one whose call was cancelled has nobody to tell.

    async def trailers(self, caller: Principal) -> Sequence[tuple[str, str]]:
        """Limits, and what is left of them, as metadata; nothing of what is not limited."""
        limits = caller.limits
        remaining: list[tuple[str, int, int]] = []
        if limits.concurrent_streams is not None:
            left = limits.concurrent_streams - self._streams[caller.id]
            remaining.append(("streams", limits.concurrent_streams, max(0, left)))
        for kind, most in (("requests", limits.requests_per_minute), ("tokens", limits.tokens_per_minute)):
            if most is not None:
                remaining.append((kind, most, await self._limiter.left(caller.id, kind, most)))
        if limits.usd_ticks_per_day is not None and self._daily_budget is not None:
            spent = await self._daily_budget.spent(caller.id, self._now().date().isoformat())
            remaining.append(("usd-ticks", limits.usd_ticks_per_day, max(0, limits.usd_ticks_per_day - spent)))
        return [
            (f"x-ratelimit-{what}-{name}", str(value))
            for name, most, left in remaining
            for what, value in (("limit", most), ("remaining", left))
        ]

    async def close(self) -> None:
        """Waits a moment for calls that are being cut, so that they are settled and not left in doubt. May be called
        again: a second signal drains anew."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLING_SECONDS):
                await self._none_held.wait()
                while self._counting:
                    await asyncio.wait(set(self._counting))
        if self._closed:
            return
        self._closed = True
        await tasks.end(*self._counting)
        await self._limiter.close()
        if self._daily_budget is not None:
            await self._daily_budget.close()


async def _try_again(settle: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with _log_lost_usage():
        for seconds in _RETRY_SECONDS:
            await asyncio.sleep(seconds)
            with suppress(Overloaded):
                await settle()
                return
        await settle()


@contextmanager
def _log_lost_usage() -> Iterator[None]:
    try:
        yield
    except Overloaded:
        log.error(_LOST)


def _tomorrow(now: datetime) -> datetime:
    return datetime.combine(now.date() + timedelta(days=1), time.min, UTC)


def _until_tomorrow(now: datetime) -> float:
    return (_tomorrow(now) - now).total_seconds()


def _usd(ticks: int) -> str:
    """Exact, without zeros at its end."""
    whole, part = divmod(ticks, TICKS_PER_USD)
    return f"{whole}.{part:010d}".rstrip("0").rstrip(".")
