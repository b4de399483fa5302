"""Messages to a client that reads them, reads slowly, does not read, or has left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from penstock.errors import ClientTooSlow
from penstock.server.rpc.message_io import Incoming, Outgoing

_PATIENCE_SECONDS = 0.2


class Client:
    """Takes a message when the test says so; stands for gRPC's context."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.takes = asyncio.Event()
        self.has_left = False
        self.cancelled = 0

    async def write(self, reply: Any) -> None:
        try:
            await self.takes.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.has_left:
            raise grpc.aio.BaseError("the call is over")
        self.sent.append(reply)


def outgoing(client: Client, patience_seconds: float = _PATIENCE_SECONDS) -> Outgoing:
    return Outgoing(client, patience_seconds)  # type: ignore[arg-type]


@pytest.mark.slow
async def test_a_client_that_is_slow_but_takes_each_message_in_time_is_not_given_up() -> None:
    client = Client()
    out = outgoing(client, patience_seconds=1.0)
    for number in range(3):
        client.takes.clear()
        asyncio.get_running_loop().call_later(0.4, client.takes.set)
        await out.write(number)
    assert client.sent == [0, 1, 2]
    assert not out.is_stuck


async def test_a_message_that_is_not_taken_is_given_up_and_outlives_the_call() -> None:
    client = Client()
    out = outgoing(client)
    client.takes.set()
    await out.write("first")
    await asyncio.sleep(1.5 * _PATIENCE_SECONDS)  # nothing to write for longer than that is not the client's doing
    client.takes.clear()
    async with asyncio.timeout(60):
        with pytest.raises(ClientTooSlow):
            await out.write("second")
    assert out.is_stuck
    assert not client.cancelled
    waiting = asyncio.create_task(out.until_taken())
    out.close()
    client.takes.set()
    async with asyncio.timeout(60):
        await waiting
    assert client.sent == ["first", "second"]


async def after_a_standstill(done: asyncio.Event) -> None:
    """Hold the event loop for longer than any limit here, and let it learn a little later what came meanwhile."""
    await asyncio.sleep(0.3 * _PATIENCE_SECONDS)
    time.sleep(2 * _PATIENCE_SECONDS)  # noqa: ASYNC251 - as where the process is stopped
    asyncio.get_running_loop().call_later(0.1 * _PATIENCE_SECONDS, done.set)


@pytest.mark.slow
async def test_a_standstill_of_the_service_is_not_the_readers_fault() -> None:
    client = Client()
    out = outgoing(client)
    client.takes.set()
    await out.write("first")
    for number in range(3):
        client.takes.clear()
        standing_still = asyncio.create_task(after_a_standstill(client.takes))
        await out.write(number)
        await standing_still
    assert client.sent == ["first", 0, 1, 2]
    client.takes.clear()
    standing_still = asyncio.create_task(after_a_standstill(asyncio.Event()))
    async with asyncio.timeout(60):
        with pytest.raises(ClientTooSlow):
            await out.write("never")
    await standing_still


class Asker:
    """Sends its request when the test says so; stands for gRPC's context."""

    def __init__(self) -> None:
        self.sends = asyncio.Event()

    async def read(self) -> bytes:
        await self.sends.wait()
        return b"request"


@pytest.mark.slow
async def test_a_standstill_of_the_service_is_not_the_askers_fault() -> None:
    client = Asker()
    incoming = Incoming(client)  # type: ignore[arg-type]
    standing_still = asyncio.create_task(after_a_standstill(client.sends))
    assert await incoming.next(_PATIENCE_SECONDS) == b"request"
    await standing_still
    client.sends.clear()
    standing_still = asyncio.create_task(after_a_standstill(asyncio.Event()))
    async with asyncio.timeout(60):
        with pytest.raises(ClientTooSlow, match=r"within 0\.2 s"):
            await incoming.next(_PATIENCE_SECONDS)
    incoming.close()
    await standing_still


async def test_a_client_that_has_left_cancels_the_call() -> None:
    client = Client()
    client.has_left = True
    client.takes.set()
    with pytest.raises(asyncio.CancelledError):
        await outgoing(client).write("first")
    assert client.sent == []


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_call_that_is_cancelled_takes_its_message_back(is_stuck: bool) -> None:
    client = Client()
    out = outgoing(client)

    async def call() -> None:
        try:
            await out.write("first")
        except ClientTooSlow:
            await out.until_taken()

    calling = asyncio.create_task(call())
    async with asyncio.timeout(60):
        while out.is_stuck != is_stuck:  # noqa: ASYNC110 # a state, not an event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.sleep(0.01)
    assert client.cancelled == 1
    assert client.sent == []


async def test_a_call_that_is_over_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.takes.set()
    out = outgoing(client, patience_seconds=600)  # A busy machine takes longer than the other tests' patience.
    made: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def noted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        made.append(call_later(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(loop, "call_later", noted)
    for number in range(5):
        await out.write(number)
    out.close()
    assert len(made) == 1, "one for the call, not one for each message"
    assert made[0].cancelled()
