"""Credentials, channel options and call metadata. Both clients use them."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc

Tls = bool | str | Path | grpc.ChannelCredentials | None
"""None or False: plaintext. True: the system's CA certificates. A path: a CA certificate file in PEM. gRPC channel
credentials: used as they are."""

ChannelOptions = Sequence[tuple[str, Any]]

RETRY_READS_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": "penstock.v1.ModelService", "method": "GetModel"},
                    {"service": "penstock.v1.GenerationService", "method": "CountTokens"},
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""A gRPC service configuration that retries `GetModel` and `CountTokens`, which cost nothing. Off by default; use it as
`Client(..., channel_options=[("grpc.service_config", RETRY_READS_SERVICE_CONFIG)])`. Calls that generate are never
retried: the server would generate, and bill, twice."""

DEFAULT_TARGET = "127.0.0.1:50051"
MAX_PORT = 65535


def resolve(target: str | None, api_key: str | None, tls: Tls) -> tuple[str, str | None, Tls]:
    """Return target, key and TLS, with defaults from the environment.

    The environment variables are PENSTOCK_TARGET; PENSTOCK_API_KEY, or PENSTOCK_API_KEY_FILE with the path of a file
    that holds the key; PENSTOCK_CA_FILE, or PENSTOCK_TLS (true or false). An empty `api_key` means no key and overrides
    the environment.

    Raises:
        OSError: The key file cannot be read.
        ValueError: The target's port cannot be, or PENSTOCK_TLS is neither true nor false.
    """
    target = target or os.environ.get("PENSTOCK_TARGET") or DEFAULT_TARGET
    if why := why_no_port(target):
        raise ValueError(why)
    if api_key is None:
        api_key = os.environ.get("PENSTOCK_API_KEY")
        file = os.environ.get("PENSTOCK_API_KEY_FILE")
        if not api_key and file:
            api_key = Path(file).read_text(encoding="utf-8").strip()
    if tls is None:
        tls = _tls_of_environment()
    return target, api_key or None, tls


def why_no_port(target: str) -> str:
    """Return what is wrong with the target's port; empty where nothing is, or where it has none.

    gRPC takes any number modulo 65536, so that a mistyped port, and what is sent there, would reach another server.
    """
    read = unquote(re.split("[?#]", target, maxsplit=1)[0])  # gRPC reads a target as a URI
    if read.lower().startswith(("unix:", "unix-abstract:", "vsock:", "xds:")):
        return ""
    for address in re.sub(r"(?i)^(dns|ipv4|ipv6):(//[^/]*/)?", "", read).split(","):
        host, colon, port = address.rpartition(":")
        if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address without a port
            continue
        if re.fullmatch(r"\s*[+-]?[0-9]+\s*", port) and not port_of(port):
            return f"the port of the target must be in [1, {MAX_PORT}], got {target}"
    return ""


def port_of(text: str) -> int:
    """Return the port that `text` writes in decimal digits; 0 where it writes none."""
    digits = re.fullmatch("0*([1-9][0-9]{0,4})", text)
    port = int(digits[1]) if digits else 0
    return port if port <= MAX_PORT else 0


def _tls_of_environment() -> bool | str | None:
    value = os.environ.get("PENSTOCK_TLS", "").lower()
    if value not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"PENSTOCK_TLS must be true or false, got {value!r}")
    if value in ("0", "false", "no", "off"):
        return False
    return os.environ.get("PENSTOCK_CA_FILE") or (True if value else None)


_MAX_RECEIVE_BYTES = 256 * 1024 * 1024


def is_loopback(target: str) -> bool:
    """Return whether connections to `target` stay on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def options_for(target: str, extra: ChannelOptions) -> list[tuple[str, Any]]:
    """Return the channel options for `target`; `extra` overrides them."""
    own: list[tuple[str, Any]] = [
        # A unary reply with log probabilities can be larger than gRPC's default of 4 MiB.
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        # Keepalive detects a connection that died silently, so that the stream can resume over another one.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In spite of its name, how long an attempt to connect may take, TLS included.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if is_loopback(target):  # a proxy cannot reach a loopback target
        own.append(("grpc.enable_http_proxy", 0))
    return [*own, *extra]


def credentials_for(tls: Tls) -> grpc.ChannelCredentials | None:
    """Return channel credentials, or None for plaintext.

    Raises:
        OSError: The CA certificate cannot be read.
        ValueError: The file has no certificate.
    """
    if tls is None or tls is False:
        return None
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    return grpc.ssl_channel_credentials(root_certificates=None if tls is True else _roots(Path(tls)))


def _roots(ca: Path) -> bytes:
    """Return the certificates in the file. gRPC takes anything, and then refuses every server."""
    content = ca.read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ValueError(f"{ca} must have a certificate in PEM, found none")
    return content


def credentials_from_files(ca: Path | None, certificate: Path, key: Path) -> grpc.ChannelCredentials:
    """Return credentials for mutual TLS, for `tls=`; the files are read once.

    Args:
        ca: CA certificate of the server. Default: the system's CA certificates.
        certificate: Certificate chain of the client.
        key: Private key of the client.

    Raises:
        OSError: A file cannot be read.
        ValueError: `ca` has no certificate.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=None if ca is None else _roots(ca),
        private_key=key.read_bytes(),
        certificate_chain=certificate.read_bytes(),
    )


Metadata = Mapping[str, str] | Sequence[tuple[str, str]]
"""Additional gRPC metadata for each call, such as `x-request-id`."""


def more_metadata(given: Metadata) -> tuple[tuple[str, str], ...]:
    """Return `given` in gRPC's form.

    Raises:
        TypeError: A value is no str.
        ValueError: The client sets this name itself.
    """
    pairs = [(key.lower(), value) for key, value in (given.items() if isinstance(given, Mapping) else given)]
    for key, value in pairs:
        if not isinstance(value, bytes if key.endswith("-bin") else str):
            raise TypeError(f"metadata {key!r} must be a str, got {type(value).__name__}")
        if key == "authorization" or key.startswith(("grpc-", ":")):
            raise ValueError(f"metadata {key!r} is set by the client: use api_key= or timeout= instead")
    return tuple(pairs)


def metadata_for(target: str, api_key: str | None, tls: Tls) -> tuple[tuple[str, str], ...]:
    """Return the metadata that authenticates a call.

    Raises:
        ValueError: The key is not printable ASCII, or it would be sent in plaintext over a network and tls=False does
            not allow that explicitly.
    """
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable():
        raise ValueError("the API key must be printable ASCII; check it for line breaks and typographic quotes")
    if tls is None and not is_loopback(target):
        raise ValueError(
            f"the API key would be sent to {target} in plaintext: pass tls=True (--tls on the command line), "
            "or tls=False (--plaintext) to send it anyway"
        )
    return (("authorization", f"Bearer {api_key}"),)


def with_api_key(metadata: Sequence[tuple[str, str]], key: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the metadata with `key`, as `metadata_for` made it, instead of another key."""
    return (*(pair for pair in metadata if pair[0] != "authorization"), *key)
