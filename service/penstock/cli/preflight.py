"""Check what a configuration needs of this machine, before anything is loaded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.config.schema import Config

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_ELSEWHERE = ("s3://", "gs://", "az://")


def preflight(config: Config) -> None:
    """Raise ConfigError for addresses that cannot be bound and a model directory that cannot be loaded."""
    wrong = []
    for key, listen in (
        ("server.listen", config.server.listen),
        ("server.health_listen", config.server.health_listen),
        ("telemetry.prometheus_listen", config.telemetry.prometheus_listen),
    ):
        if listen and (why := why_not_listen(listen)):
            wrong.append(f"{key}: {why}")
    model = config.engine.model
    if config.engine.kind != "scripted" and model and not model.startswith(_ELSEWHERE):
        wrong += [f"engine.model: {why}" for why in why_not_load(model)]
    if wrong:
        raise ConfigError("\n".join(wrong))


def why_not_listen(listen: str) -> str:
    """Return why `listen` cannot be bound; empty where it can be."""
    if listen.startswith("unix:"):
        return ""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit():
        return f"must be host:port, got {listen!r}"
    if int(port) > 65535:
        return f"the port must be in [0, 65535], got {listen!r}"
    host = host.strip("[]") or "0.0.0.0"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        return f"unknown host {host}"
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(address)
        except OSError as error:
            return f"cannot bind {listen}: {(error.strerror or str(error)).lower()}"
    return ""


def why_not_load(model: str) -> Iterator[str]:
    """Yield what is wrong with a checkpoint's directory. Names of a hub are left to the download."""
    path = Path(model).expanduser()
    if not path.is_dir():
        if path.exists():
            yield f"{model} is a file; it must be the directory with config.json and the weights"
        elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            yield f"there is no directory {model}"
        return
    if not (path / "config.json").is_file():
        yield f"{model} has no config.json"
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        yield f"{model} has no weights (*.safetensors)"
    for file in weights:
        if why := corrupt(file):
            yield f"{file}: {why}"


def corrupt(file: Path) -> str:
    """Return what is wrong with a safetensors file's header and length; empty where they agree."""
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                return f"corrupt or incomplete: {size} bytes are less than its header needs"
            header = json.loads(content.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "corrupt: its header is not that of a safetensors file"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"corrupt or incomplete: must have {expected} bytes by its header, got {size}"
