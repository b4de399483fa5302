"""Check what a configuration needs of this machine, before anything is loaded."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config.addresses import host_and_port
from penstock.errors import ConfigError
from penstock.files import why_not_writable

if TYPE_CHECKING:
    from penstock.config.schema import Config, EngineSettings

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_ELSEWHERE = ("s3://", "gs://", "az://")


def preflight(config: Config, ready_file: Path | None = None) -> None:
    """Raise ConfigError for what the service would refuse at its start: addresses, files, the model, the build."""
    wrong = []
    for key, listen in (
        ("server.listen", config.server.listen),
        ("server.health_listen", config.server.health_listen),
        ("telemetry.prometheus_listen", config.telemetry.prometheus_listen),
    ):
        if listen and (why := why_not_listen(listen)):
            wrong.append(f"{key}: {why}")
    for key, file in (
        ("audit.file", config.audit.file),
        ("quotas.daily_file", config.quotas.daily_file),
        ("--ready-file", ready_file),
    ):
        if file is not None and str(file) != "-" and (why := why_not_writable(file)):
            wrong.append(f"{key}: {why}")
    for read in _readers(config):
        try:
            read()
        except ConfigError as error:
            wrong += [line for line in error.message.splitlines() if line.partition(": ")[0] not in _keys(wrong)]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _keys(wrong: list[str]) -> set[str]:
    return {line.partition(": ")[0] for line in wrong}


def _readers(config: Config) -> Iterator[Callable[[], object]]:
    """Yield what the service itself reads its settings and files with. None of it starts or writes anything."""
    from penstock.admission.quotas.store import quotas_of
    from penstock.auth.authenticator import Authenticator
    from penstock.server.listener import check_listen
    from penstock.server.tls import Certificates
    from penstock.sessions.checkpoints import signing_key
    from penstock.telemetry.otel.plan import plan_telemetry

    yield partial(check_listen, config)
    if config.tls.certificate_file is not None:
        yield partial(Certificates, config.tls)
    yield partial(Authenticator, config.auth, config.jwt, config.quotas)
    if config.quotas.redis_url:  # connects when it is first used
        yield partial(quotas_of, config.quotas)
    yield partial(signing_key, config.resume)
    yield partial(plan_telemetry, config.telemetry, os.environ)
    yield partial(_check_engine, config.engine)


def _check_engine(engine: EngineSettings) -> None:
    """Raise ConfigError for an engine that cannot start here. Models of a hub or a store are left to the download."""
    from penstock.server.app import check_engine

    if engine.kind != "scripted" and engine.model and not engine.model.startswith(_ELSEWHERE):
        wrong = [f"engine.model: {why}" for why in why_not_load(engine.model)]
        if wrong:
            raise ConfigError("\n".join(wrong))
    check_engine(engine, has_model=not engine.model or Path(engine.model).expanduser().exists())


def why_not_listen(listen: str) -> str:
    """Return why `listen` cannot be bound; empty where it can be."""
    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        return str(error)
    host = host.strip("[]") or "0.0.0.0"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
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
