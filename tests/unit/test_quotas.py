"""Counting: buckets, days that survive, and what is held while a call runs. Redis counts as memory and SQLite do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from penstock.admission.quotas.days import DailyBudget, SqliteDailyBudget
from penstock.admission.quotas.minutes import MemoryTokenBucketLimiter, TokenBucketLimiter
from penstock.admission.quotas.quotas import Quotas, Reservation
from penstock.admission.quotas.store import quotas_of
from penstock.auth.identity import ANONYMOUS, AuthMethod, Principal
from penstock.auth.isolation import class_of
from penstock.auth.limits import CallerLimits, resolve_limits
from penstock.config.schema import Config
from penstock.config.security import Quota, QuotaSettings
from penstock.errors import CallerNotAllowed, ConfigError, Overloaded, QuotaExceeded
from penstock.types import Priority

from bench.machine import free_port
from tests.tooling import program

DAY = "2026-11-23"


def caller(name: str = "team-a", **limits: Any) -> Principal:
    return Principal(name, AuthMethod.KEY, frozenset({"generate"}), limits=CallerLimits(**limits))


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(params=["memory and SQLite", pytest.param("Redis", marks=pytest.mark.needs("redis-server"))])
async def counts(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[TokenBucketLimiter, DailyBudget]]:
    settings = QuotaSettings(daily_file=tmp_path / "quotas.db")
    if request.param == "Redis":
        settings = QuotaSettings(redis_url=request.getfixturevalue("redis_url"))
    quotas = quotas_of(settings)
    assert quotas._daily_budget is not None
    yield quotas._limiter, quotas._daily_budget
    await quotas.close()


async def test_a_minutes_worth_may_come_at_once_and_then_evenly() -> None:
    now = 0.0
    minutes = MemoryTokenBucketLimiter(lambda: now)

    async def acquire(amount: int = 1) -> float:
        return await minutes.acquire("a", "requests", 60, amount, owing=False)

    assert [await acquire() for _ in range(60)] == [0.0] * 60
    assert await acquire() == pytest.approx(1.0)
    now = 1.0
    assert await acquire() == 0.0
    assert await acquire() == pytest.approx(1.0)
    now = 3600.0
    assert await minutes.left("a", "requests", 60) == 60


async def test_however_many_callers_come_no_active_one_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.admission.quotas.minutes._MAX_BUCKETS", 30_000)
    now = 0.0
    minutes = MemoryTokenBucketLimiter(lambda: now)

    async def acquire(name: str, amount: int = 1, *, owing: bool = False) -> float:
        return await minutes.acquire(name, "requests", 2, amount, owing=owing)

    callers = [str(number) for number in range(30_000)]
    await acquire("debtor", 62, owing=True)
    for name in callers[1:]:
        assert await acquire(name, 2) == 0
    assert len(minutes._buckets) == 30_000
    assert all([await acquire(name) > 0 for name in callers[1:]]), "each has used its own minute"
    assert [await acquire("late 1"), await acquire("late 2"), await acquire("late 1") > 0] == [0, 0, True], (
        "they share a bucket"
    )
    assert await minutes.left("late 3", "requests", 2) == 0
    now = 120.0
    assert await acquire("late 4") == 0
    for number in range(5000):
        await acquire(f"new {number}", 2)
        assert await minutes.left(f"asks {number}", "requests", 2) == 2
    assert len(minutes._buckets) <= 5002, "idle ones are forgotten, and asking what is left makes none"
    assert await acquire("debtor") > 0, "debts are remembered"


async def test_what_is_owed_is_paid_before_anything_new(counts: tuple[TokenBucketLimiter, DailyBudget]) -> None:
    minutes, _ = counts
    name = f"owes-{time.time_ns()}"
    assert await minutes.acquire(name, "tokens", 6000, 500_000, owing=False) == 0.0, (
        "more than a minute's worth may come"
    )
    assert await minutes.left(name, "tokens", 6000) == 0
    assert await minutes.acquire(name, "tokens", 6000, 1, owing=False) == pytest.approx(4940, rel=0.01)
    await minutes.acquire(name, "tokens", 6000, -494_500, owing=True)
    assert 400 <= await minutes.left(name, "tokens", 6000) <= 700
    assert await minutes.acquire(name, "tokens", 6000, 100, owing=False) == 0.0
    assert await minutes.acquire(name, "requests", 6000, 6000, owing=False) == 0.0


async def test_a_days_spending_never_passes_its_limit_however_many_ask_at_once(
    counts: tuple[TokenBucketLimiter, DailyBudget],
) -> None:
    _, days = counts
    name = f"spends-{time.time_ns()}"
    got = await asyncio.gather(*(days.reserve(name, DAY, f"{name}{n}", 100, 1000) for n in range(40)))
    assert sum(got) == 10
    assert await days.spent(name, DAY) == 1000
    await days.settle(name, DAY, f"{name}{got.index(True)}", 100, 7)
    assert await days.spent(name, DAY) == 907
    assert await days.spent(name, "2026-11-24") == 0
    assert await days.spent("another", DAY) == 0


async def test_calls_in_flight_stay_charged_and_are_told_when_the_file_is_opened_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.db"
    days = SqliteDailyBudget(path)
    with pytest.raises(ConfigError, match="in use by another service"):
        SqliteDailyBudget(path)
    today = datetime.now(UTC).date().isoformat()
    await days.reserve("a", today, "1", 100, 1000)
    await days.reserve("a", today, "2", 100, 1000)
    await days.settle("a", today, "1", 100, 30)
    await days.close()  # as a kill would: what is in flight is not settled
    again = SqliteDailyBudget(path)
    assert "1 calls were in flight" in caplog.text
    assert await again.spent("a", today) == 130
    await again.settle("a", today, "2", 100, 0)
    assert await again.spent("a", today) == 130, "nobody settles a call of another life"
    await again.close()


async def test_a_file_that_cannot_be_written_lets_nobody_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        SqliteDailyBudget(tmp_path / "none" / "q.db")
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be seen as none" * 20)
    with pytest.raises(ConfigError, match="cannot be written"):
        SqliteDailyBudget(tmp_path / "text.db")
    days = SqliteDailyBudget(tmp_path / "q.db")
    days._database.close()
    with pytest.raises(Overloaded):
        await days.reserve("a", DAY, "1", 1, 1)
    await days.close()


async def test_a_redis_that_is_away_lets_nobody_in() -> None:
    quotas = quotas_of(QuotaSettings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(Overloaded, match="cannot be reached"):
        await quotas.count_request(caller(requests_per_minute=5))
    await quotas.count_request(caller())
    await quotas.close()


@pytest.mark.needs("redis-server")
async def test_replicas_share_what_is_counted_in_redis(redis_url: str) -> None:
    one, two = (quotas_of(QuotaSettings(redis_url=redis_url)) for _ in range(2))
    who = caller(f"shared-{time.time_ns()}", requests_per_minute=4, usd_ticks_per_day=1000)
    for quotas in (one, two, one, two):
        await quotas.count_request(who)
    for quotas in (one, two):
        with pytest.raises(QuotaExceeded):
            await quotas.count_request(who)
    async with one.holding(who, claim(worst=700), used(1, 5)):
        with pytest.raises(QuotaExceeded):
            async with two.holding(who, claim(worst=400), used(1, 5)):
                pass
    assert dict(await two.trailers(who))["x-ratelimit-remaining-usd-ticks"] == "995"
    for quotas in (one, two):
        await quotas.close()


def claim(prompt_tokens: int = 10, sequences: int = 1, worst: int = 100) -> Reservation:
    return Reservation(str(time.monotonic_ns()), sequences, prompt_tokens, worst)


def used(tokens: int, ticks: int = 0) -> Callable[[], tuple[int, int]]:
    return lambda: (tokens, ticks)


async def test_streams_are_counted_while_they_run_by_candidates() -> None:
    quotas, one = Quotas(), caller(concurrent_streams=3)
    async with quotas.holding(one, claim(sequences=2), used(10)):
        assert dict(await quotas.trailers(one)) == {
            "x-ratelimit-limit-streams": "3",
            "x-ratelimit-remaining-streams": "1",
        }
        with pytest.raises(QuotaExceeded) as caught:
            async with quotas.holding(one, claim(sequences=2), used(0)):
                pass
        assert caught.value.metadata == {"quota": "concurrent_streams", "limit": "3"}
        async with quotas.holding(caller("other", concurrent_streams=3), claim(sequences=3), used(0)):
            pass
    assert dict(await quotas.trailers(one))["x-ratelimit-remaining-streams"] == "3"


async def test_tokens_are_taken_as_they_turn_out_and_given_back_where_nothing_ran() -> None:
    now = 0.0
    quotas, one = Quotas(MemoryTokenBucketLimiter(lambda: now)), caller(tokens_per_minute=100)

    async def left() -> int:
        return int(dict(await quotas.trailers(one))["x-ratelimit-remaining-tokens"])

    async with quotas.holding(one, claim(40), used(65)):
        assert await left() == 60
    assert await left() == 35
    with pytest.raises(RuntimeError):
        async with quotas.holding(one, claim(20), used(0)):
            raise RuntimeError
    assert await left() == 35
    async with quotas.holding(one, claim(20), used(320)):
        pass
    with pytest.raises(QuotaExceeded) as caught:
        async with quotas.holding(one, claim(20), used(0)):
            pass
    assert caught.value.retry_after_seconds == pytest.approx((285 + 20) * 0.6)


async def test_what_a_running_call_makes_counts_before_it_ends_and_once() -> None:
    now = 0.0
    quotas, one = Quotas(MemoryTokenBucketLimiter(lambda: now)), caller(tokens_per_minute=1000)
    made = 0
    async with quotas.holding(one, claim(100), lambda: (made, 0)):
        made = 950
        with pytest.raises(QuotaExceeded):
            async with quotas.holding(one, claim(100), used(0)):
                pass
        made = 960
    assert dict(await quotas.trailers(one))["x-ratelimit-remaining-tokens"] == "40"


async def test_a_days_cost_is_reserved_at_its_worst_and_settled_as_it_was(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 23, 23, 59, 30, tzinfo=UTC)
    quotas = Quotas(daily_budget=SqliteDailyBudget(tmp_path / "q.db"), now=lambda: moment)
    one = caller(usd_ticks_per_day=250)

    async def left() -> int:
        return int(dict(await quotas.trailers(one))["x-ratelimit-remaining-usd-ticks"])

    async with quotas.holding(one, claim(worst=200), used(10, 30)):
        assert await left() == 50
        with pytest.raises(QuotaExceeded) as caught:
            async with quotas.holding(one, claim(worst=51), used(0)):
                pass
        assert caught.value.retry_after_seconds == pytest.approx(30)
        assert caught.value.metadata["left"] == "50"
        moment = datetime(2026, 11, 24, tzinfo=UTC)
        assert await left() == 250
    moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    assert await left() == 220, "it is settled on the day that it began"
    task = asyncio.create_task(_hold(quotas, one))
    async with asyncio.timeout(60):
        while await left() == 220:  # noqa: ASYNC110 - the store has no event
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left() == 205
    await quotas.close()


class CancelledAt:
    """Awaits a coroutine in a task that is cancelled `times` times, from the coroutine's `step`-th suspension on."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], step: int, times: int) -> None:
        self._coroutine, self._step, self._times = coroutine, step, times
        self.was_cancelled = False

    def __await__(self) -> Generator[Any, Any, None]:
        task, loop, sent, suspensions = asyncio.current_task(), asyncio.get_running_loop(), None, 0
        assert task is not None
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration:
                return
            suspensions += 1
            if self._step <= suspensions < self._step + self._times:
                self.was_cancelled = True
                loop.call_soon(task.cancel)
            try:
                yield waits_for
                step = lambda: self._coroutine.send(sent)  # noqa: E731
            except BaseException as error:
                thrown = error
                step = lambda: self._coroutine.throw(thrown)  # noqa: E731, B023


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("has_made", [0, 25])
async def test_a_call_cancelled_at_any_step_is_charged_what_it_used(
    counts: tuple[TokenBucketLimiter, DailyBudget], times: int, has_made: int
) -> None:
    quotas = Quotas(*counts)
    for step in range(1, 60):
        one = caller(f"cut-{time.time_ns()}", concurrent_streams=9, tokens_per_minute=60, usd_ticks_per_day=1000)
        used_tokens_and_ticks = [0, 0]
        driven = CancelledAt(_both(quotas, one, 1 + has_made, used_tokens_and_ticks), step, times)
        await asyncio.gather(asyncio.create_task(_awaited(driven)), return_exceptions=True)
        tokens, ticks = used_tokens_and_ticks
        left = dict(await quotas.trailers(one))
        told = f"step {step}: {left}"
        assert left["x-ratelimit-remaining-streams"] == "9", told
        assert left["x-ratelimit-remaining-usd-ticks"] == str(1000 - ticks), told
        tokens_left = 60 - 1 - has_made - tokens
        assert tokens_left <= int(left["x-ratelimit-remaining-tokens"]) <= tokens_left + 20, f"{told}; it fills again"
        if not driven.was_cancelled:
            break
    else:
        pytest.fail("the call never ran through")
    assert tokens
    assert not quotas._counting


async def _both(quotas: Quotas, one: Principal, other_tokens: int, tokens_and_ticks: list[int]) -> None:
    """A call beside another one of the same caller, whose tokens are charged when the second one comes."""
    other = replace(one, limits=CallerLimits(tokens_per_minute=60))
    async with quotas.holding(other, claim(1), used(other_tokens)):  # noqa: SIM117
        async with quotas.holding(one, claim(10, worst=700), lambda: (tokens_and_ticks[0], tokens_and_ticks[1])):
            tokens_and_ticks[:] = 22, 20
            await asyncio.sleep(0)


async def _awaited(driven: CancelledAt) -> None:
    await driven


async def test_a_reservation_or_settlement_that_comes_twice_or_late_counts_once(
    counts: tuple[TokenBucketLimiter, DailyBudget],
) -> None:
    _, days = counts
    name = f"twice-{time.time_ns()}"
    await days.reserve(name, DAY, "a", 100, 1000)
    for _ in range(2):
        await days.settle(name, DAY, "a", 100, 30)
    await days.settle(name, DAY, "never reserved", 100, 0)
    assert await days.spent(name, DAY) == 30


async def test_a_reservation_whose_answer_was_lost_is_given_back(redis_url: str) -> None:
    quotas = quotas_of(QuotaSettings(redis_url=redis_url))
    days = quotas._daily_budget
    assert days is not None
    reserve, who = days.reserve, caller(f"lost-{time.time_ns()}", usd_ticks_per_day=1000)

    async def loses_the_answer(*arguments: Any) -> bool:
        await reserve(*arguments)
        raise Overloaded("no answer", resource="quota_counts", retry_after_seconds=1.0)

    days.reserve = loses_the_answer  # type: ignore[method-assign]
    with pytest.raises(Overloaded):
        async with quotas.holding(who, claim(worst=700), used(0)):
            pass
    await asyncio.wait(set(quotas._counting))
    assert await days.spent(who.id, datetime.now(UTC).date().isoformat()) == 0
    await days.settle(who.id, DAY, "late", 50, 0)
    assert not await reserve(who.id, DAY, "late", 50, 1000), "it was settled before it came"
    assert await days.spent(who.id, DAY) == 0
    await quotas.close()


async def test_a_settlement_is_tried_again_where_the_counts_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.admission.quotas.quotas._RETRY_SECONDS", (0.0,) * 4)
    days = SqliteDailyBudget(tmp_path / "q.db")
    settle, failures = days.settle, 3

    async def settle_later(*arguments: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Overloaded("away", resource="quota_counts", retry_after_seconds=1.0)
        await settle(*arguments)

    days.settle = settle_later  # type: ignore[method-assign]
    quotas, one = Quotas(daily_budget=days), caller(usd_ticks_per_day=1000)
    async with quotas.holding(one, claim(worst=700), used(3, 5)):
        pass
    await asyncio.wait(set(quotas._counting))
    assert dict(await quotas.trailers(one))["x-ratelimit-remaining-usd-ticks"] == "995"
    await quotas.close()


async def _hold(quotas: Quotas, one: Principal) -> None:
    async with quotas.holding(one, claim(worst=100), used(10, 15)):
        await asyncio.sleep(60)


def test_each_limit_is_the_callers_own_or_the_default() -> None:
    default = Quota.model_validate({"tokens_per_minute": 10, "usd_per_day": "0.5", "max_priority": "normal"})
    own = Quota.model_validate({"tokens_per_minute": 20, "max_priority": "low"})
    assert resolve_limits(own, default) == CallerLimits(None, None, 20, 5_000_000_000, Priority.LOW)
    assert resolve_limits(None, default).max_priority is Priority.NORMAL
    assert resolve_limits(None, Quota()) == CallerLimits()


def test_a_class_above_the_highest_is_refused_and_none_asked_for_fits() -> None:
    low = caller(max_priority=Priority.LOW)
    assert class_of(None, low) is Priority.LOW
    assert class_of(None, ANONYMOUS) is Priority.NORMAL
    assert class_of(Priority.HIGH, ANONYMOUS) is Priority.HIGH
    with pytest.raises(CallerNotAllowed, match="at most LOW is"):
        class_of(Priority.NORMAL, low)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quotas": {"tokens_per_minute": 5}}, "need authentication"),
        ({"auth": {"callers_file": "c.toml"}}, "need authentication"),
        ({"auth": {"keys_file": "k"}, "quotas": {"usd_per_day": 5}}, "needs quotas.daily_file"),
        ({"auth": {"keys_file": "k"}, "quotas": {"daily_file": "d"}, "engine": {"model": "m"}}, "pricing.tiers"),
        ({"quotas": {"redis_url": "redis://:secret@h/0"}}, "must not contain a password"),
        ({"quotas": {"redis_url": "http://h/0"}}, "redis://"),
        ({"quotas": {"redis_url": "redis://h/0", "daily_file": "d"}}, "must not both be set"),
        ({"quotas": {"usd_per_day": "0.00000000001"}}, "multiple of 1e-10"),
    ],
)
def test_settings_that_could_not_be_kept_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(settings)
