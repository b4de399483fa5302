"""How a target is reached: credentials, channel options, call metadata. Shared by both clients."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

Tls = bool | str | Path | grpc.ChannelCredentials | None
"""None or False: plaintext. True: the system's roots. A path: a CA certificate in PEM. Credentials: as they are."""

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
"""Retries of the two calls that may be repeated for nothing: `Client(..., channel_options=[("grpc.service_config",
RETRY_READS_SERVICE_CONFIG)])`. Off by default. Generating is never retried: it would be done, and billed, twice."""

DEFAULT_TARGET = "127.0.0.1:50051"


def resolve(target: str | None, api_key: str | None, tls: Tls) -> tuple[str, str | None, Tls]:
    """Return target, key and TLS, with what was not given taken from the environment.

    PENSTOCK_TARGET; PENSTOCK_API_KEY, or PENSTOCK_API_KEY_FILE with a file that holds it; PENSTOCK_CA_FILE, or
    PENSTOCK_TLS (true or false). An empty `api_key` is none, whatever the environment says. Raises OSError where a
    file cannot be read, and ValueError for another value of PENSTOCK_TLS.
    """
    target = target or os.environ.get("PENSTOCK_TARGET") or DEFAULT_TARGET
    if api_key is None:
        api_key = os.environ.get("PENSTOCK_API_KEY")
        file = os.environ.get("PENSTOCK_API_KEY_FILE")
        if not api_key and file:
            api_key = Path(file).read_text(encoding="utf-8").strip()
    if tls is None:
        tls = _tls_of_environment()
    return target, api_key or None, tls


def _tls_of_environment() -> bool | str | None:
    said = os.environ.get("PENSTOCK_TLS", "").lower()
    if said not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"PENSTOCK_TLS must be true or false, got {said!r}")
    if said in ("0", "false", "no", "off"):
        return False
    return os.environ.get("PENSTOCK_CA_FILE") or (True if said else None)


_MAX_RECEIVE_BYTES = 256 * 1024 * 1024


def is_loopback(target: str) -> bool:
    """Return True for targets that cannot leave this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def options_for(target: str, extra: ChannelOptions) -> list[tuple[str, Any]]:
    """Return the arguments of the channel to `target`, with those of `extra`."""
    # Unary replies with log probabilities outgrow gRPC's 4 MiB, and a proxy has no business with a loopback target.
    own: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        # A connection that died without a word is found out, so that the stream can go on over another.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if is_loopback(target):
        own.append(("grpc.enable_http_proxy", 0))
    return [*own, *extra]


def credentials_for(tls: Tls) -> grpc.ChannelCredentials | None:
    """None is plaintext. Raises OSError where the CA certificate cannot be read."""
    if tls is None or tls is False:
        return None
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    roots = None if tls is True else Path(tls).read_bytes()
    return grpc.ssl_channel_credentials(root_certificates=roots)


Metadata = Mapping[str, str] | Sequence[tuple[str, str]]
"""More gRPC metadata for each call, such as `x-request-id`."""


def more_metadata(given: Metadata) -> tuple[tuple[str, str], ...]:
    """Return `given` as gRPC takes it. Raises ValueError for names that are not the caller's to set."""
    pairs = [(key.lower(), value) for key, value in (given.items() if isinstance(given, Mapping) else given)]
    for key, _ in pairs:
        if key == "authorization" or key.startswith(("grpc-", ":")):
            raise ValueError(f"metadata {key!r} is set by the client: give api_key=, timeout= and the like")
    return tuple(pairs)


def metadata_for(target: str, api_key: str | None, tls: Tls) -> tuple[tuple[str, str], ...]:
    """Raise ValueError rather than send a key in the clear over a network; tls=False says that this is meant."""
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable():
        raise ValueError("the API key must be printable ASCII; is a line break or a quotation mark in it?")
    if tls is None and not is_loopback(target):
        raise ValueError(f"the API key would go to {target} in the clear: pass tls=True, or tls=False if that is meant")
    return (("authorization", f"Bearer {api_key}"),)
