"""Spans of ours: plain values until the end. The SDK's own cost ten times as much, and a call has seven.

    Tracing --start()--> the call's SERVER span --child()--> its parts

Whether a call is told is asked once, of the provider's sampler; its parts follow. What ended goes to the provider's
processor as the SDK's ReadableSpan, so that exporters and vLLM's spans beside ours see nothing unusual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time_ns
from types import TracebackType
from typing import TypeAlias

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.errors import PenstockError
from penstock.telemetry import names

Value: TypeAlias = str | bool | int | float | Sequence[str]
_NOTHING: Mapping[str, Value] = {}
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_W3C = TraceContextTextMapPropagator()


def error_type(error: BaseException) -> str:
    """Bounded: a reason of ours, or the name of an exception's class. Cut short (the client left) is one of its own."""
    if isinstance(error, PenstockError):
        return error.reason
    return type(error).__name__ if isinstance(error, Exception) else "cancelled"


def carried_context(headers: Mapping[str, str]) -> SpanContext:
    """Of W3C headers; invalid where they say nothing."""
    return get_current_span(_W3C.extract(dict(headers))).get_span_context()


class Span:
    """One that is not told. It takes everything, keeps nothing, and carries the trace's ids on."""

    __slots__ = ("context",)
    is_recording = False

    def __init__(self, context: SpanContext) -> None:
        self.context = context

    @property
    def headers(self) -> dict[str, str]:
        context = self.context
        if not context.is_valid:
            return {}
        told = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
        if context.trace_state:
            told["tracestate"] = context.trace_state.to_header()
        return told

    def child(self, name: str, attributes: Mapping[str, Value] = _NOTHING, links: Sequence[Link] = ()) -> Span:
        return self

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Value]) -> None: ...

    def link(self, to: SpanContext, attributes: Mapping[str, Value]) -> None: ...

    def fail(self, kind: str, description: str | None = None) -> None:
        """Did not end well. A description only where it is ours: other exceptions' texts may hold prompt or output."""

    def end(self) -> None: ...

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error_type(error))
        self.end()


class Ended(ReadableSpan):
    """One of ours, as exporters get it."""


class _Told(Span):
    __slots__ = ("_attributes", "_began", "_events", "_kind", "_links", "_name", "_parent", "_status", "_tracing")
    is_recording = True

    def __init__(
        self,
        tracing: Tracing,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Value],
        links: Sequence[Link] = (),
    ) -> None:
        self.context = context
        self._tracing: Tracing | None = tracing
        self._name = name
        self._parent = parent
        self._kind = kind
        self._attributes = dict(attributes)
        self._events: list[Event] = []
        self._links = list(links)
        self._status = _UNSET
        self._began = time_ns()

    def child(self, name: str, attributes: Mapping[str, Value] = _NOTHING, links: Sequence[Link] = ()) -> Span:
        tracing, own = self._tracing, self.context
        if tracing is None:
            return Span(own)
        context = SpanContext(own.trace_id, tracing.new_span_id(), False, own.trace_flags, own.trace_state)
        return _Told(tracing, name, context, own, SpanKind.INTERNAL, attributes, links)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._attributes.update(attributes)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        self._events.append(Event(name, attributes))

    def link(self, to: SpanContext, attributes: Mapping[str, Value]) -> None:
        self._links.append(Link(to, attributes))

    def fail(self, kind: str, description: str | None = None) -> None:
        self._attributes[names.ERROR_TYPE] = kind
        self._status = Status(StatusCode.ERROR, description) if description else _ERROR

    def end(self) -> None:
        tracing, self._tracing = self._tracing, None
        if tracing is None:
            return
        ended = Ended(
            self._name,
            self.context,
            self._parent,
            tracing.resource,
            tracing.clipped(self._attributes),
            self._events,
            self._links,
            self._kind,
            None,
            self._status,
            self._began,
            time_ns(),
            tracing.scope,
        )
        # An export thread reads them from here on: what comes late is lost, and must not get in its way.
        self._attributes, self._events, self._links = {}, [], []
        tracing.ended(ended)


class Tracing:
    """Where a call's spans begin and go. No provider: nothing is told, and the caller's trace is carried on."""

    def __init__(self, provider: TracerProvider | None, processor: SpanProcessor | None, scope: str) -> None:
        self.scope = InstrumentationScope(scope)
        self._fields = frozenset(propagate.get_global_textmap().fields)
        self._provider = provider
        if provider is not None and processor is not None:
            self.resource = provider.resource
            self.new_span_id = provider.id_generator.generate_span_id
            self.ended = processor.on_end
        self._longest = SpanLimits().max_span_attribute_length

    def start(self, name: str, metadata: Sequence[tuple[str, str | bytes]], attributes: Mapping[str, Value]) -> Span:
        above, parent = Context(), INVALID_SPAN_CONTEXT
        if any(key in self._fields for key, _ in metadata):
            above = propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
            parent = get_current_span(above).get_span_context()
        provider = self._provider
        if provider is None:
            return Span(parent)
        ids = provider.id_generator
        if parent.is_valid:
            trace_id, is_random = parent.trace_id, parent.trace_flags.random_trace_id
        else:
            trace_id, is_random = ids.generate_trace_id(), ids.is_trace_id_random()
        asked = provider.sampler.should_sample(above, trace_id, name, SpanKind.SERVER, attributes)
        is_sampled = asked.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED * is_sampled | TraceFlags.RANDOM_TRACE_ID * is_random)
        context = SpanContext(trace_id, self.new_span_id(), False, flags, asked.trace_state)
        if not is_sampled:
            return Span(context)
        told = {**attributes, **(asked.attributes or {})}
        return _Told(self, name, context, parent if parent.is_valid else None, SpanKind.SERVER, told)

    def clipped(self, attributes: dict[str, Value]) -> dict[str, Value]:
        """By OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT; prompts and outputs are long."""
        most = self._longest
        return attributes if most is None else {key: _cut(value, most) for key, value in attributes.items()}


def _cut(value: Value, most: int) -> Value:
    if isinstance(value, str):
        return value[:most]
    return tuple(item[:most] for item in value) if isinstance(value, Sequence) else value
