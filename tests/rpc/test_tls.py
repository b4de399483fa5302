"""The encrypted listener: what it accepts, who is let in, and certificates that change under running streams."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.config.schema import Config
from penstock.engine.scripted import Reply
from penstock.errors import ConfigError
from penstock.server.server import Server
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import Authority, channel, count, listening, spec, stub, until

AUTHORITY = Authority()


def shake_hands(address: str, version: ssl.TLSVersion | None = None, ciphers: str = "ALL:@SECLEVEL=0") -> Any:
    """(common name, version, cipher) of one handshake, by OpenSSL; raises OSError where the server will not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY.pem.decode())
    context.set_alpn_protocols(["h2"])
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old versions are what this is about
            context.minimum_version = context.maximum_version = version
        context.set_ciphers(ciphers)
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        certificate: Any = tls.getpeercert()
        cipher = tls.cipher()
        assert cipher is not None
        return certificate["subject"][0][0][1], tls.version(), cipher[0]


async def test_the_scan_finds_tls_1_2_and_1_3_and_only_ciphers_with_forward_secrecy(tmp_path: Path) -> None:
    async with listening({"tls": AUTHORITY.server("one").write(tmp_path)}) as (_, address):
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(OSError, match=r"(?i)tls|ssl|eof|reset"):
                await asyncio.to_thread(shake_hands, address, old)
        assert (await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_3))[1] == "TLSv1.3"
        accepted = set()
        offered = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        offered.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        for cipher in [c["name"] for c in offered.get_ciphers() if c["protocol"] != "TLSv1.3"]:
            try:
                await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_2, f"{cipher}:@SECLEVEL=0")
            except OSError:
                continue
            accepted.add(cipher)
        assert accepted
        assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in accepted), accepted


@pytest.mark.slow
async def test_certificates_change_under_eight_streams_and_none_drops(tmp_path: Path) -> None:
    slow = Reply(answer="x" * 60, step_seconds=0.15)
    async with listening({"tls": AUTHORITY.server("one").write(tmp_path)}, slow) as (_, address):
        channels = [channel(address, AUTHORITY) for _ in range(8)]
        first = asyncio.Event()

        async def read(at: grpc.aio.Channel) -> pb.GenerationEvent:
            event = pb.GenerationEvent()
            request = pb.StreamGenerateRequest(spec=spec())
            request.spec.thinking.mode = pb.THINKING_MODE_FAST
            async for response in stub(at).StreamGenerate(request):
                event = response.event
                if event.WhichOneof("event") == "answer":
                    first.set()
            return event

        streams = [asyncio.create_task(read(at)) for at in channels]
        async with asyncio.timeout(60):
            await first.wait()
        assert (await asyncio.to_thread(shake_hands, address))[0] == "one"
        AUTHORITY.server("two").write(tmp_path)

        async def is_new() -> bool:
            return bool((await asyncio.to_thread(shake_hands, address))[0] == "two")

        await until(is_new)
        assert not any(stream.done() for stream in streams), "the streams must outlast the change"
        ends = await asyncio.gather(*streams)
        assert [end.finished.usage.answer_tokens for end in ends] == [61] * 8
        for at in channels:
            await at.close()


async def test_a_bad_certificate_is_not_taken_up_and_the_next_good_one_is(tmp_path: Path) -> None:
    async with listening({"tls": AUTHORITY.server("one").write(tmp_path)}) as (server, address):
        key = (tmp_path / "server.key").read_bytes()
        AUTHORITY.server("two").write(tmp_path)
        (tmp_path / "server.key").write_bytes(key)
        await asyncio.sleep(0.5)
        assert (await asyncio.to_thread(shake_hands, address))[0] == "one"
        AUTHORITY.server("three").write(tmp_path)

        async def is_new() -> bool:
            return bool((await asyncio.to_thread(shake_hands, address))[0] == "three")

        await until(is_new)
        assert server.state().engine_is_up


async def test_mutual_tls_lets_in_only_whom_the_authority_signed(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
    tls = AUTHORITY.server("one").write(tmp_path) | {"client_ca_file": str(tmp_path / "ca.crt")}
    async with listening({"tls": tls}) as (_, address):
        async with channel(address, AUTHORITY, AUTHORITY.issue("team-a")) as at:
            assert await count(at) is grpc.StatusCode.OK
        for stranger in (None, Authority().issue("team-a")):
            async with channel(address, AUTHORITY, stranger) as at:
                assert await count(at) is grpc.StatusCode.UNAVAILABLE
        async with channel(address) as at:
            assert await count(at) is grpc.StatusCode.UNAVAILABLE


async def test_probes_without_tls_reach_health_and_nothing_else(tmp_path: Path) -> None:
    config = {"tls": AUTHORITY.server("one").write(tmp_path), "server": {"health_listen": "127.0.0.1:0"}}
    async with listening(config) as (server, _), channel(server.probes_address) as at:
        health = health_pb2_grpc.HealthStub(at)
        reply = await health.Check(health_pb2.HealthCheckRequest(service=""))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert await count(at) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ({"certificate_file": "a.crt"}, "must be set together"),
        ({"client_ca_file": "ca.crt"}, "needs certificate_file"),
    ],
)
def test_half_a_configuration_is_refused(tls: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"tls": tls})


async def test_files_that_are_no_certificate_are_named(tmp_path: Path) -> None:
    good = AUTHORITY.server("one").write(tmp_path)
    other = AUTHORITY.server("two").write(tmp_path, "other")
    (tmp_path / "text").write_text("hello")
    for tls, said in (
        (good | {"key_file": other["key_file"]}, "is not the key of"),
        (good | {"key_file": str(tmp_path / "text")}, "no private key"),
        (good | {"certificate_file": str(tmp_path / "text")}, "no certificate in PEM"),
        (good | {"certificate_file": str(tmp_path / "none")}, "cannot be read"),
        (good | {"client_ca_file": str(tmp_path / "text")}, "client_ca_file"),
    ):
        server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "tls": tls}))
        with pytest.raises(ConfigError, match=said):
            await server.listen()
        await server.drain(0)


async def test_plaintext_stays_on_loopback_unless_said() -> None:
    server = Server(Config.model_validate({"server": {"listen": "0.0.0.0:0"}}))
    with pytest.raises(ConfigError, match="plaintext"):
        await server.listen()
    await server.drain(0)
