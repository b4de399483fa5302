"""Histograms of ours against the SDK's: readers get the same, each for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from penstock.telemetry.span import Span
from penstock.telemetry.spreads import Spreads

BOUNDS = (1.0, 5.0, 10.0)
SAMPLED, UNSAMPLED = (Span(SpanContext(7, number, False, TraceFlags(number % 2))) for number in (1, 2))
ROUNDS: Sequence[Sequence[tuple[float, Span, str]]] = (
    [(0.5, SAMPLED, "a"), (5.0, SAMPLED, ""), (99.0, UNSAMPLED, "a"), (1.0, SAMPLED, "a")],
    [(7.0, UNSAMPLED, "a")],
    [],
    [(2.0, SAMPLED, "b")],
)


def metrics(data: MetricsData | None) -> Iterator[Metric]:
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def points(all_metrics: Iterator[Metric], name: str) -> list[HistogramDataPoint]:
    """Of one histogram, without the times, which differ."""
    found = []
    for metric in all_metrics:
        if metric.name == name and isinstance(metric.data, Histogram):
            for point in metric.data.data_points:
                exemplars = [
                    replace(exemplar, time_unix_nano=0, filtered_attributes={}) for exemplar in point.exemplars
                ]
                exemplars.sort(key=lambda exemplar: exemplar.value)
                found.append(replace(point, start_time_unix_nano=0, time_unix_nano=0, exemplars=exemplars))
    return sorted(found, key=lambda point: str(point.attributes))


@pytest.mark.parametrize("temporality", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
def test_readers_get_what_the_sdk_would_have_collected(temporality: AggregationTemporality) -> None:
    reader = InMemoryMetricReader(preferred_temporality={SdkHistogram: temporality})
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("x")
    theirs = meter.create_histogram("theirs", "s", "text", explicit_bucket_boundaries_advisory=BOUNDS)
    meter.create_counter("something").add(1)
    spreads = Spreads()
    spreads.reader(AggregationTemporality.CUMULATIVE)
    complete = spreads.reader(temporality)
    ours = spreads.make("ours", "s", "text", BOUNDS, "label")
    for values in ROUNDS:
        for value, span, label in values:
            ours.record(value, span, label)
            context = set_span_in_context(NonRecordingSpan(span.context))
            theirs.record(value, {"label": label} if label else {}, context=context)
        data = reader.get_metrics_data()
        assert data is not None
        completed = complete(data)
        assert points(metrics(completed), "ours") == points(metrics(completed), "theirs")
        assert "something" in {metric.name for metric in metrics(completed)}


def test_what_one_reader_took_is_still_there_for_another() -> None:
    reader = InMemoryMetricReader()
    MeterProvider([reader], shutdown_on_exit=False).get_meter("x").create_counter("something").add(1)
    spreads = Spreads()
    both = [spreads.reader(AggregationTemporality.DELTA) for _ in range(2)]
    ours = spreads.make("ours", "s", "text", BOUNDS)
    ours.record(3.0, SAMPLED)
    data = reader.get_metrics_data()
    assert data is not None
    for complete in both:
        assert [(point.count, len(point.exemplars)) for point in points(metrics(complete(data)), "ours")] == [(1, 1)]
        assert points(metrics(complete(data)), "ours") == []
