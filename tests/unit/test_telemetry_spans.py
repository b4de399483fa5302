"""Spans of ours against the SDK's: what is sent is the same, and so is who is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags
from penstock.telemetry.encoding import encode
from penstock.telemetry.span import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Kept(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def tracing() -> tuple[Tracing, TracerProvider, Kept]:
    kept = Kept()
    provider = TracerProvider(resource=Resource({"service.name": "us"}), shutdown_on_exit=False)
    provider.add_span_processor(kept)
    return Tracing(provider, kept, "ours"), provider, kept


def caller(flags: str) -> Sequence[tuple[str, str | bytes]]:
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"), ("tracestate", "vendor=1"), ("x-bin", b"\0"))


def test_what_is_sent_is_what_the_sdk_would_send() -> None:
    ours, provider, kept = tracing()
    server = ours.start("call", caller("01"), {"port": 1, "one": True, "float": 1.0, "number": 1})
    child = server.child("part", {"reasons": ["stop", "length"], "long": "x" * 100})
    child.event("first", {"index": 0})
    child.fail("CANCELLED")
    child.end()
    server.fail("BAD", "a description")
    server.link(SpanContext(1, 2, True, TraceFlags(1)), {"kind": "resumed"})
    server.child("linkless").end()
    provider.get_tracer("theirs").start_span("foreign", attributes={"a": 1}).end()
    server.end()
    sent, sdk = encode(kept.spans), encode_spans(kept.spans)
    scopes = {scope.scope.name: scope.spans for scope in sent.resource_spans[0].scope_spans}
    expected = {scope.scope.name: scope.spans for scope in sdk.resource_spans[0].scope_spans}
    assert len(sent.resource_spans) == 1
    assert sent.resource_spans[0].resource == sdk.resource_spans[0].resource
    assert scopes.keys() == expected.keys() == {"ours", "theirs"}
    for scope, spans in expected.items():
        assert sorted(map(str, scopes[scope])) == sorted(map(str, spans))


def test_a_call_carries_its_callers_trace_on() -> None:
    ours, _, kept = tracing()
    server = ours.start("call", caller("01"), {})
    version, trace, span, flags = server.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span == f"{server.context.span_id:016x}" != PARENT
    assert server.headers["tracestate"] == server.child("part").headers["tracestate"] == "vendor=1"
    server.end()
    assert kept.spans[0].parent is not None
    assert f"{kept.spans[0].parent.span_id:016x}" == PARENT


def test_who_is_not_sampled_is_not_told_and_says_so_further_down() -> None:
    ours, _, kept = tracing()
    with ours.start("call", caller("00"), {}) as server, server.child("part") as part:
        part.set({"a": 1})
        assert not part.is_recording
        assert part.headers["traceparent"].split("-")[1::2] == [TRACE, "00"]
        assert part.headers["tracestate"] == "vendor=1"
    assert kept.spans == []


def test_the_standard_sampler_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    ours, _, kept = tracing()
    for _ in range(400):
        with ours.start("call", (), {}) as server:
            assert int(server.headers["traceparent"][-2:], 16) & 1 == server.is_recording
    assert 50 < len(kept.spans) < 150


def test_without_a_provider_only_the_callers_trace_goes_on() -> None:
    off = Tracing(None, None, "ours")
    assert off.start("call", caller("01"), {}).child("part").headers["traceparent"] == f"00-{TRACE}-{PARENT}-01"
    assert off.start("call", (), {}).headers == {}


def test_long_values_are_cut_where_the_operator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    ours, _, kept = tracing()
    with ours.start("call", (), {"text": "a long one", "number": 123456, "list": ("a long one",)}):
        pass
    assert dict(kept.spans[0].attributes or {}) == {"text": "a lon", "number": 123456, "list": ("a lon",)}


def test_what_comes_after_the_end_is_lost() -> None:
    ours, _, kept = tracing()
    server = ours.start("call", (), {})
    server.end()
    server.set({"late": 1})
    server.end()
    server.child("late").end()
    assert [dict(span.attributes or {}) for span in kept.spans] == [{}]
