"""Enforce the limits of callers, and report what is left of them at the end of each call.

requests per minute   counted by the interceptor, before the message is read
concurrent streams    }
tokens per minute     }  counted once the call is planned: the prompt is charged, the output as soon as it is known
cost per day          }  the worst-case cost is charged, and the unused part is refunded at the end
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
_LOST = "usage of a call could not be counted; its worst-case cost stays charged"
# A stream may end at any moment, so a client gains nothing by retrying more often than this.
_STREAM_RETRY_SECONDS = 1.0
_SETTLING_SECONDS = 5.0
# Seconds before each further attempt to settle a call where the counts could not be reached.
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# Number of settlements that may wait for another attempt; more are given up and stay charged at their worst case.
_MAX_RETRIES = 10_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """Describe what a call may use.

    Attributes:
        call: Id of the call, unique over all calls.
        sequences: Candidates of the call.
        prompt_tokens: Prompt tokens, which it uses in any case.
        worst_usd_ticks: Highest possible cost, in ticks of 1e-10 USD.
    """

    call: str
    sequences: int
    prompt_tokens: int
    worst_usd_ticks: int


Used = Callable[[], tuple[int, int]]
"""Returns what a call has used so far: tokens, with the prompt, and cost in ticks of 1e-10 USD."""


@dataclass(eq=False, slots=True)
class _Running:
    """Hold a running call and how many of its tokens were charged to its caller's bucket."""

    used: Used
    charged_tokens: int = 0


def utc_now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


class Quotas:
    """Enforce the limits of all callers. Lives on the event loop.

    Without `daily_budget` no caller may have a limit per day; the configuration ensures that. Where the counts cannot
    be reached, calls are refused with Overloaded.
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
        """Count one request of a caller.

        Raises:
            QuotaExceeded: The requests of this minute are used up.
            Overloaded: The counts cannot be reached.
        """
        await self._acquire(caller, "requests", caller.limits.requests_per_minute, 1)

    async def _acquire(self, caller: Principal, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        wait = await self._limiter.acquire(caller.id, kind, per_minute, amount, owing=False)
        if wait > 0:
            raise QuotaExceeded(
                f"{kind} per minute exceeded: {per_minute} are allowed; retry in {wait:.1f} s",
                caller=caller.id,
                quota=f"{kind}_per_minute",
                retry_after_seconds=wait,
                limit=per_minute,
            )

    @asynccontextmanager
    async def holding(self, caller: Principal, reservation: Reservation, used: Used) -> AsyncIterator[None]:
        """Reserve what a call may use while it runs, and settle what it did use at its end.

        Args:
            caller: The principal.
            reservation: What the call may use.
            used: Returns what it has used so far.

        Raises:
            QuotaExceeded: A limit of the caller is exceeded.
            Overloaded: The counts cannot be reached.
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
                f"concurrent stream limit exceeded: {running} of {most} in use, {sequences} requested",
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
                f"daily cost limit exceeded: this call may cost up to {_usd(reserved)} USD, and {_usd(left)} of "
                f"{_usd(most)} USD are left until {resets_at}; lower max_output_tokens, or wait",
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
        """Reserve to the end, even where the call is cancelled.

        Where the call is cancelled or the answer is lost, what may have been reserved is refunded. To settle what was
        never reserved changes nothing.
        """
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
        """Charge the prompt, and at the end the other tokens that the call used."""
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
        """Charge a prompt, after the tokens that the caller's other calls have generated since they were last counted.

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
        """Settle a call to the end, even where it is cancelled; retry for a minute where the counts cannot be reached.

        Where that fails, the call stays charged at its worst case, so that nobody gets anything for free.
        """
        try:
            await self._to_the_end(settle())
        except Overloaded:
            if len(self._counting) >= _MAX_RETRIES:
                log.error(_LOST)
                return
            self._keep(_try_again(settle))

    async def _to_the_end(self, counting: Coroutine[Any, Any, T]) -> T:
        """Await `counting`, which runs to its end even where the call is cancelled."""
        task = self._keep(counting)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The count ends before the call does. Bounded: the stores answer or fail within seconds.
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
            task.exception()  # The waiting call raises it; the exception of a cancelled call is dropped here.

    async def trailers(self, caller: Principal) -> Sequence[tuple[str, str]]:
        """Return the caller's limits and what is left of them as metadata; nothing for what is not limited."""
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
        """Wait up to five seconds until cancelled calls are settled, then release the stores.

        May be called again: a second signal drains anew.
        """
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
    """Format ticks as USD, exactly and without trailing zeros."""
    whole, part = divmod(ticks, TICKS_PER_USD)
    return f"{whole}.{part:010d}".rstrip("0").rstrip(".")
