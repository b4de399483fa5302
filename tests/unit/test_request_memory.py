"""The bytes of requests in memory: bounded, handed back, and not to be held by requests that arrive slowly."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from penstock.admission import request_memory
from penstock.admission.request_memory import RequestMemory
from penstock.errors import Overloaded


async def test_room_is_held_for_the_largest_message_and_then_for_what_came() -> None:
    memory = RequestMemory(budget_bytes=1000, message_bytes=400)
    async with memory.reserve("a", 1) as first, memory.reserve("b", 1):
        assert memory.held_bytes == 800
        assert not memory.has_room
        memory.arrived(first, 10)
        assert memory.held_bytes == 410
        assert memory.has_room
    assert memory.held_bytes == 0


async def test_who_finds_no_room_waits_for_it_in_turn() -> None:
    memory, order = RequestMemory(1000, 1000), []

    async def ask(name: str) -> None:
        async with memory.reserve(name, 30) as reservation:
            memory.arrived(reservation, 1)
            order.append(name)

    async with memory.reserve("first", 1):
        waiting = [asyncio.create_task(ask(name)) for name in ("b", "c", "d")]
        await asyncio.sleep(0.05)
        assert order == []
    await asyncio.gather(*waiting)
    assert order == ["b", "c", "d"]
    assert memory.held_bytes == 0


async def test_no_room_in_time_is_overload() -> None:
    memory = RequestMemory(1000, 1000)
    async with memory.reserve("a", 1) as held:
        memory.arrived(held, 500)
        with pytest.raises(Overloaded, match="500 of 1000 bytes"):
            async with memory.reserve("b", 0.05):
                pass
    assert memory.has_room


async def test_a_slow_request_of_the_caller_with_the_most_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_memory, "_FAIR_SECONDS", 0.05)
    memory = RequestMemory(3000, 1000)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(memory.reserve("one", 1))
        many = [await stack.enter_async_context(memory.reserve("many", 1)) for _ in range(2)]

        async def ask() -> None:
            async with memory.reserve("newcomer", 30):
                pass

        asking = asyncio.create_task(ask())
        await asyncio.wait((many[0].lost,), timeout=60)
        assert many[0].lost.done()
        assert not one.lost.done()
        asking.cancel()


async def test_one_message_always_fits() -> None:
    memory = RequestMemory(budget_bytes=10, message_bytes=1000)
    async with memory.reserve("a", 0):
        assert not memory.has_room


async def test_callers_take_turns() -> None:
    memory, order = RequestMemory(1000, 1000), []

    async def ask(name: str) -> None:
        async with memory.reserve(name, 30) as reservation:
            memory.arrived(reservation, 1)
            order.append(name)

    async with memory.reserve("first", 1):
        waiting = [asyncio.create_task(ask(name)) for name in ("many", "many", "many", "one")]
        await asyncio.sleep(0.05)
    await asyncio.gather(*waiting)
    assert order.index("one") == 1


async def test_who_gives_up_waiting_leaves_nothing() -> None:
    memory = RequestMemory(1000, 1000)

    async def ask() -> None:
        async with memory.reserve("b", 30):
            pass

    async with memory.reserve("a", 1):
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert memory.held_bytes == 0
    async with memory.reserve("c", 0):
        pass
