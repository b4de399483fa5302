"""Decide which signal is sent where, from the settings and the OTEL_* variables. Imports no opentelemetry."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from penstock.config.addresses import host_and_port
from penstock.config.schema import TelemetrySettings
from penstock.errors import ConfigError

Protocol = Literal["grpc", "http"]
Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
_DEFAULTS: Mapping[Protocol, str] = {"grpc": "http://localhost:4317", "http": "http://localhost:4318"}
_BASE = "OTEL_EXPORTER_OTLP"


@dataclass(frozen=True, slots=True)
class Route:
    """Hold the destination of one signal. `endpoint` is complete: for HTTP it ends with the signal's path."""

    protocol: Protocol
    endpoint: str


@dataclass(frozen=True, slots=True)
class TelemetryPlan:
    """Hold the destinations of all signals, and the address of the Prometheus endpoint."""

    routes: Mapping[Signal, Route]
    prometheus: tuple[str, int] | None

    @property
    def is_off(self) -> bool:
        """Return whether nothing is exported."""
        return not self.routes and self.prometheus is None


def plan_telemetry(settings: TelemetrySettings, environ: Mapping[str, str]) -> TelemetryPlan:
    """Return the plan. Raise ConfigError for an invalid address or an unsupported protocol."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return TelemetryPlan({}, None)
    wanted: dict[Signal, bool] = {"traces": settings.traces, "metrics": settings.metrics, "logs": settings.logs}
    routes: dict[Signal, Route] = {}
    for signal in SIGNALS:
        exporter = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower()
        route = _route(settings, signal, environ)
        if wanted[signal] and exporter != "none" and route is not None:
            routes[signal] = route
    return TelemetryPlan(routes, _address(settings.prometheus_listen))


def _route(settings: TelemetrySettings, signal: Signal, environ: Mapping[str, str]) -> Route | None:
    """Return a signal's route. As for exporters, its own variable is a whole URL, the others are base URLs."""
    own = environ.get(f"{_BASE}_{signal.upper()}_ENDPOINT", "").strip()
    base = settings.otlp_endpoint or environ.get(f"{_BASE}_ENDPOINT", "").strip()
    if settings.otlp == "off" or (settings.otlp == "auto" and not (own or base)):
        return None
    protocol = settings.otlp if settings.otlp != "auto" else _protocol(signal, environ)
    if own and not settings.otlp_endpoint:
        _check(f"{_BASE}_{signal.upper()}_ENDPOINT", own, protocol)
        return Route(protocol, own)
    base = base or _DEFAULTS[protocol]
    _check("telemetry.otlp_endpoint" if settings.otlp_endpoint else f"{_BASE}_ENDPOINT", base, protocol)
    return Route(protocol, f"{base.rstrip('/')}/v1/{signal}" if protocol == "http" else base)


def _check(name: str, endpoint: str, protocol: Protocol) -> None:
    """Raise ConfigError where no collector can be at `endpoint`: the exporters would drop everything."""
    # gRPC's exporter takes host:port, too.
    url = endpoint if "://" in endpoint or protocol == "http" else f"http://{endpoint}"
    with contextlib.suppress(ValueError):  # of a port that is no number up to 65535
        parts = urlsplit(url)
        is_whole = url == endpoint or parts.port is not None
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and is_whole:
            return
    raise ConfigError(f"{name}: must be a URL such as {_DEFAULTS[protocol]}, got {endpoint!r}")


def _protocol(signal: Signal, environ: Mapping[str, str]) -> Protocol:
    for variable in (f"{_BASE}_{signal.upper()}_PROTOCOL", f"{_BASE}_PROTOCOL"):
        match environ.get(variable, "").strip().lower():
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf" | "http":
                return "http"
            case other:
                raise ConfigError(f"{variable}: must be grpc or http/protobuf, got {other}")
    return "grpc"


def _address(listen: str) -> tuple[str, int] | None:
    if not listen:
        return None
    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        raise ConfigError(f"telemetry.prometheus_listen: {error}") from None
    return host.strip("[]") or "127.0.0.1", port
