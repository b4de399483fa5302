"""Bind the server's ports and set gRPC's options: connection limits, TLS, and plaintext only where that is allowed.

gRPC's core silently ignores options that it does not know: `tests/rpc/test_listener_options.py` shows that each one has
its effect.
"""

from __future__ import annotations

import ipaddress

import grpc

from penstock.config.addresses import host_and_port
from penstock.config.reload import ReloadableFiles
from penstock.config.schema import Config, ServerSettings
from penstock.errors import ConfigError
from penstock.server.rpc.call_limits import HEALTH_MESSAGE_BYTES
from penstock.server.tls import Certificates

HEALTH_CONNECTIONS = 128
"""Limit of connections to the health port: probes come from a few places, one call at a time."""
_HEALTH_STREAMS = 16
_IDENTITY_ONLY = 1  # of grpc's algorithms by bit: identity, deflate, gzip
_IDLE_CONNECTION_MS = 30 * 60 * 1000
# The pings of a client that waits for a long prefill must not end its connection; more than one in 5 s may.
_PING_INTERVAL_MS = 5_000
_PING_STRIKES = 10
_SENT_MESSAGE_BYTES = 4 * 1024 * 1024
ServerOptions = list[tuple[str, int]]


def options(settings: ServerSettings, message_bytes: int) -> ServerOptions:
    """Return the options of the port that serves the API.

    `message_bytes` is the largest size of a message.
    """
    return [
        *_common(settings),
        ("grpc.max_receive_message_length", message_bytes),
        # A small limit on requests must not cut the service's own replies: a reflection reply has 8 KB.
        ("grpc.max_send_message_length", max(message_bytes, _SENT_MESSAGE_BYTES)),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # Calls that the event loop has not reached yet wait. By default the core drops some of them above 1,000.
        ("grpc.server.max_pending_requests", settings.max_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_calls),
        *_age(settings),
    ]


def health_options(settings: ServerSettings) -> ServerOptions:
    """Return the options of the port that answers health checks only."""
    return [
        *_common(settings),
        ("grpc.max_receive_message_length", HEALTH_MESSAGE_BYTES),
        ("grpc.max_send_message_length", HEALTH_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", _HEALTH_STREAMS),
        ("grpc.max_allowed_incoming_connections", HEALTH_CONNECTIONS),
        ("grpc.server.max_pending_requests", HEALTH_CONNECTIONS),
        ("grpc.server.max_pending_requests_hard_limit", HEALTH_CONNECTIONS),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    ]


def _common(settings: ServerSettings) -> ServerOptions:
    return [
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        # Between the two limits the core would refuse only some of the calls.
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.server_handshake_timeout_ms", int(settings.request_seconds * 1000)),
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES),
        # Windows stay at 64 KiB: with the probe, a stream may send 4 MiB before the server asks for a message.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Otherwise two servers could bind the same port and would share its calls at random.
        ("grpc.so_reuseport", 0),
    ]


def _age(settings: ServerSettings) -> ServerOptions:
    if settings.max_connection_age_seconds is None:
        return []
    return [
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
    ]


def bind(server: grpc.aio.Server, config: Config, files: list[ReloadableFiles]) -> str:
    """Bind the API's port and return its host:port.

    Reloadable certificates are added to `files`. Raise ConfigError where the address cannot be served.
    """
    settings = config.server
    check_listen(config)
    if config.tls.certificate_file is not None:
        certificates = Certificates(config.tls)
        files.append(certificates.files)
        return add_port(server, "server.listen", settings.listen, certificates.credentials())
    return add_port(server, "server.listen", settings.listen)


def check_listen(config: Config) -> None:
    """Raise ConfigError where a setting has no host:port, or plaintext is not allowed at its address."""
    settings = config.server
    host, _ = _host_and_port("server.listen", settings.listen)
    if settings.health_listen:
        _host_and_port("server.health_listen", settings.health_listen)
    if config.tls.certificate_file is None and not settings.insecure and not _is_loopback(host):
        raise ConfigError(
            f"server.listen: {host} is not a loopback address and plaintext is not allowed there: set "
            "tls.certificate_file and tls.key_file, or allow it with --insecure (server.insecure = true) behind a "
            "proxy that encrypts"
        )


def add_port(server: grpc.aio.Server, key: str, listen: str, tls: grpc.ServerCredentials | None = None) -> str:
    """Bind `listen`, the value of the setting `key`, and return host:port. Raise ConfigError where that fails."""
    host, port = _host_and_port(key, listen)
    address = f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: cannot bind {listen}: address already in use, or not an address of this machine"
        ) from error
    return f"{host}:{bound}"


def _host_and_port(key: str, listen: str) -> tuple[str, int]:
    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    if not host:
        raise ConfigError(f"{key}: must name a host, such as 127.0.0.1 or 0.0.0.0, got {listen!r}")
    return host, port


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
