"""Export log lines by OTLP, each with its call."""

from __future__ import annotations

import logging

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

from penstock.telemetry.logging import call_fields, frames_of

_SEVERITY = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)


class OtlpHandler(logging.Handler):
    """Emit the root logger's lines and vLLM's. Queued: it never waits for a collector."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        try:
            self._emit(record)
        except Exception:
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        fields = call_fields(record)
        attributes = {key: value for key, value in fields.items() if key not in ("trace_id", "span_id")}
        if record.exc_info and record.exc_info[0] is not None:
            attributes |= {"exception.type": record.exc_info[0].__name__, "exception.stacktrace": frames_of(record)}
        severity = next((s for level, s in _SEVERITY if record.levelno >= level), SeverityNumber.DEBUG)
        context = None
        if "trace_id" in fields:
            span = SpanContext(int(fields["trace_id"], 16), int(fields["span_id"], 16), False, TraceFlags(1))
            context = set_span_in_context(NonRecordingSpan(span))
        self._provider.get_logger(record.name).emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                context=context,
                severity_number=severity,
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes=attributes,
            )
        )
