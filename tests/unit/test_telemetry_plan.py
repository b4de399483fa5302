"""Test what is sent where: settings and the standard variables together. No exporter is made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from penstock.config.schema import TelemetrySettings
from penstock.errors import ConfigError
from penstock.telemetry.otel.plan import SIGNALS, plan_telemetry

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


def routes(environ: Mapping[str, str] | None = None, **settings: object) -> dict[str, tuple[str, str]]:
    plan = plan_telemetry(TelemetrySettings.model_validate(settings), environ or {})
    return {signal: (route.protocol, route.endpoint) for signal, route in plan.routes.items()}


def test_nothing_is_on_by_default() -> None:
    assert plan_telemetry(TelemetrySettings(), {}).is_off
    assert routes(ENDPOINT, otlp="off") == {}


def test_the_standard_variables_switch_it_on() -> None:
    assert routes(ENDPOINT) == dict.fromkeys(SIGNALS, ("grpc", "http://collector:4317"))
    http = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert routes(http)["traces"] == ("http", "http://c:4318/v1/traces")
    assert routes({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1"}) == {"traces": ("grpc", "http://t:1")}


def test_the_standard_variables_switch_it_off() -> None:
    assert routes(ENDPOINT | {"OTEL_SDK_DISABLED": "true"}) == {}
    assert set(routes(ENDPOINT | {"OTEL_METRICS_EXPORTER": "none"})) == {"traces", "logs"}
    assert set(routes(ENDPOINT, traces=False)) == {"metrics", "logs"}


def test_our_endpoint_wins_over_the_variables() -> None:
    assert routes(ENDPOINT, otlp_endpoint="http://ours:1")["logs"] == ("grpc", "http://ours:1")
    assert routes(otlp="http")["metrics"] == ("http", "http://localhost:4318/v1/metrics")


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://c:4317", "http://c:99999", "http://c:0", "c:", "/"])
@pytest.mark.parametrize("otlp", ["grpc", "http"])
def test_an_endpoint_where_no_collector_can_be_is_refused(endpoint: str, otlp: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint: must be a URL such as http://localhost:431"):
        routes(otlp=otlp, otlp_endpoint=endpoint)
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: must be"):
        routes({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": endpoint}, otlp=otlp)


def test_grpc_takes_an_endpoint_without_a_scheme() -> None:
    assert routes(otlp="grpc", otlp_endpoint="c:4317")["logs"] == ("grpc", "c:4317")
    with pytest.raises(ConfigError, match="must be a URL"):
        routes(otlp="http", otlp_endpoint="c:4318")


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be grpc or http/protobuf, got http/json"):
        routes(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})


def test_the_prometheus_endpoint_is_loopback_where_no_host_is_named() -> None:
    def address(listen: str) -> tuple[str, int] | None:
        return plan_telemetry(TelemetrySettings(prometheus_listen=listen), {}).prometheus

    assert address("") is None
    assert address(":9464") == ("127.0.0.1", 9464)
    assert address("[::]:9464") == ("::", 9464)
    for listen in ("9464x", ":²", ":65536", ":" + "9" * 5000):
        with pytest.raises(ConfigError, match="must be host:port"):
            address(listen)


def test_where_nothing_is_told_the_sdk_is_not_imported() -> None:
    """Nor exporters: what is off costs no memory and no start-up time."""
    script = (
        "import sys; import penstock.server.app, penstock.server.server, penstock.telemetry.logging;"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
