"""Test what gRPC's own client expects of a server: compression, sizes, health, keepalive, addresses, TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.engine.scripted import Reply
from penstock.errors import ConfigError, PenstockError
from penstock.server.rpc.call_limits import MAX_OPEN_CALLS_PER_CONNECTION
from penstock.telemetry.hooks import CallHooks, TelemetryHooks
from penstock_client import MessageTooLarge, Overloaded
from penstock_client.errors import from_rpc_error
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2, model_pb2_grpc

from tests.hostile.frames import DATA, END_HEADERS, HEADERS, Wire, call_headers, ends, frame, frames, message, resets
from tests.rpc.secure import Authority, channel, count, listening, spec, stub, until

AUTHORITY = Authority()


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_understood(how: grpc.Compression) -> None:
    async with listening({}) as (_, address), channel(address) as at:
        request = pb.CountTokensRequest(spec=spec("hello " * 200))
        plain = await stub(at).CountTokens(request)
        assert await stub(at).CountTokens(request, compression=how) == plain


async def test_a_message_that_needs_windows_to_open_arrives_whole() -> None:
    async with listening({}) as (_, address), channel(address) as at:
        counts = [await stub(at).CountTokens(pb.CountTokensRequest(spec=spec("y" * n))) for n in (1_000, 1_001_000)]
        assert counts[1].prompt_tokens - counts[0].prompt_tokens == 1_000_000


async def test_more_than_the_most_is_told() -> None:
    config = {"server": {"max_message_bytes": 10_000}}
    async with listening(config) as (_, address), channel(address) as at:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(at).CountTokens(pb.CountTokensRequest(spec=spec("y" * 20_000)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "message larger than max" in (refused.value.details() or "")
        assert await count(at) is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(at).CountTokens(pb.CountTokensRequest(spec=spec()), metadata=(("x-long", "y" * 20_000),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_can_be_watched() -> None:
    async with listening({}) as (server, address), channel(address) as at:
        watching = health_pb2_grpc.HealthStub(at).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.set_ready(False)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        unknown = health_pb2_grpc.HealthStub(at).Check(health_pb2.HealthCheckRequest(service="nobody"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watching.cancel()


async def test_methods_that_are_not_there_are_unimplemented() -> None:
    async with listening({}) as (_, address), channel(address) as at:
        call = at.unary_unary("/penstock.v1.GenerationService/Guess")(b"")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.slow
async def test_a_method_that_is_not_there_is_unimplemented_to_who_still_sends() -> None:
    """gRPC's Python client says INTERNAL where it hears of the end first; on a busy machine it may: two tries."""

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100

    async def code(at: grpc.aio.Channel) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(at.stream_stream("/penstock.v1.GenerationService/Translate")(requests())))
        return refused.value.code()

    async with listening({}) as (_, address), channel(address) as at:
        for _ in range(20):
            assert grpc.StatusCode.UNIMPLEMENTED in [await code(at), await code(at)]


@pytest.mark.slow
async def test_keepalive_pings_of_a_client_are_answered() -> None:
    """At gRPC's least interval, over a stream that says nothing for longer than that."""
    options = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 6_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    slow = Reply(answer="ab", step_seconds=6.5, chunk_tokens=1)
    async with listening({}, slow) as (_, address), grpc.aio.insecure_channel(address, options=options) as at:
        request = pb.GenerateRequest(spec=spec())
        request.spec.thinking.mode = pb.THINKING_MODE_FAST
        assert (await stub(at).Generate(request)).usage.output_tokens == 3


@pytest.mark.parametrize("host", ["[::1]", "localhost", "127.0.0.1"])
async def test_every_way_to_say_loopback(host: str) -> None:
    config = {"server": {"listen": f"{host}:0"}}
    async with listening(config) as (_, address), channel(address) as at:
        assert await count(at) is grpc.StatusCode.OK


async def test_a_port_that_is_taken_is_told() -> None:
    async with listening({}) as (_, address):
        with pytest.raises(ConfigError, match="already in use"):
            async with listening({"server": {"listen": address}}):
                pass


def _is_closed(address: str, alpn: list[str] | None) -> None:
    """Wait until the server hangs up on a TLS client that says nothing more; without ALPN, or before any TLS."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        if alpn is None:
            plain.recv(1)
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=AUTHORITY.pem.decode())
        if alpn:
            context.set_alpn_protocols(alpn)
        with context.wrap_socket(plain, server_hostname=host) as tls:
            while tls.recv(100):
                pass


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]], ids=["no ALPN", "HTTP/1.1"])
async def test_who_speaks_tls_but_not_http2_is_left_at_once(alpn: list[str], tmp_path: Path) -> None:
    config = {"tls": AUTHORITY.server("one").write(tmp_path), "server": {"request_seconds": 600.0}}
    async with listening(config) as (_, address), channel(address, AUTHORITY) as at:
        await asyncio.to_thread(_is_closed, address, alpn)
        assert await count(at) is grpc.StatusCode.OK


@pytest.mark.slow
@pytest.mark.parametrize("alpn", [None, ["h2"]], ids=["no TLS", "HTTP/2"])
async def test_who_says_nothing_is_left_after_a_while(alpn: list[str] | None, tmp_path: Path) -> None:
    config = {"tls": AUTHORITY.server("one").write(tmp_path), "server": {"request_seconds": 1.0}}
    async with listening(config) as (_, address), channel(address, AUTHORITY) as at:
        await asyncio.to_thread(_is_closed, address, alpn)
        assert await count(at) is grpc.StatusCode.OK


async def test_a_watcher_that_does_not_read_keeps_nobody_from_the_status() -> None:
    async with listening({}) as (server, address), channel(address) as at:
        deaf = Wire(address, struct.pack(">HI", 4, 0))
        for _ in range(3):
            deaf.call(b"", path="/grpc.health.v1.Health/Watch")
        await asyncio.to_thread(deaf.drain, 0.3)
        watching = health_pb2_grpc.HealthStub(at).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        another = health_pb2_grpc.HealthStub(at).Watch(health_pb2.HealthCheckRequest(service=""))
        await another.read()
        another.cancel()  # who leaves takes nobody along
        await server.set_ready(False)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        deaf.close()


async def test_health_calls_are_limited_by_connection() -> None:
    async with listening({}) as (_, address), channel(address) as first, channel(address) as second:
        request = health_pb2.HealthCheckRequest(service="")
        watching = [health_pb2_grpc.HealthStub(first).Watch(request) for _ in range(MAX_OPEN_CALLS_PER_CONNECTION)]
        for one in watching:
            await one.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(first).Check(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await health_pb2_grpc.HealthStub(second).Check(request)
        for one in watching:
            one.cancel()


async def test_calls_beyond_the_limit_in_all_are_refused_with_a_delay() -> None:
    slow = Reply(answer="ab", step_seconds=3, chunk_tokens=1)
    async with listening({"server": {"max_calls": 2}}, slow) as (_, address), channel(address) as at:
        running = [stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec())) for _ in range(2)]
        for one in running:
            await one.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(at).CountTokens(pb.CountTokensRequest(spec=spec()))
        error = from_rpc_error(refused.value)
        assert isinstance(error, Overloaded)
        assert error.retry_after_seconds
        for one in running:
            one.cancel()

        async def has_room() -> bool:
            return await count(at) is grpc.StatusCode.OK

        await until(has_room)


async def test_a_caller_with_streams_that_it_does_not_read_is_refused_until_it_ends_them() -> None:
    config = {"server": {"max_unread_streams_per_caller": 2, "slow_reader_seconds": 0.3}}
    async with listening(config, Reply(answer="x" * 50, chunk_tokens=1)) as (server, address), channel(address) as at:
        deaf = Wire(address, struct.pack(">HI", 4, 0))
        body = pb.StreamGenerateRequest(spec=spec()).SerializeToString()
        for _ in range(2):
            deaf.call(body)

        async def is_refused() -> bool:
            return await count(at) is grpc.StatusCode.RESOURCE_EXHAUSTED

        await until(is_refused)
        assert server.admission.running_calls == 0
        await asyncio.to_thread(deaf.drain, 0.1)
        deaf.close()

        async def is_served() -> bool:
            return await count(at) is grpc.StatusCode.OK

        await until(is_served)


async def test_a_request_that_does_not_become_whole_is_told_so() -> None:
    async with listening({"server": {"request_seconds": 0.5}}) as (_, address):
        wire = Wire(address)
        stream = wire.stream()
        wire.send(
            frame(HEADERS, END_HEADERS, stream, call_headers()), frame(DATA, 0, stream, message(b"x", claimed_bytes=99))
        )
        got = frames(await asyncio.to_thread(wire.drain, 60, lambda got: ends(got) + resets(got) > 0))
        assert any(kind == HEADERS and b"not complete within" in payload for kind, _, _, payload in got)
        wire.close()


async def test_small_methods_take_small_messages() -> None:
    async with listening({}) as (_, address), channel(address) as at:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await model_pb2_grpc.ModelServiceStub(at).GetModel(model_pb2.GetModelRequest(model="x" * 100_000))
        error = from_rpc_error(refused.value)
        assert isinstance(error, MessageTooLarge)
        assert error.metadata["max_bytes"] == "65536"


async def test_every_refusal_is_counted_and_written_down(tmp_path: Path) -> None:
    audit, hooks = tmp_path / "audit.jsonl", Ends()
    config = {"server": {"max_message_bytes": 10_000, "request_seconds": 0.5}, "audit": {"file": str(audit)}}
    async with listening(config, hooks=hooks) as (_, address), channel(address) as at:
        for call in (
            stub(at).CountTokens(pb.CountTokensRequest(spec=spec("y" * 20_000))),
            at.unary_unary("/penstock.v1.GenerationService/Guess")(b""),
            at.unary_unary("/penstock.v1.GenerationService/CountTokens")(b"\xff\xff"),
            at.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff"),
            stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec(), flush_interval={"seconds": 99})).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await call

        async def are_told() -> bool:
            return len(hooks.ends) == 5

        await until(are_told)
    told = {("CANCELLED", "REQUEST_LOST"), ("UNIMPLEMENTED", "NOT_IMPLEMENTED"), ("INVALID_ARGUMENT", "INVALID_FIELD")}
    assert set(hooks.ends) == told
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {(line["status"], line["reason"]) for line in lines if line["event"] == "call"} == told
    assert len(lines) == 5


class Ends(TelemetryHooks):
    """Keeps how calls ended: status and reason."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallHooks:
        return OneEnd(self.ends)


class OneEnd(CallHooks):
    def __init__(self, ends: list[tuple[str, str]]) -> None:
        self._ends = ends

    def ended(self, code: str, error: BaseException | None = None) -> None:
        self._ends.append((code, error.reason if isinstance(error, PenstockError) else ""))
