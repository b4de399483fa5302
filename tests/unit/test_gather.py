"""Deltas gathered: what is held, for how long, and what never is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import pytest
from penstock.errors import EngineDown
from penstock.generation.coalescing import EventLoopLagMonitor, coalesce_deltas, send_time
from penstock.types import Delta, Event, ThinkingOutcome, ThoughtEnded

ENDED = ThoughtEnded(0, ThinkingOutcome.NATURAL_END, 3)


def thought(text: str, candidate: int = 0) -> Delta:
    return Delta(candidate, True, text, 1, (ord(text),))


def answer(text: str, candidate: int = 0) -> Delta:
    return Delta(candidate, False, text, 1, (ord(text),))


async def stream(
    events: Iterable[Event | float | Exception], closed: list[bool] | None = None
) -> AsyncGenerator[Event, None]:
    """A float is a pause in seconds."""
    try:
        for event in events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, float):
                await asyncio.sleep(event)
            else:
                await asyncio.sleep(0)
                yield event
    finally:
        if closed is not None:
            closed.append(True)


async def taken(events: Iterable[Event | float | Exception], interval: float) -> list[Event]:
    return [event async for event in coalesce_deltas(stream(events), lambda: interval)]


def shape(events: Iterable[Event]) -> list[str]:
    return [event.text if isinstance(event, Delta) else "|" for event in events]


async def test_without_an_interval_everything_passes() -> None:
    events = [thought("a"), thought("b"), ENDED, answer("c"), answer("d")]
    assert await taken(events, 0.0) == events


async def test_firsts_and_ends_are_never_held() -> None:
    events = [*map(thought, "abc"), ENDED, *map(answer, "defg")]
    seen = await taken(events, 60.0)
    assert shape(seen) == ["a", "bc", "|", "d", "efg"]
    last = seen[-1]
    assert isinstance(last, Delta)
    assert (last.token_count, last.token_ids) == (3, (101, 102, 103))


async def test_nothing_is_held_longer_than_the_interval() -> None:
    """The source goes on only after what it had sent has arrived."""
    arrived, both = [], asyncio.Event()

    async def source() -> AsyncGenerator[Event, None]:
        for text in "abc":
            yield thought(text)
        async with asyncio.timeout(60):
            await both.wait()
        yield thought("d")

    async for event in coalesce_deltas(source(), lambda: 0.1):
        assert isinstance(event, Delta)
        arrived.append(event.text)
        if event.text == "bc":
            both.set()
    assert arrived == ["a", "bc", "d"]


async def test_steps_slower_than_the_interval_are_sent_as_they_come() -> None:
    """Each arrives by itself: "c" would be sent with "d", which follows at once, if it were held."""
    seen = await taken([answer("a"), 0.2, answer("b"), 0.2, answer("c"), answer("d")], 0.15)
    assert shape(seen) == ["a", "b", "c", "d"]


async def test_candidates_are_gathered_apart() -> None:
    events = [thought("a"), thought("A", 1), thought("b"), thought("B", 1), thought("c"), thought("C", 1)]
    seen = await taken(events, 60.0)
    assert shape(seen) == ["a", "A", "bc", "BC"] or shape(seen) == ["a", "b", "A", "c", "BC"]
    for candidate in (0, 1):
        own = [event for event in seen if isinstance(event, Delta) and event.candidate_index == candidate]
        assert "".join(event.text for event in own) == ("abc", "ABC")[candidate]


async def test_a_failure_comes_after_what_was_held() -> None:
    seen: list[Event] = []

    async def read() -> None:
        async for event in coalesce_deltas(stream([*map(thought, "abc"), EngineDown("gone")]), lambda: 60.0):
            seen.append(event)

    with pytest.raises(EngineDown):
        await read()
    assert shape(seen) == ["a", "bc"]


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1e-6, 0.02, 60.0])
@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_a_slow_reader_loses_nothing(interval: float, pause: float) -> None:
    """The source ends while the reader is busy with any of the events."""
    events = [*map(thought, "abc"), ENDED, *map(answer, "defg"), ENDED]
    seen = []
    async for event in coalesce_deltas(stream(events), lambda: interval):
        seen.append(event)
        await asyncio.sleep(pause)
    assert "".join(shape(seen)) == "abc|defg|"


async def test_leaving_closes_the_source() -> None:
    closed: list[bool] = []
    async with aclosing(coalesce_deltas(stream([*map(thought, "abc"), 60.0], closed), lambda: 60.0)) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert closed == [True]


async def test_gathering_begins_when_the_loop_lags_and_ends_with_it() -> None:
    lag = EventLoopLagMonitor(most_flush_seconds=1.5)

    async def source() -> AsyncGenerator[Event, None]:
        yield thought("a")
        yield thought("b")
        for _ in range(50):
            lag.record(1.0, 0.5)
        for text in "cde":
            yield thought(text)
        for _ in range(100):
            lag.record(0.0, 0.5)
        for text in "fg":
            await asyncio.sleep(0.02)
            yield thought(text)

    seen = [event async for event in coalesce_deltas(source(), lambda: lag.flush_seconds)]
    assert shape(seen) == ["a", "b", "c", "def", "g"]


def test_a_single_hiccup_is_no_lag_and_the_flush_is_bounded() -> None:
    lag = EventLoopLagMonitor(most_flush_seconds=0.1)
    lag.record(0.2, 1.0)
    assert lag.flush_seconds == 0
    for _ in range(20):
        lag.record(5.0, 1.0)
    assert lag.flush_seconds == 0.1
    never = EventLoopLagMonitor(most_flush_seconds=0)
    for _ in range(20):
        never.record(5.0, 1.0)
    assert never.flush_seconds == 0
    assert never.seconds > 4


def test_a_loop_that_is_full_but_hardly_late_gathers_until_it_has_room() -> None:
    """As with many streams of engines that merge what was not fetched: turns are short, and never end."""
    lag = EventLoopLagMonitor(most_flush_seconds=0.1)
    for _ in range(100):
        lag.record(0.004, 1.0)
    assert lag.flush_seconds == 0.1
    shares: list[float] = []
    for _ in range(400):
        # The longer deltas are held, the fewer messages there are to write.
        shares.append(min(1.0, 0.5 + 0.02 / max(0.001, lag.flush_seconds)))
        lag.record(0.004, shares[-1])
    assert 0.7 <= lag.busy_share <= 0.9
    assert len(set(shares[-100:])) == 1, "it has found its interval, and keeps it"
    for _ in range(100):
        lag.record(0.0, 0.1)
    assert lag.flush_seconds == 0


async def test_a_loop_that_is_kept_busy_is_seen_to_be_full() -> None:
    lag = EventLoopLagMonitor(most_flush_seconds=0.1)
    watching = asyncio.create_task(lag.watch(lambda: True))
    step_seconds = 0.005
    async with asyncio.timeout(60):
        while lag.flush_seconds == 0:
            end = time.thread_time() + step_seconds
            while time.thread_time() < end:
                pass
            await asyncio.sleep(0)
            # Where others take the core, no share of it says that the loop is full, but it is late after a long step.
            step_seconds = min(0.1, 1.02 * step_seconds)
    watching.cancel()
    assert lag.busy_share > 0.9 or lag.seconds > 0.05


async def test_what_is_read_to_its_end_while_earlier_events_are_sent_is_not_lost() -> None:
    events = [*map(thought, "abc"), ENDED, *map(answer, "defg")]
    seen = []
    async with aclosing(coalesce_deltas(stream(events), lambda: 0.001)) as source:
        async for event in source:
            seen.append(event)
            await asyncio.sleep(0.05)
    assert "".join(shape(seen)) == "abc|defg"


async def test_an_idle_server_is_not_woken_to_look() -> None:
    looks: list[tuple[float, float]] = []
    lag = EventLoopLagMonitor(1.0)
    lag.record = lambda *look: looks.append(look)  # type: ignore[method-assign]
    for busy, expected in ((False, range(1)), (True, range(2, 9))):
        looks.clear()
        watching = asyncio.create_task(lag.watch(lambda busy=busy: busy))  # type: ignore[misc]
        await asyncio.sleep(0.4)
        async with asyncio.timeout(60):
            while len(looks) < expected.start:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        watching.cancel()
        assert len(looks) in expected


def test_streams_with_one_interval_are_sent_together() -> None:
    times = [send_time(1000.0 + place / 1000, 0.05) for place in range(1, 100)]
    assert len({round(at, 6) for at in times}) == 2
    for place, at in enumerate(times, start=1):
        assert 0 < at - (1000.0 + place / 1000) <= 0.05 + 1e-9
    assert send_time(7.5, 60.0) == 67.5  # long intervals have their own times
