"""Exporters that say once that nobody is there. Queues are bounded and export threads are their own: nothing waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from penstock.telemetry.encoding import GrpcSpans
from penstock.telemetry.plan import Route
from penstock.telemetry.spreads import Spreads

log = logging.getLogger(__name__)
# The SDK's own words on every lost batch; ours say it once.
_TALKATIVE = (
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk._logs",
    "opentelemetry.trace",
)


def quieten() -> None:
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Reach:
    """Whether the collector takes what is sent; told when it changes, and never twice for the same outage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lost = False

    def note(self, ok: bool, endpoint: str) -> None:
        with self._lock:
            if ok is not self.lost:
                return
            self.lost = not ok
        if ok:
            log.warning("the telemetry collector at %s is there again", endpoint)
        else:
            log.warning("the telemetry collector at %s takes nothing; what is not sent in time is dropped", endpoint)


class Spans(SpanExporter):
    def __init__(self, route: Route, reach: Reach) -> None:
        make: Any = GrpcSpans if route.protocol == "grpc" else HttpSpans
        self._inner: SpanExporter = make(endpoint=route.endpoint)
        self._route, self._reach = route, reach

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._reach.note(result is SpanExportResult.SUCCESS, self._route.endpoint)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Metrics(MetricExporter):
    def __init__(self, route: Route, reach: Reach, spreads: Spreads) -> None:
        make: Any = GrpcMetrics if route.protocol == "grpc" else HttpMetrics
        self._inner: MetricExporter = make(endpoint=route.endpoint)
        temporality = self._inner._preferred_temporality or {}
        super().__init__(temporality, self._inner._preferred_aggregation)
        self._route, self._reach = route, reach
        self._complete = spreads.reader(temporality.get(Histogram, AggregationTemporality.CUMULATIVE))

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        result = self._inner.export(self._complete(metrics_data), timeout_millis, **kwargs)
        self._reach.note(result is MetricExportResult.SUCCESS, self._route.endpoint)
        return result

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._inner.shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Logs(LogRecordExporter):
    def __init__(self, route: Route, reach: Reach) -> None:
        make: Any = GrpcLogs if route.protocol == "grpc" else HttpLogs
        self._inner: Any = make(endpoint=route.endpoint)
        self._route, self._reach = route, reach

    def export(self, batch: Sequence[ReadableLogRecord]) -> Any:
        result = self._inner.export(batch)
        self._reach.note(result.name == "SUCCESS", self._route.endpoint)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._inner.force_flush(timeout_millis))
