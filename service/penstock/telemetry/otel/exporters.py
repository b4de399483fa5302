"""The SDK's OTLP exporters, which say once when the collector is lost and once when it is back.

They run on threads of the SDK's batch processors and periodic reader, behind bounded queues: no call waits for them.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.metrics import MeterProvider

from penstock.telemetry.otel.plan import Route, Signal

log = logging.getLogger(__name__)
_EXPORTERS: dict[tuple[Signal, str], Any] = {
    ("traces", "grpc"): GrpcSpans,
    ("traces", "http"): HttpSpans,
    ("metrics", "grpc"): GrpcMetrics,
    ("metrics", "http"): HttpMetrics,
    ("logs", "grpc"): GrpcLogs,
    ("logs", "http"): HttpLogs,
}
# The SDK logs every lost batch and every dropped item; ExporterHealth says it once, and metrics count them.
# The last three log what a caller wrote into its headers, once per mistake in them.
_NOISY_LOGGERS = (
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk._logs",
    "opentelemetry.baggage",
    "opentelemetry.propagators",
    "opentelemetry.trace",
)


def silence_sdk_loggers() -> None:
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class ExporterHealth:
    """Whether the collector takes what is sent. Logs each change once, whichever exporter sees it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lost = False

    def report(self, ok: bool, endpoint: str) -> None:
        with self._lock:
            if ok is not self.lost:
                return
            self.lost = not ok
        if ok:
            log.warning("OTLP export to %s works again", endpoint)
        else:
            log.warning("OTLP export to %s is failing; telemetry will be dropped", endpoint)


def exporter(signal: Signal, route: Route, health: ExporterHealth, meters: MeterProvider | None = None) -> Any:
    """Return the SDK's exporter of this signal, which tells `health` whether each export worked."""
    made = _EXPORTERS[signal, route.protocol](endpoint=route.endpoint, meter_provider=meters)
    export = made.export

    def reporting(*args: Any, **kwargs: Any) -> Any:
        result = export(*args, **kwargs)
        health.report(result.name == "SUCCESS", route.endpoint)
        return result

    made.export = reporting
    return made
