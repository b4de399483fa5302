"""Run as a process of its own: one call inside a CLIENT span. Arguments: the service's address, the collector's URL."""

from __future__ import annotations

import sys

import grpc
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc


def main(address: str, collector: str) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "a-client"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector)))
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="hi")]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=6),
    )
    with (
        provider.get_tracer("client").start_as_current_span("ask", kind=trace.SpanKind.CLIENT),
        grpc.insecure_channel(address) as channel,
    ):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec), metadata=tuple(carrier.items()))
        assert list(call)
    provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
