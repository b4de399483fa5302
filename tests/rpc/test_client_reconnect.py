"""The connection dies, the loop in user code does not notice: every event once, in order, with no exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import penstock_client as pc
import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server

from tests.rpc.killable import ward
from tests.rpc.proxy import Proxy, proxied

THOUGHT, ANSWER = "a thought of some length, ünïcödé too; " * 3, "an answer that goes on for a while"
# Slow enough that a busy client reads it as it comes.
SLOW = Reply(thought=THOUGHT, answer=ANSWER, step_seconds=0.01)
ENDLESS = Reply(match="endless", thought="x" * 3000, answer="done", step_seconds=0.005)
QUICK = pc.Reconnect(max_attempts=4, max_seconds=5, first_wait_seconds=0.02)


class Scene:
    """A server, a proxy before it, and its engine."""

    def __init__(self, server: Server, engine: ScriptedEngine, proxy: Proxy) -> None:
        self.server, self.engine, self.proxy = server, engine, proxy

    async def idle(self) -> bool:
        """The engine has nothing left to do."""
        for _ in range(6000):
            if not self.engine.load().running_requests:
                return True
            await asyncio.sleep(0.01)
        return False


@asynccontextmanager
async def scene(**resume: object) -> AsyncIterator[Scene]:
    config = Config.model_validate({"server": {"listen": "127.0.0.1:0", "adaptive_flush_seconds": 0}, "resume": resume})
    server, engine = Server(config), ScriptedEngine([ENDLESS, SLOW])
    address = await server.listen()
    await server.serve_with(engine)
    async with proxied(address) as proxy:
        yield Scene(server, engine, proxy)
    await server.drain(0)


def assert_whole(events: list[pc.Event]) -> None:
    response = events[-1].response
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert (response.thought, response.answer) == (THOUGHT, ANSWER)
    assert isinstance(events[-1], pc.Finished)
    assert "".join(e.text for e in events if isinstance(e, pc.ThoughtDelta)) == THOUGHT


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [1, 5])
async def test_async_streams_go_on_over_cut_connections(cuts: int) -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        events: list[pc.Event] = []
        async with client.stream("hi", thinking="thinking") as stream:
            async for event in stream:
                events.append(event)
                if len(events) % 12 == 5 and here.proxy.connections <= cuts:
                    here.proxy.cut()
        assert_whole(events)
        assert stream.reconnections >= cuts
        assert here.proxy.connections == cuts + 1


@pytest.mark.slow
async def test_blocking_streams_go_on_over_cut_connections() -> None:
    async with scene() as here:
        loop = asyncio.get_running_loop()

        def collect() -> list[pc.Event]:
            events: list[pc.Event] = []
            with pc.Client(here.proxy.target) as client:
                for event in client.stream("hi", thinking="thinking"):
                    events.append(event)
                    if len(events) % 12 == 5 and here.proxy.connections <= 3:
                        loop.call_soon_threadsafe(here.proxy.cut)
            return events

        assert_whole(await asyncio.to_thread(collect))
        assert here.proxy.connections == 4


@pytest.mark.slow
async def test_twenty_streams_share_a_connection_that_never_lasts() -> None:
    async with scene() as here, proxied(here.proxy.target) as flaky, pc.AsyncClient(flaky.target) as client:
        streams = [client.stream("hi", thinking="thinking") for _ in range(20)]
        firsts = await asyncio.gather(*(anext(stream) for stream in streams))
        flaky.cut_bytes = 8000

        async def collect(first: pc.Event, stream: pc.AsyncStream) -> list[pc.Event]:
            return [first, *[event async for event in stream]]

        for events in await asyncio.gather(*map(collect, firsts, streams)):
            assert_whole(events)
        assert flaky.connections >= 3, "cut twice at least; how often depends on how much is gathered into a message"


@pytest.mark.slow
async def test_an_outage_of_seconds_is_waited_for() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        events: list[pc.Event] = []
        async for event in client.stream("hi", thinking="thinking"):
            events.append(event)
            if len(events) == 5:
                here.proxy.refusing = True
                here.proxy.cut()
                asyncio.get_running_loop().call_later(1.5, setattr, here.proxy, "refusing", False)
        assert_whole(events)


async def cut_for_good(here: Scene, client: pc.AsyncClient, seconds: float | None = None) -> pc.AsyncStream:
    stream = client.stream("endless", thinking="thinking", timeout=seconds)
    await anext(stream)
    here.proxy.refusing = True
    here.proxy.cut()
    return stream


async def to_the_end(stream: pc.AsyncStream) -> None:
    async for _ in stream:
        pass


async def test_an_outage_that_does_not_end_is_unavailable_after_bounded_attempts() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target, reconnect=QUICK) as client:
        stream = await cut_for_good(here, client)
        with pytest.raises(pc.Unavailable):
            await to_the_end(stream)
        assert stream.reconnections == 1, "it counts connections that were lost, not attempts to get another"
        assert stream._recovery._attempts == QUICK.max_attempts


async def test_the_deadline_holds_over_all_connections() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        async with asyncio.timeout(60):
            with pytest.raises(pc.DeadlineExceeded):
                await to_the_end(await cut_for_good(here, client, seconds=1.0))


async def test_a_generation_that_is_gone_is_said_to_be() -> None:
    async with scene(grace_seconds=0.05) as here, pc.AsyncClient(here.proxy.target) as client:
        stream = await cut_for_good(here, client)
        asyncio.get_running_loop().call_later(0.3, setattr, here.proxy, "refusing", False)
        with pytest.raises(pc.GenerationNotFound) as gone:
            await to_the_end(stream)
        assert gone.value.reason == "GENERATION_NOT_FOUND"


async def test_without_reconnecting_a_cut_is_unavailable() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target, reconnect=None) as client:
        stream = await cut_for_good(here, client)
        assert not stream.response.resume_token
        with pytest.raises(pc.Unavailable):
            await to_the_end(stream)


async def leave_by_break(client: pc.AsyncClient) -> None:
    async for event in client.stream("endless", thinking="thinking"):
        if isinstance(event, pc.ThoughtDelta):
            break


async def leave_by_with(client: pc.AsyncClient) -> None:
    async with client.stream("endless", thinking="thinking") as stream:
        await anext(stream)


async def leave_by_deadline(client: pc.AsyncClient) -> None:
    with pytest.raises(pc.DeadlineExceeded):
        await to_the_end(client.stream("endless", thinking="thinking", timeout=2))


async def leave_by_blocking_break(client: pc.AsyncClient) -> None:
    def leave() -> None:
        with pc.Client(client.target) as blocking:
            for event in blocking.stream("endless", thinking="thinking"):
                if isinstance(event, pc.ThoughtDelta):
                    return

    await asyncio.to_thread(leave)


@pytest.mark.slow
@pytest.mark.parametrize("leave", [leave_by_break, leave_by_with, leave_by_deadline, leave_by_blocking_break])
async def test_leaving_a_resumable_stream_ends_the_generation(leave: Callable[..., object]) -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        await leave(client)  # type: ignore[misc]
        assert await here.idle()


@pytest.mark.slow
async def test_another_process_goes_on_with_what_was_detached() -> None:
    async with scene() as here:
        async with pc.AsyncClient(here.proxy.target) as client:
            stream = client.stream("hi", thinking="thinking")
            first = [await anext(stream) for _ in range(20)]
            stream.detach()
        async with pc.AsyncClient(here.proxy.target) as client:
            known = (stream.response.generation_id, stream.response.resume_token)
            rest = [event async for event in client.resume(*known, stream.last_sequence)]
            assert [e.sequence for e in rest] == list(range(21, 21 + len(rest)))
            assert first[-1].response.thought + rest[-1].response.thought == THOUGHT
            assert_whole([event async for event in client.resume(*known)])
            with pytest.raises(pc.GenerationNotFound):
                await to_the_end(client.resume(known[0], "guess"))


@pytest.mark.slow
async def test_a_drained_stream_goes_on_at_another_replica(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with ward(SLOW, key_file=key) as here, ward(SLOW, key_file=key) as there:
        async with proxied(here.address) as proxy, pc.AsyncClient(proxy.target) as client:
            events: list[pc.Event] = []
            async for event in client.stream("hi", thinking="thinking"):
                events.append(event)
                if len(events) == 20:
                    proxy.server = there.address
                    draining = asyncio.create_task(here.server.drain(0.01))
            await draining
        response = events[-1].response
        assert (response.thought, response.answer) == (THOUGHT, ANSWER)
        assert sum(isinstance(event, pc.Finished) for event in events) == 1
        assert response.finish_reason is pc.FinishReason.STOP


async def read_by_async(target: str, seen: Callable[[int], None]) -> list[pc.Event]:
    events: list[pc.Event] = []
    async with pc.AsyncClient(target) as client:
        async for event in client.stream("hi", thinking="thinking"):
            events.append(event)
            seen(len(events))
    return events


async def read_by_blocking(target: str, seen: Callable[[int], None]) -> list[pc.Event]:
    loop = asyncio.get_running_loop()

    def collect() -> list[pc.Event]:
        events: list[pc.Event] = []
        with pc.Client(target) as client:
            for event in client.stream("hi", thinking="thinking"):
                events.append(event)
                loop.call_soon_threadsafe(seen, len(events))
        return events

    return await asyncio.to_thread(collect)


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_by_async, read_by_blocking])
async def test_a_drained_stream_is_resumed_where_it_went_on(
    read: Callable[..., Awaitable[list[pc.Event]]], tmp_path: Path
) -> None:
    """Drained here, cut there, cut again: every event once, in order, and generated once."""
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with ward(SLOW, key_file=key) as here, ward(SLOW, key_file=key) as there, proxied(here.address) as proxy:
        draining: list[asyncio.Task[None]] = []

        before = sum(engine.runs for engine in there.engines)

        def disturb(events: int) -> None:
            if events == 20:
                proxy.server = there.address
                draining.append(asyncio.create_task(here.server.drain(0.01)))
            elif events in (60, 90):
                proxy.cut()

        events = await read(proxy.target, disturb)
        await asyncio.gather(*draining)
        response = events[-1].response
        assert (response.thought, response.answer) == (THOUGHT, ANSWER)
        assert [event.sequence for event in events[:19]] == list(range(1, 20))
        assert all(a.sequence < b.sequence for a, b in pairwise(events))
        assert proxy.connections >= 3
        assert sum(engine.runs for engine in there.engines) == before + 1


async def test_leaving_a_stream_that_went_on_elsewhere_ends_it_there(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with (
        ward(ENDLESS, key_file=key) as here,
        ward(ENDLESS, key_file=key) as there,
        proxied(here.address) as proxy,
        pc.AsyncClient(proxy.target) as client,
    ):
        stream = client.stream("endless", thinking="thinking")
        first = await anext(stream)
        proxy.server = there.address
        await here.server.drain(0.01)
        while stream.reconnections == 0 or stream.last_sequence < first.sequence + 20:
            await anext(stream)
        assert there.engines[-1].load().running_requests == 1
        stream.close()
        for _ in range(6000):
            if not there.engines[-1].load().running_requests:
                return
            await asyncio.sleep(0.01)
        pytest.fail("it still runs")


async def test_a_drained_stream_that_nobody_goes_on_with_ends_as_drained(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with ward(SLOW, key_file=key) as here, pc.AsyncClient(here.address, reconnect=QUICK) as client:
        stream = client.stream("hi", thinking="thinking")
        await anext(stream)
        draining = asyncio.create_task(here.server.drain(0.01))
        await to_the_end(stream)
        await draining
        assert stream.response.finish_reason is pc.FinishReason.DRAINED
        assert stream.response.usage


# ------------------------------------------------------------------------------------------------------------- steer


async def test_steering_by_the_async_client() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        async with client.interact("endless", thinking="thinking") as interaction:
            async for _ in interaction:
                if len(interaction.response.thought) == 5:
                    interaction.finish_thinking()
        assert interaction.response.answer == "done"
        assert interaction.response.thinking_outcome is pc.ThinkingOutcome.FINISHED_BY_CLIENT


@pytest.mark.parametrize(
    ("steer", "outcome"),
    [
        (lambda i: i.finish_thinking(), pc.ThinkingOutcome.FINISHED_BY_CLIENT),
        (lambda i: i.change_budget(50), pc.ThinkingOutcome.BUDGET_REACHED),
        (lambda i: i.cancel(), None),
    ],
)
async def test_steering_by_the_blocking_client(
    steer: Callable[[pc.Interaction], None], outcome: pc.ThinkingOutcome | None
) -> None:
    def steered(target: str) -> pc.Response:
        with pc.Client(target) as client, client.interact("endless", thinking="thinking") as interaction:
            for event in interaction:
                if event.sequence == 5:
                    steer(interaction)
            return interaction.response

    async with scene() as here:
        response = await asyncio.to_thread(steered, here.proxy.target)
        assert response.usage
        if outcome is None:
            assert response.finish_reason is pc.FinishReason.CANCELLED
        else:
            assert (response.thinking_outcome, response.answer) == (outcome, "done")


async def test_leaving_an_interaction_ends_it() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        async with client.interact("endless", thinking="thinking") as interaction:
            await anext(interaction)
        assert await here.idle()


async def test_nonsense_is_refused_with_its_field() -> None:
    async with scene() as here, pc.AsyncClient(here.proxy.target) as client:
        interaction = client.interact("endless", thinking="thinking")
        interaction.change_budget(-2)
        with pytest.raises(pc.InvalidRequest) as refused:
            await to_the_end(interaction)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.violations[0].field == "change_budget.thinking_budget"


@pytest.mark.slow
async def test_a_network_that_takes_long_to_connect_is_waited_for() -> None:
    """Over a slow line, or to a busy server, a handshake takes more than a second."""
    async with scene() as here:
        here.proxy.reply_seconds = 1.5
        async with pc.AsyncClient(here.proxy.target) as client:
            assert (await client.model(timeout=60)).context_window_tokens == 4096
