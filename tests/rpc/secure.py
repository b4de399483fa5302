"""Certificates of an authority of our own, and servers that are not open to everybody."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server
from penstock.telemetry.hooks import NO_HOOKS, TelemetryHooks
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str = "server") -> dict[str, str]:
        """Into files; returns the `tls` section that names them."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        key.write_bytes(self.key)
        certificate.write_bytes(self.certificate)
        return {"certificate_file": str(certificate), "key_file": str(key)}


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _sign("authority", self._key.public_key(), None, self._key, ())
        self.pem = self._certificate.public_bytes(Encoding.PEM)

    def issue(self, common_name: str, *alternatives: x509.GeneralName) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(common_name, key.public_key(), self._certificate, self._key, alternatives)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pair(certificate.public_bytes(Encoding.PEM), private)

    def server(self, common_name: str) -> Pair:
        return self.issue(common_name, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def _sign(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    key: ec.EllipticCurvePrivateKey,
    alternatives: Sequence[x509.GeneralName],
) -> x509.Certificate:
    now, own = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.subject if issuer else own)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256())


@asynccontextmanager
async def listening(
    config: dict[str, Any], *replies: Reply, hooks: TelemetryHooks = NO_HOOKS
) -> AsyncIterator[tuple[Server, str]]:
    """A server on the scripted engine, and its address. Looks at its files ten times a second."""
    config["server"] = {"listen": "127.0.0.1:0", "reload_seconds": 0.1} | config.get("server", {})
    server = Server(Config.model_validate(config), hooks)
    address = await server.listen()
    await server.serve_with(ScriptedEngine(replies))
    try:
        yield server, address
    finally:
        await server.drain(0)


def channel(address: str, authority: Authority | None = None, client: Pair | None = None) -> grpc.aio.Channel:
    """A connection of its own, whatever others there are."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if authority is None:
        return grpc.aio.insecure_channel(address, options=options)
    pair = (client.key, client.certificate) if client else (None, None)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority.pem, *pair), options=options)


def stub(at: grpc.aio.Channel) -> Any:
    return generation_pb2_grpc.GenerationServiceStub(at)


def spec(text: str = "hello") -> pb.GenerationSpec:
    return pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)]))


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def count(at: grpc.aio.Channel, key: str | None = None) -> grpc.StatusCode:
    """The status of the smallest call that needs the permission to generate."""
    try:
        await stub(at).CountTokens(pb.CountTokensRequest(spec=spec()), metadata=bearer(key) if key else None)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Waits for an async condition; fails where it never comes true."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it asks a server
            await asyncio.sleep(0.05)
