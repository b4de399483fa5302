"""Where the server listens, and how: gRPC's options, TLS, and plaintext only where that is safe or said."""

from __future__ import annotations

import ipaddress

import grpc

from penstock.config import Config, ServerSettings
from penstock.errors import ConfigError
from penstock.tls import Certificates
from penstock.watched import Watched

_IDLE_CONNECTION_MS = 30 * 60 * 1000


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        # Above this gRPC refuses, by default, only some of the calls.
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # Who connects and says nothing goes; so does who has asked nothing for long.
        ("grpc.server_handshake_timeout_ms", int(settings.request_seconds * 1000)),
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
        # A long silent prefill must not be cut for its pings; more than one in 5 s is no keepalive any more.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 10),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port would share its calls at random.
        ("grpc.so_reuseport", 0),
    ]
    if settings.max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)))
    return options


def bind(server: grpc.aio.Server, config: Config, files: list[Watched]) -> str:
    """The bound host:port; certificates that may change are added to `files`. Raises ConfigError where it cannot be."""
    settings = config.server
    if config.tls.certificate_file is not None:
        certificates = Certificates(config.tls)
        files.append(certificates.files)
        return add_port(server, "server.listen", settings.listen, certificates.credentials())
    host, _ = _host_and_port("server.listen", settings.listen)
    if not settings.insecure and not _is_loopback(host):
        raise ConfigError(
            f"server.listen: {host} is not loopback and this is plaintext: set tls.certificate_file and "
            "tls.key_file, or say --insecure (server.insecure = true) to allow it, behind something that encrypts"
        )
    return add_port(server, "server.listen", settings.listen)


def add_port(server: grpc.aio.Server, key: str, listen: str, tls: grpc.ServerCredentials | None = None) -> str:
    """The bound host:port. Raises ConfigError where it cannot be had."""
    host, port = _host_and_port(key, listen)
    try:
        address = f"{host}:{port}"
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise ConfigError(f"{key}: cannot listen on {listen}: is it taken, or not ours?") from error
    return f"{host}:{bound}"


def _host_and_port(key: str, listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key}: {listen!r} is not host:port")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
