"""Serve the Prometheus endpoint: the SDK's metrics as families of prometheus_client, beside vLLM's own metrics.

The SDK's own PrometheusMetricReader (opentelemetry-exporter-prometheus 0.66b2) writes no exemplars.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIServer

from opentelemetry.sdk.metrics.export import (
    Gauge,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from penstock.errors import ConfigError

# The OpenTelemetry-to-Prometheus rules; units in braces are annotations and add no suffix.
_UNITS = {"s": "seconds", "1": "ratio"}


def _listening(host: str, port: int, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    """Start the server. `::` accepts IPv4 too; on a machine without IPv6 it is every IPv4 address."""
    try:
        return start_http_server(port, host, registry)
    except OSError as error:
        if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return start_http_server(port, "0.0.0.0", registry)


class Endpoint(Collector):
    """Serve metrics until closed. `port` 0 takes a free one."""

    def __init__(self, reader: InMemoryMetricReader, resource: Resource, host: str, port: int) -> None:
        self._reader = reader
        self._info = {_name(key): str(value) for key, value in resource.attributes.items()}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        self._server: WSGIServer
        try:
            self._server, self._thread = _listening(host, port, registry)
        except OSError as error:
            raise ConfigError(
                f"telemetry.prometheus_listen: cannot listen on {host}:{port}: {error.strerror}"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def collect(self) -> Iterator[Family]:
        """Yield all metrics."""
        yield InfoMetricFamily("target", "The service's resource", self._info)
        for metric in _metrics(self._reader.get_metrics_data()):
            yield _family(metric)
        # vLLM registers its metrics here, and prometheus_client those of the process.
        yield from REGISTRY.collect()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _metrics(data: MetricsData | None) -> Iterator[Metric]:
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            yield from scope.metrics


def exported_name(name: str, unit: str) -> str:
    """Return the Prometheus name of a metric, without the suffixes of its samples such as `_total`."""
    suffix = _UNITS.get(unit, "")
    return _name(name) + (f"_{suffix}" if suffix and not name.endswith(suffix) else "")


def _family(metric: Metric) -> Family:
    name = exported_name(metric.name, metric.unit or "")
    data = metric.data
    labels = sorted({_name(key) for point in data.data_points for key in point.attributes or {}})
    text = metric.description or metric.name
    if isinstance(data, Sum) and data.is_monotonic:
        counter = CounterMetricFamily(name, text, labels=labels)
        for point in data.data_points:
            counter.add_metric(_values(point.attributes, labels), point.value)
        return counter
    if isinstance(data, Sum | Gauge):
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for point in data.data_points:
            gauge.add_metric(_values(point.attributes, labels), point.value)
        return gauge
    histogram = HistogramMetricFamily(name, text, labels=labels)
    for bucketed in data.data_points:
        if isinstance(bucketed, HistogramDataPoint):
            histogram.add_metric(_values(bucketed.attributes, labels), _buckets(bucketed), bucketed.sum)
    return histogram


def _buckets(point: HistogramDataPoint) -> list[Any]:
    """Return cumulative buckets, each with its newest exemplar."""
    bounds = [*point.explicit_bounds, float("inf")]
    buckets: list[Any] = []
    below, total = float("-inf"), 0
    for bound, count in zip(bounds, point.bucket_counts, strict=True):
        total += count
        inside = [e for e in point.exemplars if below < e.value <= bound and e.trace_id]
        label = "+Inf" if bound == float("inf") else str(float(bound))
        if inside:
            newest = max(inside, key=lambda e: e.time_unix_nano)
            ids = {"trace_id": f"{newest.trace_id:032x}", "span_id": f"{newest.span_id or 0:016x}"}
            buckets.append((label, total, Exemplar(ids, newest.value, newest.time_unix_nano / 1e9)))
        else:
            buckets.append((label, total, None))
        below = bound
    return buckets


def _values(attributes: Mapping[str, Any] | None, labels: Iterable[str]) -> list[str]:
    named = {_name(key): str(value) for key, value in (attributes or {}).items()}
    return [named.get(label, "") for label in labels]


def _name(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
