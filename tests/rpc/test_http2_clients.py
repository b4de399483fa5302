"""What gRPC's own client expects of a server, over sockets: compression, sizes, health, keepalive, addresses, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.engine_scripted import Reply
from penstock.errors import ConfigError
from penstock_client.v1 import generation_pb2 as pb

from tests.rpc.secure import Authority, channel, count, listening, spec, stub

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
        assert "at most 10000" in (refused.value.details() or "")
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
async def test_keepalive_pings_of_a_client_are_answered() -> None:
    """At gRPC's least interval, over a stream that says nothing for longer than that."""
    options = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 2_000),
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
        with pytest.raises(ConfigError, match="is it taken"):
            async with listening({"server": {"listen": address}}):
                pass


def _closed_after(address: str, alpn: list[str] | None) -> float:
    """Seconds until the server hangs up on a TLS client that says nothing more; without ALPN, or before any TLS."""
    host, port = address.rsplit(":", 1)
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        if alpn is None:
            plain.recv(1)
            return time.monotonic() - began
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=AUTHORITY.pem.decode())
        if alpn:
            context.set_alpn_protocols(alpn)
        with context.wrap_socket(plain, server_hostname=host) as tls:
            while tls.recv(100):
                pass
    return time.monotonic() - began


async def test_who_speaks_tls_but_not_http2_or_nothing_is_left(tmp_path: Path) -> None:
    config = {"tls": AUTHORITY.server("one").write(tmp_path), "server": {"request_seconds": 1.0}}
    async with listening(config) as (_, address), channel(address, AUTHORITY) as at:
        assert await asyncio.to_thread(_closed_after, address, []) < 1
        assert await asyncio.to_thread(_closed_after, address, ["http/1.1"]) < 1
        assert 0.5 < await asyncio.to_thread(_closed_after, address, None) < 5
        assert 0.5 < await asyncio.to_thread(_closed_after, address, ["h2"]) < 5
        assert await count(at) is grpc.StatusCode.OK
