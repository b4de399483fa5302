"""Where the server listens, and how: limits, TLS, and plaintext only where that is safe or said."""

from __future__ import annotations

import ipaddress

from penstock.config import Config
from penstock.errors import ConfigError
from penstock.http2.connection import Limits, Serve
from penstock.http2.endpoint import Endpoint
from penstock.tls import Certificates
from penstock.watched import Watched


def limits(config: Config) -> Limits:
    settings = config.server
    return Limits(
        message_bytes=config.max_message_bytes,
        metadata_bytes=settings.max_metadata_bytes,
        streams=settings.max_streams_per_connection,
        connections=settings.max_connections,
        request_seconds=settings.request_seconds,
        slow_reader_seconds=settings.slow_reader_seconds,
        age_seconds=settings.max_connection_age_seconds,
        age_grace_seconds=settings.drain_seconds,
    )


def listener(config: Config, serve: Serve, files: list[Watched]) -> tuple[Endpoint, str]:
    """A bound endpoint and its host:port; certificates that may change are added to `files`. Raises ConfigError where
    it cannot be."""
    settings = config.server
    if config.tls.certificate_file is not None:
        certificates = Certificates(config.tls)
        files.append(certificates.files)
        endpoint = Endpoint(serve, limits(config), certificates.context)
    else:
        host, _ = _host_and_port("server.listen", settings.listen)
        if not settings.insecure and not _is_loopback(host):
            raise ConfigError(
                f"server.listen: {host} is not loopback and this is plaintext: set tls.certificate_file and "
                "tls.key_file, or say --insecure (server.insecure = true) to allow it, behind something that encrypts"
            )
        endpoint = Endpoint(serve, limits(config))
    return endpoint, _bound(endpoint, "server.listen", settings.listen)


def probes(config: Config, serve: Serve) -> tuple[Endpoint, str]:
    """The same for health alone, in plaintext. Raises ConfigError."""
    endpoint = Endpoint(serve, limits(config))
    return endpoint, _bound(endpoint, "server.health_listen", config.server.health_listen)


def _bound(endpoint: Endpoint, key: str, listen: str) -> str:
    host, port = _host_and_port(key, listen)
    try:
        return f"{host}:{endpoint.bind(host, port)}"
    except OSError as error:
        raise ConfigError(f"{key}: cannot listen on {listen}: is it taken, or not ours? ({error.strerror})") from error


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
