"""Wrap the SDK's spans, with what may be recorded on them.

    Tracing --start()--> the call's SERVER span --child()--> its parts

The sampler decides per call. The children of a call that is not sampled are that call's own span, which records
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TypeAlias

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace.propagation import get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.errors import PenstockError
from penstock.telemetry.otel import names

Value: TypeAlias = str | bool | int | float | Sequence[str]
_W3C = TraceContextTextMapPropagator()


def error_type(error: BaseException) -> str:
    """Return a bounded name: a reason of ours, an exception's class, or `cancelled` (the client left)."""
    if isinstance(error, PenstockError):
        return error.reason
    return type(error).__name__ if isinstance(error, Exception) else "cancelled"


def context_of(headers: Mapping[str, str]) -> SpanContext:
    """Return the span context in W3C headers, invalid where they have none."""
    return get_current_span(_W3C.extract(dict(headers), Context())).get_span_context()


class Span:
    """Hold one span. After its end, and where it is not sampled, it accepts everything and records nothing.

    It never passes an exception to the SDK, which would record the exception's text: that may contain prompt or output.
    `in_context` holds the span, for the exemplars of metrics.
    """

    __slots__ = ("_span", "_tracer", "in_context")

    def __init__(self, tracer: Tracer, span: SdkSpan) -> None:
        self._tracer = tracer
        self._span = span
        self.in_context = set_span_in_context(span, Context())

    @property
    def is_recording(self) -> bool:
        """Return whether the span is sampled and has not ended."""
        return self._span.is_recording()

    @property
    def context(self) -> SpanContext:
        """Return the trace and span ids."""
        return self._span.get_span_context()

    @property
    def headers(self) -> dict[str, str]:
        """Return W3C headers with which another process continues the trace; empty without one."""
        headers: dict[str, str] = {}
        _W3C.inject(headers, self.in_context)
        return headers

    def child(
        self, name: str, attributes: Mapping[str, Value] | None = None, links: Sequence[Link] | None = None
    ) -> Span:
        """Start a child span."""
        if not self._span.is_recording():
            return self
        span = self._tracer.start_span(name, self.in_context, attributes=attributes, links=links)
        return Span(self._tracer, span)

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Set attributes."""
        if self._span.is_recording():
            self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Add an event."""
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def link(self, to: SpanContext, attributes: Mapping[str, Value]) -> None:
        """Add a link to another span."""
        if self._span.is_recording():
            self._span.add_link(to, attributes)

    def fail(self, kind: str, description: str | None = None) -> None:
        """Mark the span as failed. Describe our own errors only: other texts may contain prompt or output."""
        if self._span.is_recording():
            self._span.set_attribute(names.ERROR_TYPE, kind)
            self._span.set_status(Status(StatusCode.ERROR, description))

    def end(self) -> None:
        """End the span."""
        if self._span.is_recording():
            self._span.end()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error_type(error))
        self.end()


class Tracing:
    """Start the span of each call. With a NoOpTracer nothing is traced, and the caller's trace is passed on."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start(self, name: str, metadata: Sequence[tuple[str, str | bytes]], attributes: Mapping[str, Value]) -> Span:
        """Start the SERVER span of a call, as a child of the caller's span where its metadata has one."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        parent = propagate.extract(carrier, Context())
        return Span(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER, attributes))
