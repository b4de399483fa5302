"""Spans, sampling, and what must not reach the SDK, on the SDK's own in-memory exporter."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanContext, StatusCode, TraceFlags
from penstock.telemetry.otel.sampling import sampler_of_calls
from penstock.telemetry.otel.span import Tracing, error_type

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
# The SDK's ratio sampler reads the lower half of a trace id: this one is always, that one never below a ratio.
LOWEST, HIGHEST = "f" * 16 + "0" * 15 + "1", "f" * 32
CALLS = 400


def tracing(ratio: float | None = None, *, trusts_callers: bool = False) -> tuple[Tracing, InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler_of_calls(ratio, trusts_callers=trusts_callers), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return Tracing(provider.get_tracer("ours")), kept


def caller(flags: str, trace: str = TRACE) -> Sequence[tuple[str, str | bytes]]:
    return (("traceparent", f"00-{trace}-{PARENT}-{flags}"), ("tracestate", "vendor=1"), ("x-bin", b"\0"))


def sampled(ratio: float | None, metadata: Sequence[tuple[str, str | bytes]] = (), *, trusts_callers: bool) -> int:
    """Return how many of CALLS calls are traced; each says so further down."""
    ours, kept = tracing(ratio, trusts_callers=trusts_callers)
    for _ in range(CALLS):
        with ours.start("call", metadata, {}) as server:
            assert int(server.headers["traceparent"][-2:], 16) & 1 == server.is_recording
            assert server.child("part").is_recording == server.is_recording
    return len(kept.get_finished_spans())


def test_a_call_carries_its_callers_trace_on() -> None:
    ours, kept = tracing()
    server = ours.start("call", caller("01"), {})
    version, trace, span, flags = server.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span == f"{server.context.span_id:016x}" != PARENT
    assert server.headers["tracestate"] == server.child("part").headers["tracestate"] == "vendor=1"
    server.end()
    (told,) = kept.get_finished_spans()
    assert told.parent is not None
    assert f"{told.parent.span_id:016x}" == PARENT


def test_who_is_not_sampled_is_not_told_and_says_so_further_down() -> None:
    ours, kept = tracing()
    with ours.start("call", caller("00"), {}) as server, server.child("part") as part:
        part.set({"a": 1})
        assert not part.is_recording
        assert part.headers["traceparent"].split("-")[1::2] == [TRACE, "00"]
        assert part.headers["tracestate"] == "vendor=1"
    assert kept.get_finished_spans() == ()


@pytest.mark.parametrize("flags", ["00", "01"])
@pytest.mark.parametrize("trace", [TRACE, LOWEST, HIGHEST])
def test_a_stranger_cannot_have_its_calls_traced(flags: str, trace: str) -> None:
    assert sampled(0.0, caller(flags, trace), trusts_callers=False) == 0
    share = sampled(0.5, caller(flags, trace), trusts_callers=False)
    # 400 draws at one half: ten standard deviations to either side.
    assert share == 0 if flags == "00" else 100 < share < 300


def test_calls_without_a_parent_are_traced_by_the_ratio() -> None:
    for trusts_callers in (False, True):
        assert sampled(None, trusts_callers=trusts_callers) == CALLS
        assert sampled(1.0, trusts_callers=trusts_callers) == CALLS
        assert 100 < sampled(0.5, trusts_callers=trusts_callers) < 300
        assert sampled(0.0, trusts_callers=trusts_callers) == 0


def test_a_trusted_callers_flag_decides() -> None:
    assert sampled(0.0, caller("01"), trusts_callers=True) == CALLS
    assert sampled(1.0, caller("00"), trusts_callers=True) == 0


def test_the_standard_sampler_holds_where_no_ratio_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    assert 100 < sampled(None, trusts_callers=False) < 300
    assert sampled(None, caller("01"), trusts_callers=False) == CALLS
    assert sampled(0.0, trusts_callers=False) == 0


def test_without_a_provider_only_the_callers_trace_goes_on() -> None:
    off = Tracing(NoOpTracer())
    assert off.start("call", caller("01"), {}).child("part").headers["traceparent"] == f"00-{TRACE}-{PARENT}-01"
    assert off.start("call", (), {}).headers == {}


def test_long_values_are_cut_where_the_operator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    ours, kept = tracing()
    with ours.start("call", (), {"text": "a long one", "number": 123456, "list": ("a long one",)}):
        pass
    attributes = dict(kept.get_finished_spans()[0].attributes or {})
    assert attributes == {"text": "a lon", "number": 123456, "list": ("a lon",)}


def test_the_text_of_an_exception_is_not_recorded() -> None:
    ours, kept = tracing()
    with (
        pytest.raises(ValueError, match="a prompt"),
        ours.start("call", (), {}) as server,
        server.child("part", {"a": 1}),
    ):
        raise ValueError("a prompt")
    told = kept.get_finished_spans()
    assert [span.name for span in told] == ["part", "call"]
    for span in told:
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        assert (span.attributes or {})["error.type"] == error_type(ValueError()) == "ValueError"
        assert not span.events
        assert "a prompt" not in span.to_json()


def test_what_comes_after_the_end_is_lost_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    ours, kept = tracing()
    server = ours.start("call", (), {})
    server.end()
    with caplog.at_level(logging.DEBUG):
        server.set({"late": 1})
        server.event("late", {})
        server.link(SpanContext(1, 2, True, TraceFlags(1)), {})
        server.fail("LATE")
        server.end()
        with server.child("late"):
            pass
    (told,) = kept.get_finished_spans()
    assert (dict(told.attributes or {}), told.events, told.links) == ({}, (), ())
    assert told.status.status_code is StatusCode.UNSET
    assert caplog.records == []
