"""Calls that wait for their client are held for a time, and only so many of them."""

from __future__ import annotations

import asyncio

from penstock.slow_clients import _MOST_UNSENT, SlowReaders, SlowSenders


async def test_who_waits_too_long_is_cut_off_and_who_was_answered_is_not() -> None:
    readers = SlowReaders(0.2)
    watching = asyncio.create_task(readers.watch())
    slow, quick = (asyncio.create_task(asyncio.sleep(30)) for _ in range(2))
    readers.hold(slow)
    readers.hold(quick)
    readers.release(quick)
    await asyncio.wait({slow}, timeout=10)
    assert slow.cancelled()
    assert not quick.done()
    watching.cancel()
    quick.cancel()


async def test_of_too_many_requests_on_their_way_the_oldest_give_way() -> None:
    senders = SlowSenders(60)
    tasks = [asyncio.create_task(asyncio.sleep(30)) for _ in range(_MOST_UNSENT + 1)]
    for task in tasks:
        senders.hold(task)
    await asyncio.sleep(0)
    assert tasks[0].cancelled()
    assert not tasks[-1].done()
    assert sum(task.cancelled() for task in tasks) == _MOST_UNSENT // 8
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not senders._held
