"""Each option that the listener gives to gRPC's core acts: a name that the core does not know is ignored in silence.

What the peer does is written frame by frame, because gRPC's own client never does it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.config.schema import ServerSettings
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server import listener
from penstock.server.rpc.call_limits import HEALTH_MESSAGE_BYTES
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb

from tests.hostile.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    call_headers,
    frame,
    frames,
    has_settings,
)
from tests.hostile.frames import Wire as OneWire
from tests.hostile.frames import ends as ended
from tests.rpc.secure import channel, count, listening, spec, stub, until

COUNT = pb.CountTokensRequest(spec=spec()).SerializeToString()
_REFUSED_STREAM = struct.pack(">I", 7)


class Wire(OneWire):
    """A connection that ends with its test."""

    all: ClassVar[list[OneWire]] = []

    def __init__(self, address: str, settings: bytes = b"", *, greet: bool = True) -> None:
        super().__init__(address, settings, greet=greet)
        self.all.append(self)


@pytest.fixture(autouse=True)
def connections() -> Iterator[None]:
    yield
    while Wire.all:
        Wire.all.pop().close()


@asynccontextmanager
async def peer(config: dict[str, Any], *replies: Reply) -> AsyncIterator[str]:
    async with listening({"server": config}, *replies) as (_, address):
        yield address


def settings_of(address: str) -> dict[int, int]:
    """Return what the server says of itself at the start of a connection."""
    wire = Wire(address)
    got = wire.drain(60, has_settings)
    wire.close()
    payload = next(payload for kind, flags, _, payload in frames(got) if kind == SETTINGS and not flags)
    return dict(struct.iter_unpack(">HI", payload))


def greeted(address: str) -> Wire:
    """A connection on which both sides' settings are in force."""
    wire = Wire(address)
    wire.drain(60, has_settings)
    wire.drain(0.2)
    wire.send(frame(SETTINGS, ACK))
    return wire


def until_kind(wire: Wire, wanted: int) -> list[tuple[int, int, int, bytes]]:
    """Frames until one of that kind, or the connection's end."""
    return frames(wire.drain(60, lambda got: wanted in {kind for kind, *_ in frames(got)}))


def seen(wire: Wire, seconds: float = 5.0) -> list[tuple[int, int, int, bytes]]:
    return frames(wire.drain(seconds))


def cut_after(address: str, *pieces: bytes, most_seconds: float = 60.0) -> float:
    """Seconds until the server hangs up on a client that sends these pieces and nothing more."""
    began = time.monotonic()
    wire = Wire(address, greet=False)
    wire.send(*pieces)
    wire.drain(most_seconds)
    assert wire.is_cut, "the connection was kept"
    return time.monotonic() - began


def test_the_core_knows_every_option() -> None:
    """Only a hint: an option may be known for clients alone. The other tests show what each does."""
    core = Path(cygrpc.__file__).read_bytes()
    settings = ServerSettings(max_connection_age_seconds=1)
    for name, value in (*listener.options(settings, 4 << 20), *listener.health_options(settings)):
        assert name.encode() + b"\0" in core, name
        assert isinstance(value, int)


async def test_concurrent_streams_are_told_and_more_are_refused() -> None:
    slow = Reply(answer="abcdefgh", step_seconds=1.0, chunk_tokens=1)
    async with peer({"max_streams_per_connection": 3}, slow) as address:
        assert (await asyncio.to_thread(settings_of, address))[3] == 3
        wire = await asyncio.to_thread(greeted, address)
        body = pb.StreamGenerateRequest(spec=spec()).SerializeToString()
        streams = [wire.call(body) for _ in range(6)]
        got = await asyncio.to_thread(until_kind, wire, RST)
        refused = {stream for kind, _, stream, payload in got if kind == RST and payload == _REFUSED_STREAM}
        assert refused
        assert refused <= set(streams[3:])
        wire.close()


async def codes_of(at: grpc.aio.Channel, calls: int, at_once: int) -> Counter[grpc.StatusCode]:
    """How so many streams end on one channel, so many of them at once."""
    room = asyncio.Semaphore(at_once)

    async def one() -> grpc.StatusCode:
        async with room:
            call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec()))
            with suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            return await call.code()  # type: ignore[no-any-return]

    return Counter(await asyncio.gather(*(one() for _ in range(calls))))


BUSY = {"max_starts_per_second": 1e6, "max_running_sequences": 1024, "max_queued_calls": 4096}


async def test_calls_beyond_the_streams_of_a_connection_are_answered_or_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So each that is refused may be repeated, whatever it asks for."""
    starts, stream = [], ScriptedEngine.stream

    def counted(self: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        starts.append(request)
        return stream(self, request)

    monkeypatch.setattr(ScriptedEngine, "stream", counted)
    config = {"server": {"max_streams_per_connection": 32}, "admission": BUSY}
    async with listening(config, Reply(answer="abcd", step_seconds=0.01)) as (_, address), channel(address) as at:
        ends = await codes_of(at, 400, at_once=400)
    assert set(ends) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert len(starts) == ends[grpc.StatusCode.OK] >= 32


@pytest.mark.slow
async def test_a_client_that_keeps_below_the_streams_of_a_connection_is_refused_none() -> None:
    config = {"admission": BUSY}
    async with listening(config, Reply(answer="abcd", step_seconds=0.01)) as (_, address), channel(address) as at:
        ends = await codes_of(at, 2000, at_once=ServerSettings().max_streams_per_connection * 9 // 10)
    assert ends == {grpc.StatusCode.OK: 2000}


async def test_connections_are_limited_on_each_port_by_itself() -> None:
    config = {"max_connections": 2, "health_listen": "127.0.0.1:0"}
    async with listening({"server": config}) as (server, address):
        held = [await asyncio.to_thread(greeted, address) for _ in range(2)]
        third = Wire(address)
        await asyncio.to_thread(third.drain, 60)
        assert third.is_cut
        async with channel(server.probes_address) as at:
            reply = await health_pb2_grpc.HealthStub(at).Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        held.pop().close()

        async def is_let_in() -> bool:
            async with channel(address) as at:
                return await count(at) is grpc.StatusCode.OK

        await until(is_let_in)
        held.pop().close()


async def test_the_health_ports_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEALTH_CONNECTIONS", 1)
    async with listening({"server": {"health_listen": "127.0.0.1:0"}}) as (server, address):
        held = await asyncio.to_thread(greeted, server.probes_address)
        second = Wire(server.probes_address)
        await asyncio.to_thread(second.drain, 60)
        assert second.is_cut
        async with channel(address) as at:
            assert await count(at) is grpc.StatusCode.OK
        held.close()


async def test_a_connection_without_calls_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_IDLE_CONNECTION_MS", 500)
    async with peer({}) as address:
        wire = await asyncio.to_thread(greeted, address)
        assert GOAWAY in {kind for kind, *_ in await asyncio.to_thread(until_kind, wire, GOAWAY)}
        wire.close()


@pytest.mark.slow
async def test_an_aged_connection_is_told_to_go_and_its_stream_ends_first() -> None:
    slow = Reply(answer="abcdefgh", step_seconds=0.3, chunk_tokens=1)
    async with peer({"max_connection_age_seconds": 1.0, "drain_seconds": 30}, slow) as address:
        wire = await asyncio.to_thread(greeted, address)
        stream = wire.call(pb.StreamGenerateRequest(spec=spec()).SerializeToString())
        got = await asyncio.to_thread(_answering_pings, wire, stream)
        kinds = [kind for kind, *_ in got]
        assert GOAWAY in kinds
        ends = [at for at, (kind, flags, *_) in enumerate(got) if kind == HEADERS and flags & END_STREAM]
        assert ends, "the stream did not end"
        assert kinds.index(GOAWAY) < ends[0]


@pytest.mark.slow
async def test_an_aged_connection_has_a_grace() -> None:
    endless = Reply(answer="a" * 4000, step_seconds=0.5, chunk_tokens=1)
    async with peer({"max_connection_age_seconds": 1.0, "drain_seconds": 1}, endless) as address:
        wire = await asyncio.to_thread(greeted, address)
        stream = wire.call(pb.StreamGenerateRequest(spec=spec()).SerializeToString())
        got = await asyncio.to_thread(_answering_pings, wire, stream)
        await asyncio.to_thread(wire.drain, 60)
        assert wire.is_cut
        assert not any(kind == HEADERS and b"grpc-status\x010" in payload for kind, _, _, payload in got)


def _answering_pings(wire: Wire, stream: int) -> list[tuple[int, int, int, bytes]]:
    """Read as a client does: until the stream or the connection ends."""
    got: list[tuple[int, int, int, bytes]] = []
    until_time = time.monotonic() + 30
    while time.monotonic() < until_time and not wire.is_cut:
        for one in frames(wire.drain(0.1)):
            got.append(one)
            kind, flags, of, payload = one
            if kind == PING and not flags & ACK:
                wire.send(frame(PING, ACK, payload=payload))
            if of == stream and (kind == RST or (kind == HEADERS and flags & END_STREAM)):
                return got
    return got


@pytest.mark.slow
async def test_a_connection_that_does_not_say_hello_ends() -> None:
    async with peer({"request_seconds": 1.0}) as address:
        for pieces in ((), (PREFACE[:10],), (PREFACE,)):
            assert await asyncio.to_thread(cut_after, address, *pieces) > 0.5


@pytest.mark.slow
async def test_metadata_beyond_its_bytes_is_refused_always() -> None:
    async with peer({"max_metadata_bytes": 4096}) as address, channel(address) as at:
        for size in (3000, 5000, 6000, 100_000):
            call = stub(at).CountTokens(pb.CountTokensRequest(spec=spec()), metadata=(("x-long", "y" * size),))
            for _ in range(5 if size > 4096 else 1):
                if size < 4096:
                    await call
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub(at).CountTokens(pb.CountTokensRequest(spec=spec()), metadata=(("x-long", "y" * size),))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, size
            if size > 4096:
                with pytest.raises(grpc.aio.AioRpcError):
                    await call


@pytest.mark.slow
async def test_pending_calls_beyond_the_limit_are_refused_and_below_it_wait() -> None:
    """While the event loop is held, nobody takes calls."""
    async with peer({"max_calls": 20, "max_streams_per_connection": 100}) as address:
        wire = await asyncio.to_thread(greeted, address)

        def flood() -> None:
            for _ in range(60):
                wire.call(COUNT, "GenerationService/CountTokens")

        sending = threading.Thread(target=flood)
        sending.start()
        sending.join()  # holds the event loop
        time.sleep(1.5)  # noqa: ASYNC251 - as above
        got = frames(await asyncio.to_thread(wire.drain, 60, lambda got: ended(got) == 60))
        wire.close()
    # gRPC's core says CANCELLED (1), in trailers alone.
    refused = {stream for kind, flags, stream, payload in got if kind == HEADERS and b"grpc-status\x011\0" in payload}
    answered = {stream for kind, _, stream, _ in got if kind == DATA}
    assert 15 <= len(answered) <= 25
    assert len(answered | refused) == 60


async def test_too_many_pings_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PING_STRIKES", 3)
    async with peer({}) as address:
        wire = await asyncio.to_thread(greeted, address)
        answered = 0
        for _ in range(10):
            wire.send(frame(PING, payload=b"pingping"))
            got = await asyncio.to_thread(seen, wire, 0.1)
            answered += sum(kind == PING for kind, *_ in got)
            if any(kind == GOAWAY for kind, *_ in got):
                break
        else:
            got = await asyncio.to_thread(until_kind, wire, GOAWAY)
            answered += sum(kind == PING for kind, *_ in got)
        assert any(kind == GOAWAY and b"too_many_pings" in payload for kind, _, _, payload in got)
        assert answered <= 5


@pytest.mark.slow
async def test_pings_that_keep_their_distance_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PING_STRIKES", 1)
    monkeypatch.setattr(listener, "_PING_INTERVAL_MS", 50)
    async with peer({}) as address:
        wire = await asyncio.to_thread(greeted, address)
        for _ in range(8):
            wire.send(frame(PING, payload=b"pingping"))
            assert PING in {kind for kind, *_ in await asyncio.to_thread(until_kind, wire, PING)}
            await asyncio.sleep(0.3)
        wire.close()


def compressed(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(body) + packer.flush()
    return struct.pack(">BI", 1, len(packed)) + packed


def call_compressed(address: str, path: str, body: bytes) -> bytes:
    """The header blocks of the answer, which say the status."""
    wire = greeted(address)
    stream = wire.stream()
    headers = call_headers(path, more=((b"grpc-encoding", b"gzip"),))
    wire.send(frame(HEADERS, END_HEADERS, stream, headers), frame(DATA, END_STREAM, stream, compressed(body)))
    got = frames(wire.drain(60, lambda got: ended(got) > 0))
    wire.close()
    return b"".join(payload for kind, _, _, payload in got if kind == HEADERS)


async def test_the_health_port_takes_no_compressed_and_no_large_message() -> None:
    async with listening({"server": {"health_listen": "127.0.0.1:0"}}) as (server, address):
        probes = server.probes_address
        assert b"is disabled" in await asyncio.to_thread(call_compressed, probes, "Health/Check", b"")
        assert b"is disabled" not in await asyncio.to_thread(call_compressed, address, "Health/Check", b"")
        for port in (probes, address):
            async with channel(port) as at:
                health = health_pb2_grpc.HealthStub(at)
                fits = health_pb2.HealthCheckRequest(service="x" * (HEALTH_MESSAGE_BYTES - 100))
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await health.Check(fits)
                assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await health.Check(health_pb2.HealthCheckRequest(service="x" * 2 * HEALTH_MESSAGE_BYTES))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_windows_do_not_grow_by_themselves() -> None:
    async with peer({}) as address:
        assert (await asyncio.to_thread(settings_of, address)).get(4, 65535) <= 65536


def test_two_servers_do_not_share_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = grpc.server(None, options=listener.options(ServerSettings(), 4 << 20))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError):
            server.add_insecure_port(f"127.0.0.1:{port}")


def names(options: Iterable[tuple[str, int]]) -> set[str]:
    return {name for name, _ in options}


def test_what_has_a_limit_has_it_on_both_ports() -> None:
    settings = ServerSettings()
    api, health = names(listener.options(settings, 4 << 20)), names(listener.health_options(settings))
    assert api - health == set()
    assert health - api == {"grpc.compression_enabled_algorithms_bitset"}
