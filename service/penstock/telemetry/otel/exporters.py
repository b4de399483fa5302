"""Create the SDK's OTLP exporters, which log once when the collector fails and once when it works again.

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
# The SDK logs every lost batch and every dropped item; ExporterHealth logs it once, and metrics count them.
# The last three log the content of callers' headers, once per mistake in them.
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
    """Stop the SDK's own log lines about exports and headers."""
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class ExporterHealth:
    """Track whether exports work. Logs each change once, whichever exporter sees it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lost = False

    def report(self, ok: bool, endpoint: str) -> None:
        """Record the result of an export to `endpoint`."""
        with self._lock:
            if ok is not self.lost:
                return
            self.lost = not ok
        if ok:
            log.warning("OTLP export to %s works again", endpoint)
        else:
            log.warning("OTLP export to %s is failing; telemetry will be dropped", endpoint)


def exporter(signal: Signal, route: Route, health: ExporterHealth, meters: MeterProvider | None = None) -> Any:
    """Return the SDK's exporter of a signal, which reports to `health` whether each export worked."""
    made = _EXPORTERS[signal, route.protocol](endpoint=route.endpoint, meter_provider=meters)
    export = made.export

    def reporting(*args: Any, **kwargs: Any) -> Any:
        result = export(*args, **kwargs)
        health.report(result.name == "SUCCESS", route.endpoint)
        return result

    made.export = reporting
    return made
