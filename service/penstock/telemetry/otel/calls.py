"""Trace calls: a SERVER span for each, and counts of its errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.trace import Link

from penstock.errors import PenstockError
from penstock.telemetry.hooks import CallHooks, GenerationHooks, Headers, ServiceState, TelemetryHooks
from penstock.telemetry.otel import names
from penstock.telemetry.otel.generations import GenerationSpans
from penstock.telemetry.otel.instruments import Instruments
from penstock.telemetry.otel.recorder import Recorder
from penstock.telemetry.otel.span import Span, Tracing, context_of, error_type


class OpenTelemetryHooks(TelemetryHooks):
    """Trace and count what the service does."""

    def __init__(
        self, tracing: Tracing, instruments: Instruments, *, engine_joins: bool = False, records_content: bool = False
    ) -> None:
        self._recorder = Recorder(instruments, engine_joins, records_content)
        self._tracing = tracing
        self._instruments = instruments
        self._server: dict[str, str | int] = {names.RPC_SYSTEM: "grpc"}

    def listening(self, host: str, port: int) -> None:
        """Set the server's address, which spans carry."""
        self._server |= {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallHooks:
        """Start the span of a call."""
        name = method.removeprefix("/")
        span = self._tracing.start(name, metadata, {**self._server, names.RPC_METHOD: name})
        return _CallSpan(self._recorder, span, name)

    def watch_state(self, state: Callable[[], ServiceState]) -> None:
        """Create the gauges of the service's state."""
        self._instruments.watch(state)


class _CallSpan(CallHooks):
    """Trace one RPC."""

    def __init__(self, recorder: Recorder, span: Span, method: str) -> None:
        self._recorder = recorder
        self._span = span
        self._method = method
        self._began = time.monotonic()
        self._generation: GenerationSpans | None = None
        self._caller = ""
        self._label = ""

    @property
    def log_fields(self) -> Mapping[str, str]:
        context = self._span.context
        fields = {"rpc": self._method}
        if context.is_valid:
            fields |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        if self._caller:
            fields["caller"] = self._caller
        if self._generation is not None and self._generation.generation_id:
            fields["generation_id"] = self._generation.generation_id
        return fields

    @property
    def headers(self) -> Headers:
        return self._span.headers

    def generation(
        self, *, model: str, chat: bool, streams: bool, parent_headers: Headers | None = None
    ) -> GenerationHooks:
        links = []
        if parent_headers:
            before = context_of(parent_headers)
            if before.is_valid:
                links.append(Link(before, {names.LINK_KIND: "drained_elsewhere"}))
        self._generation = GenerationSpans(self._recorder, self._span, model, chat=chat, streams=streams, links=links)
        return self._generation

    def caller_is(self, caller_id: str, label: str) -> None:
        self._caller, self._label = caller_id, label
        self._span.set({names.CALLER_ID: caller_id})

    def resumes(self, other: CallHooks) -> None:
        self._link(other, "resumed")

    def steers(self, other: CallHooks) -> None:
        self._link(other, "steered")

    def _link(self, other: CallHooks, kind: str) -> None:
        if isinstance(other, _CallSpan):
            started = other._generation.span if other._generation else other._span
            self._span.link(started.context, {names.LINK_KIND: kind})

    def ended(self, code: str, error: BaseException | None = None) -> None:
        span, instruments = self._span, self._recorder.instruments
        span.set({names.RPC_STATUS: code})
        labels = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: self._method, names.RPC_STATUS: code}
        if error is not None or code != "OK":
            # A cancelled call has no reason of its own; its status tells why it ended.
            kind = error_type(error) if isinstance(error, Exception) else code
            labels[names.ERROR_TYPE] = kind
            span.fail(kind, error.message if isinstance(error, PenstockError) else None)
            if isinstance(error, Exception):
                caller = {names.CALLER_LABEL: self._label} if self._label else {}
                instruments.refusals.add(1, {names.REASON: kind, **caller})
        instruments.rpc_duration.record(time.monotonic() - self._began, labels, span.in_context)
        span.end()
