"""The client's package stays light, and its spans tell what a call was."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from penstock.telemetry.otel import names
from penstock_client import Response, Unavailable, tracing
from penstock_proto.v1 import generation_pb2 as pb

ROOT = Path(__file__).parents[2]
_PROBE = """
import sys
import penstock_client
print(len(sys.modules))
print(*(name for name in sys.modules if name.partition(".")[0] in ("penstock", "vllm", "torch", "transformers")))
"""


def test_it_needs_no_engine_and_few_packages() -> None:
    project = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 5
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=60)
    count, _, loaded = probe.stdout.partition("\n")
    assert not loaded.strip()
    assert int(count) < 500, "an import that pulls in so many modules is slow"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert tracing._OTEL is not None
    monkeypatch.setattr(tracing._OTEL[1], "get_tracer", provider.get_tracer)
    return exporter


def test_a_call_has_a_span_and_carries_its_context(spans: InMemorySpanExporter) -> None:
    call = tracing.CallSpan(
        "penstock.v1.GenerationService/StreamGenerate", [("authorization", "Bearer k")], "dns:///gpu-1:50051"
    )
    call.reconnected(7)
    response = Response()
    response.generation_id = "g1"
    response.finish(pb.GenerationFinished(usage=pb.Usage(prompt_tokens=3, output_tokens=5)))
    call.end(response)
    call.end(response)
    [span] = spans.get_finished_spans()
    assert span.context
    assert span.attributes is not None
    assert dict(call.metadata)["authorization"] == "Bearer k"
    assert f"{span.context.trace_id:032x}-{span.context.span_id:016x}" in dict(call.metadata)["traceparent"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes[names.RPC_SYSTEM] == "grpc"
    assert span.attributes[names.RPC_METHOD] == "penstock.v1.GenerationService/StreamGenerate"
    assert span.attributes[names.RPC_STATUS] == "OK"
    assert (span.attributes[names.SERVER_ADDRESS], span.attributes[names.SERVER_PORT]) == ("gpu-1", 50051)
    public = {value for value in vars(names).values() if isinstance(value, str)}
    assert set(span.attributes) <= public, "another convention than the service's"
    assert [event.name for event in span.events] == ["reconnect"]


def test_a_failure_is_the_spans_status(spans: InMemorySpanExporter) -> None:
    tracing.CallSpan("a/b", (), "unix:/run/penstock").end(failure=Unavailable("gone", code=grpc.StatusCode.UNAVAILABLE))
    [span] = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes[names.ERROR_TYPE] == span.attributes[names.RPC_STATUS] == "UNAVAILABLE"
    assert span.attributes[names.SERVER_ADDRESS] == "/run/penstock"
    assert names.SERVER_PORT not in span.attributes
    assert not span.status.is_ok


def test_without_opentelemetry_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_OTEL", None)
    call = tracing.CallSpan("a/b", [("x", "y")], "x:1")
    assert call.metadata == (("x", "y"),)
    call.reconnected(1)
    call.end()
