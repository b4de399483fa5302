"""Histograms with exemplars. The SDK's own cost fifteen microseconds a value, and a call has ten of them.

Buckets are fixed where they are made. What readers get is the SDK's own data, put beside what the SDK itself collected.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from time import time_ns
from typing import TypeAlias

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
)
from opentelemetry.trace import SpanContext

from penstock.telemetry.span import Span

Values: TypeAlias = tuple[str, ...]
Complete: TypeAlias = Callable[[MetricsData], MetricsData]


class _Series:
    __slots__ = ("_exemplars", "_least", "_most", "counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum: float = 0
        self._least, self._most = math.inf, -math.inf
        self._exemplars: dict[int, tuple[float, int, SpanContext]] = {}

    def add(self, bucket: int, value: float, context: SpanContext) -> None:
        self.counts[bucket] += 1
        self.sum += value
        if value < self._least:
            self._least = value
        if value > self._most:
            self._most = value
        if context.trace_flags.sampled:
            self._exemplars[bucket] = (value, time_ns(), context)

    def point(self, labels: dict[str, str], bounds: tuple[float, ...], since: int, now: int) -> HistogramDataPoint:
        exemplars = [Exemplar({}, value, at, c.span_id, c.trace_id) for value, at, c in self._exemplars.values()]
        self._exemplars = {}
        counts = tuple(self.counts)
        return HistogramDataPoint(
            labels, since, now, sum(counts), self.sum, counts, bounds, self._least, self._most, exemplars
        )


class _Shelf:
    """What one reader has not read yet, or all there was, as it likes it."""

    def __init__(self, temporality: AggregationTemporality) -> None:
        self.temporality = temporality
        self.series: dict[Values, _Series] = {}
        self._since = time_ns()

    def points(self, labels: tuple[str, ...], bounds: tuple[float, ...]) -> list[HistogramDataPoint]:
        now = time_ns()
        found = [
            series.point({k: v for k, v in zip(labels, values, strict=True) if v}, bounds, self._since, now)
            for values, series in self.series.items()
        ]
        if self.temporality is AggregationTemporality.DELTA:
            self.series, self._since = {}, now
        return found


class Spread:
    """One histogram. An empty label is none."""

    def __init__(
        self,
        metric: tuple[str, str, str],
        bounds: tuple[float, ...],
        labels: tuple[str, ...],
        readers: list[AggregationTemporality],
    ) -> None:
        self._metric = metric
        self._bounds = bounds
        self._labels = labels
        self._lock = threading.Lock()
        self._shelves = [_Shelf(temporality) for temporality in readers]

    def record(self, value: float, span: Span, *values: str) -> None:
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            for shelf in self._shelves:
                series = shelf.series.get(values)
                if series is None:
                    series = shelf.series[values] = _Series(len(self._bounds) + 1)
                series.add(bucket, value, span.context)

    def read(self, reader: int) -> Metric | None:
        name, unit, description = self._metric
        shelf = self._shelves[reader]
        with self._lock:
            points = shelf.points(self._labels, self._bounds)
        return Metric(name, description, unit, Histogram(points, shelf.temporality)) if points else None


class Spreads:
    """All of a service. Readers first, then the histograms that they read."""

    def __init__(self) -> None:
        self._readers: list[AggregationTemporality] = []
        self._all: list[Spread] = []

    def reader(self, temporality: AggregationTemporality) -> Complete:
        """Puts them into what the SDK collected for the same reader."""
        number = len(self._readers)
        self._readers.append(temporality)

        def complete(data: MetricsData) -> MetricsData:
            ours = [metric for spread in self._all if (metric := spread.read(number)) is not None]
            resource, *resources = data.resource_metrics
            scope, *scopes = resource.scope_metrics
            scope = replace(scope, metrics=[*scope.metrics, *ours])
            return MetricsData([replace(resource, scope_metrics=[scope, *scopes]), *resources])

        return complete

    def make(self, name: str, unit: str, description: str, bounds: tuple[float, ...], *labels: str) -> Spread:
        spread = Spread((name, unit, description), bounds, labels, self._readers)
        self._all.append(spread)
        return spread
