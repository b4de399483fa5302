"""A real OTLP receiver: gRPC, on the published protos. Keeps all that it is sent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    services: dict[bytes, str] = field(default_factory=dict)
    resource: Resource = field(default_factory=Resource)
    scopes: set[tuple[str, str, str]] = field(default_factory=set)
    metrics: dict[str, Metric] = field(default_factory=dict)
    logs: list[LogRecord] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        with self.changed:
            assert self.changed.wait_for(ready, seconds), [span.name for span in self.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        spans = self.named(name)
        assert len(spans) == 1, (name, [span.name for span in self.spans])
        return spans[0]

    def children(self, parent: Span) -> list[Span]:
        return sorted(
            (s for s in self.spans if s.parent_span_id == parent.span_id), key=lambda s: s.start_time_unix_nano
        )


def attributes(holder: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(item) for item in value.array_value.values]
        return getattr(value, kind)

    return {pair.key: plain(pair.value) for pair in holder.attributes}


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._collector.changed:
            for resource in request.resource_spans:
                service = attributes(resource.resource)["service.name"]
                self._collector.resource = resource.resource
                for scope in resource.scope_spans:
                    self._collector.scopes.add(("traces", scope.scope.name, scope.scope.version))
                    self._collector.spans.extend(scope.spans)
                    self._collector.services |= {span.span_id: service for span in scope.spans}
            self._collector.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._collector.changed:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self._collector.scopes.add(("metrics", scope.scope.name, scope.scope.version))
                    self._collector.metrics |= {metric.name: metric for metric in scope.metrics}
            self._collector.changed.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()


class _Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._collector.changed:
            for resource in request.resource_logs:
                for scope in resource.scope_logs:
                    self._collector.logs.extend(scope.log_records)
            self._collector.changed.notify_all()
        return logs_service_pb2.ExportLogsServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(collector), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(collector), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Logs(collector), server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


if __name__ == "__main__":
    # A collector in a process of its own, so that what it costs is not ours. Ends with its stdin.
    with collecting() as alone:
        print(alone.endpoint, flush=True)
        sys.stdin.read()
