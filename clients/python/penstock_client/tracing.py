"""Client spans and trace context, if OpenTelemetry's API is installed; otherwise nothing.

The attribute names are those of opentelemetry-semantic-conventions 0.66b2, as in the service; a test compares them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock_client.channel import port_of

if TYPE_CHECKING:
    from penstock_client.errors import PenstockError
    from penstock_client.response import Response


def _installed() -> tuple[Any, Any] | None:
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        return None
    return propagate, trace


_OTEL = _installed()
Metadata = Sequence[tuple[str, str]]

CONTENT_SWITCH = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Environment variable of OpenTelemetry's GenAI instrumentations, which record content only where it is set."""
_ON = frozenset({"true", "span_only", "span_and_event"})
_MAX_CHARACTERS = 32_768  # of an attribute, as in the service: collectors refuse much larger ones


def records_content() -> bool:
    """Return whether spans record the arguments and results of tools: off unless `CONTENT_SWITCH` says so."""
    return os.environ.get(CONTENT_SWITCH, "").strip().lower() in _ON


def server_attributes(target: str) -> dict[str, str | int]:
    """Return the `server.*` attributes of a gRPC target.

    The target is of a form such as `host:50051`, `[::1]:50051`, `dns:///host:50051` or `unix:/path`.
    """
    if target.startswith("unix:"):
        return {"server.address": target.removeprefix("unix:")}
    host, _, port = target.rpartition("/")[2].rpartition(":")
    number = port_of(port)
    return {"server.address": host.strip("[]"), "server.port": number} if host and number else {}


class ToolSpan:
    """The span of one execution of a tool, as a context manager.

    Arguments and result are recorded where `records_content`, the first 32,768 characters of each.

    Args:
        name: Name of the tool.
        call_id: Id of the call.
        arguments_json: Arguments of the call.
    """

    def __init__(self, name: str, call_id: str, arguments_json: str = "") -> None:
        self._span: Any = None
        self._current: Any = None
        self._records_content = records_content()
        if _OTEL is None:
            return
        trace = _OTEL[1]
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.type": "function",
        }
        if self._records_content:
            attributes["gen_ai.tool.call.arguments"] = arguments_json[:_MAX_CHARACTERS]
        self._span = trace.get_tracer("penstock_client").start_span(
            f"execute_tool {name}", kind=trace.SpanKind.INTERNAL, attributes=attributes
        )

    def __enter__(self) -> Self:
        if self._span is not None and _OTEL is not None:
            self._current = _OTEL[1].use_span(self._span, record_exception=False, set_status_on_exception=False)
            self._current.__enter__()
        return self

    def returned(self, result: str) -> None:
        """Record what the model is given as the result, where content is recorded."""
        if self._span is not None and self._records_content:
            self._span.set_attribute("gen_ai.tool.call.result", result[:_MAX_CHARACTERS])

    def failed(self, error: BaseException) -> None:
        """Record that the tool failed: the type of the exception, not its text."""
        if self._span is not None and _OTEL is not None:
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(_OTEL[1].StatusCode.ERROR)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if error is not None:
            self.failed(error)
        self._current.__exit__(None, None, None)
        self._span.end()


class CallSpan:
    """The client span of one call, over all its connections.

    Attributes:
        metadata: gRPC metadata of the call, with the trace context for the server.
    """

    def __init__(self, method: str, metadata: Metadata, target: str) -> None:
        self.metadata = tuple(metadata)
        self._span: Any = None
        if _OTEL is None:
            return
        propagate, trace = _OTEL
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **server_attributes(target)}
        self._span = trace.get_tracer("penstock_client").start_span(
            method, kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        self.metadata += tuple((key.lower(), value) for key, value in carrier.items())

    def reconnected(self, last_sequence: int) -> None:
        """Record that the stream is resumed after the event `last_sequence`."""
        if self._span is not None:
            self._span.add_event("reconnect", {"penstock.last_sequence": last_sequence})

    def end(self, response: Response | None = None, failure: PenstockError | None = None) -> None:
        """End the span; do nothing if it has ended."""
        span, self._span = self._span, None
        if span is None or _OTEL is None:
            return
        if response is not None and response.usage is not None:
            span.set_attribute("gen_ai.response.model", response.model)
            span.set_attribute("gen_ai.response.id", response.generation_id)
            span.set_attribute("gen_ai.usage.input_tokens", response.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", response.usage.output_tokens)
        code = failure.code.name if failure and failure.code else ""
        if code or failure is None:
            span.set_attribute("rpc.response.status_code", code or "OK")
        if failure is not None:
            span.set_attribute("error.type", failure.reason or code or "BROKEN_STREAM")
            span.set_status(_OTEL[1].StatusCode.ERROR)
        span.end()
