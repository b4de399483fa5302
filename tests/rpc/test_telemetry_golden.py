"""Compare a fixed run's OpenMetrics scrape and OTLP output with the committed files in tests/data/telemetry.

Times, ids and measured durations are left out; everything else that a dashboard or a collector may rely on is compared:
names, units, descriptions, labels, buckets, counts of tokens, exemplars, spans with their attributes, events, links and
status, resource and scope. `python -m tests.rpc.test_telemetry_golden` writes the files anew; read the diff.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from penstock.engine.expert_load import sampler
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, routing_pb2, routing_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.rpc.otlp import Collector, attributes, collecting
from tests.rpc.test_stream import spec, stream
from tests.rpc.test_telemetry_metrics import scrape, serving, telling

GOLDEN = Path(__file__).parents[1] / "data" / "telemetry"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
OURS = ("penstock_", "gen_ai_", "rpc_", "target")
# The SDK's metrics about itself are not ours to hold.
SDK_SCOPE = "opentelemetry-sdk"
# What differs from run to run.
VARYING = {"server.port", "service.instance.id", "service.version", "process.pid", "telemetry.sdk.version"}
MEASURED = {
    *("penstock_event_loop_lag_seconds", "penstock.event_loop.lag"),
    *("penstock_event_loop_busy_ratio", "penstock.event_loop.busy"),
}
REPLY = Reply(thought="a thought of some length", answer="an answer that goes on", step_seconds=0.001)
TRACE_HEADERS = (
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "vendor=1"),
)
UNSAMPLED = (("traceparent", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),)


async def fixed_calls(channel: grpc.aio.Channel) -> None:
    """Make one call of each kind, one after the other."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
    sampling = pb.SamplingConfig(temperature=0.5, top_p=0.9, top_k=20, seed=7)

    async def call(asked: pb.GenerationSpec, *metadata: tuple[str, str]) -> None:
        request = pb.StreamGenerateRequest(spec=asked)
        assert [reply async for reply in stub.StreamGenerate(request, metadata=metadata)]

    await call(spec(thinking=thinking, sampling=sampling), *TRACE_HEADERS)
    await call(spec(thinking=thinking), *UNSAMPLED)
    await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=5)))
    await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream(channel, spec(output=pb.OutputConfig(max_output_tokens=-1)))
    resumable = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(thinking=thinking), resumable=True))
    started = (await resumable.read()).event.started
    while await resumable.read() is not grpc.aio.EOF:
        pass
    resume = pb.ResumeRequest(generation_id=started.generation_id, resume_token=started.resume_token, last_sequence=1)
    assert [event async for event in stub.Resume(resume)]
    routing = routing_pb2_grpc.RoutingServiceStub(channel)
    for _ in range(2):
        await routing.GetExpertLoad(routing_pb2.GetExpertLoadRequest())


def _lines(values: list[Any]) -> list[str]:
    return sorted(json.dumps(value, sort_keys=True) for value in values)


def scraped(text: str) -> dict[str, Any]:
    """Every family of ours: kind, unit, help, and its series. Of durations only the number of values and the bounds."""
    return {
        family.name: {
            "type": family.type,
            "unit": family.unit,
            "help": family.documentation,
            "samples": _lines(_samples(family)),
        }
        for family in text_string_to_metric_families(text)
        if family.name.startswith(OURS)
    }


def _samples(family: Any) -> list[Any]:
    is_measured = family.type == "histogram" and family.name.endswith("_seconds")
    found: list[Any] = []
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        labels = {k: "" if k.replace("_", ".") in VARYING else v for k, v in sample.labels.items()}
        varies = family.name in MEASURED or (is_measured and labels.get("le") != "+Inf" and "_count" not in sample.name)
        exemplar = sorted(sample.exemplar.labels) if sample.exemplar and not is_measured else []
        found.append([sample.name, labels, None if varies else sample.value, exemplar])
    if is_measured:
        exemplars = [s.exemplar.labels for s in family.samples if s.exemplar]
        found.append(["exemplars", sorted({label for labels in exemplars for label in labels})])
    return found


def exported(collector: Collector) -> dict[str, Any]:
    """Return what the collector was sent."""
    return {
        "resource": _plain(collector.resource),
        "scopes": sorted(scope for scope in collector.scopes if scope[1] != SDK_SCOPE),
        "metrics": {
            name: _metric(metric)
            for name, metric in sorted(collector.metrics.items())
            if not name.startswith("otel.sdk.")
        },
        "traces": _traces(collector),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind or "")
    is_measured = kind == "histogram" and metric.unit == "s"
    told = {"kind": kind, "unit": metric.unit, "description": metric.description}
    if kind != "gauge":
        told["temporality"] = data.aggregation_temporality
    if kind == "sum":
        told["is_monotonic"] = data.is_monotonic
    points = []
    for point in data.data_points:
        one: dict[str, Any] = {"attributes": _plain(point)}
        if kind == "histogram":
            one |= {"count": point.count, "bounds": list(point.explicit_bounds), "exemplars": bool(point.exemplars)}
            if not is_measured:
                one |= {"sum": point.sum, "min": point.min, "max": point.max, "counts": list(point.bucket_counts)}
        elif metric.name not in MEASURED:
            one["value"] = getattr(point, point.WhichOneof("value"))
        points.append(one)
    return {**told, "points": _lines(points)}


def _plain(holder: Any) -> dict[str, Any]:
    return {key: _steady(key, value) for key, value in sorted(attributes(holder).items())}


def _steady(key: str, value: Any) -> Any:
    if key in VARYING or key in ("gen_ai.response.id", "gen_ai.conversation.id"):
        return type(value).__name__
    is_measured = isinstance(value, float) and ("second" in key or "time" in key)
    return "seconds" if is_measured else value


def _traces(collector: Collector) -> list[Any]:
    """Trees, in the order in which their calls began."""
    by_id = {span.span_id: span for span in collector.spans}
    roots = [span for span in collector.spans if span.parent_span_id not in by_id]
    return [_tree(collector, by_id, span) for span in sorted(roots, key=lambda s: s.start_time_unix_nano)]


def _tree(collector: Collector, by_id: dict[bytes, Span], span: Span) -> dict[str, Any]:
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    return {
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind),
        "parent": "remote" if span.parent_span_id and span.parent_span_id not in by_id else "",
        "sampled_and_remote": span.flags & 0x301,
        "trace_state": span.trace_state,
        "attributes": _plain(span),
        "events": [[event.name, _plain(event)] for event in span.events],
        "links": [[by_id[link.span_id].name, _plain(link)] for link in span.links],
        "status": [span.status.code, span.status.message],
        "children": [_tree(collector, by_id, child) for child in collector.children(span)],
    }


async def fixed_run() -> dict[str, Any]:
    with collecting() as collector, pytest.MonkeyPatch.context() as patch:
        # One export, at the end: an earlier one would take exemplars with it.
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
        # Experts are counted when asked for; by itself, a run that takes longer would count them once more.
        patch.setattr(sampler, "_EVERY_SECONDS", 3600.0)
        async with (
            telling(prometheus_listen=":0", otlp="grpc", otlp_endpoint=collector.endpoint) as telemetry,
            serving(telemetry.hooks, REPLY) as channel,
        ):
            await fixed_calls(channel)
            text = await scrape(telemetry, OPENMETRICS)
        return {"openmetrics": scraped(text), "otlp": exported(collector)}


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


@pytest.mark.slow
async def test_a_fixed_run_is_told_as_the_golden_files_say() -> None:
    for name, value in (await fixed_run()).items():
        assert json.loads(_text(value)) == json.loads((GOLDEN / f"{name}.json").read_text())


if __name__ == "__main__":
    for file, content in asyncio.run(fixed_run()).items():
        (GOLDEN / f"{file}.json").write_text(_text(content))
