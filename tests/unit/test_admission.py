"""Room, the queue, and who goes first, who is shed, who waits too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.admission.queue import Admission, AdmissionRequest
from penstock.config.schema import AdmissionSettings
from penstock.errors import DeadlinePassed, Draining, Overloaded
from penstock.types import Priority


def admission(capacity: int = 1, **queue: int) -> Admission:
    return Admission(AdmissionSettings.model_validate(queue), lambda: capacity)


def bid(
    caller: str = "a", priority: Priority = Priority.NORMAL, sequences: int = 1, tokens: int = 10
) -> AdmissionRequest:
    return AdmissionRequest(caller, priority, sequences, tokens)


class Crowd:
    """Calls that write down when they are let in, and leave when told."""

    def __init__(self, queue: Admission) -> None:
        self.queue, self.order, self.leave = queue, list[str](), asyncio.Event()

    def come(self, name: str, **fields: object) -> asyncio.Task[None]:
        async def call() -> None:
            async with self.queue.permit(bid(**{"caller": name[0], **fields})):  # type: ignore[arg-type]
                self.order.append(name)
                await self.leave.wait()

        return asyncio.create_task(call())

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def held() -> AsyncIterator[tuple[Crowd, AsyncExitStack]]:
    """A door with room for one, and that one inside."""
    crowd = Crowd(admission(max_queued_calls=4))
    async with AsyncExitStack() as inside:
        await inside.enter_async_context(crowd.queue.permit(bid("first")))
        yield crowd, inside


async def test_higher_classes_first_and_callers_in_turns(held: tuple[Crowd, AsyncExitStack]) -> None:
    crowd, inside = held
    tasks = [crowd.come(name) for name in ("a1", "a2", "b1")] + [crowd.come("c1", priority=Priority.HIGH)]
    await crowd.settle()
    crowd.leave.set()
    await inside.aclose()
    await asyncio.gather(*tasks)
    assert crowd.order == ["c1", "a1", "b1", "a2"]


async def test_a_full_queue_sheds_the_greediest_then_the_newcomer(held: tuple[Crowd, AsyncExitStack]) -> None:
    crowd, inside = held
    greedy = [crowd.come(f"a{n}") for n in range(4)]
    await crowd.settle()
    modest = crowd.come("b1")
    await crowd.settle()
    with pytest.raises(Overloaded):
        await greedy[3]
    with pytest.raises(Overloaded) as refused:
        await crowd.come("a9")
    assert 0.1 <= refused.value.retry_after_seconds <= 60
    with pytest.raises(Overloaded):
        crowd.queue.check_capacity(Priority.NORMAL, "a")
    crowd.queue.check_capacity(Priority.HIGH, "a")
    crowd.leave.set()
    await inside.aclose()
    await asyncio.gather(*greedy[:3], modest)


async def test_lower_classes_are_shed_for_higher_ones(held: tuple[Crowd, AsyncExitStack]) -> None:
    crowd, inside = held
    low = [crowd.come(f"{name}1", priority=Priority.LOW) for name in "abcd"]
    await crowd.settle()
    normal = crowd.come("e1")
    await crowd.settle()
    assert sum(task.done() for task in low) == 1
    crowd.leave.set()
    await inside.aclose()
    await normal
    results = await asyncio.gather(*low, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 1


async def test_without_a_queue_there_is_still_room_for_those_who_run() -> None:
    queue = admission(max_queued_calls=0)
    queue.check_capacity(Priority.NORMAL, "a")
    async with queue.permit(bid()):
        with pytest.raises(Overloaded):
            queue.check_capacity(Priority.NORMAL, "a")
        with pytest.raises(Overloaded):
            await Crowd(queue).come("b1")


async def test_tokens_bound_the_queue_too() -> None:
    queue = admission(max_queued_tokens=25)
    crowd = Crowd(queue)
    async with queue.permit(bid("x")):
        waiting = [crowd.come("a1"), crowd.come("b1")]
        await crowd.settle()
        with pytest.raises(Overloaded):
            await crowd.come("c1")
        crowd.leave.set()
    await asyncio.gather(*waiting)
    assert (queue.queued_calls, queue.queued_tokens, queue.running_sequences) == (0, 0, 0)


async def test_what_waits_past_its_deadline_never_comes_in(held: tuple[Crowd, AsyncExitStack]) -> None:
    crowd, _ = held
    late = AdmissionRequest("a", Priority.NORMAL, 1, 10, deadline_monotonic=time.monotonic() + 0.05)
    with pytest.raises(DeadlinePassed):
        async with crowd.queue.permit(late):
            pytest.fail("let in")
    assert crowd.queue.queued_calls == 0


async def test_draining_sends_those_who_wait_elsewhere(held: tuple[Crowd, AsyncExitStack]) -> None:
    crowd, inside = held
    waiting = crowd.come("a1")
    await crowd.settle()
    crowd.queue.drain()
    for refused in (waiting, crowd.come("b1")):
        with pytest.raises(Draining):
            await refused
    await inside.aclose()
    await asyncio.wait_for(crowd.queue.idle(), 60)


async def test_a_large_call_is_not_starved_by_small_ones() -> None:
    queue = admission(capacity=4)
    crowd = Crowd(queue)
    async with queue.permit(bid("x")):
        large = crowd.come("a1", sequences=4)
        await crowd.settle()
        small = crowd.come("b1")
        await crowd.settle()
        assert crowd.order == []
        crowd.leave.set()
    await asyncio.gather(large, small)
    assert crowd.order == ["a1", "b1"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(list(Priority)), st.integers(1, 3), st.booleans()),
        max_size=30,
    )
)
def test_nothing_leaks_whatever_comes_and_goes(calls: list[tuple[str, Priority, int, bool]]) -> None:
    async def scenario() -> None:
        queue = admission(capacity=3, max_queued_calls=5)

        async def call(caller: str, priority: Priority, sequences: int) -> None:
            async with queue.permit(bid(caller, priority, sequences)):
                assert queue.running_sequences <= 3
                await asyncio.sleep(0)

        tasks = []
        for caller, priority, sequences, impatient in calls:
            tasks.append(asyncio.create_task(call(caller, priority, sequences)))
            await asyncio.sleep(0)
            if impatient:
                tasks[-1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(queue.idle(), 60)
        assert (queue.running_calls, queue.running_sequences, queue.queued_calls, queue.queued_tokens) == (0, 0, 0, 0)

    asyncio.run(scenario())


async def test_room_is_given_back_as_it_was_taken_whatever_capacity_is_by_then() -> None:
    capacity = 4
    queue = Admission(AdmissionSettings(), lambda: capacity)
    first, second = queue.permit(bid(sequences=4)), queue.permit(bid(sequences=3))
    permit = await first.__aenter__()
    assert permit.waited_seconds == 0.0
    waits = asyncio.create_task(second.__aenter__())
    await asyncio.sleep(0.01)
    capacity = 2
    await first.__aexit__(None, None, None)
    assert (await waits).waited_seconds > 0.0
    assert queue.running_sequences == 2
    capacity = 4
    await second.__aexit__(None, None, None)
    assert queue.running_sequences == 0
