"""What spans and counts are written with, and how a span says that it did not end well."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.trace import Span, Status, StatusCode, Tracer

from penstock.errors import PenstockError
from penstock.telemetry import names
from penstock.telemetry.instruments import Instruments


@dataclass(frozen=True, slots=True)
class Recorder:
    tracer: Tracer
    instruments: Instruments
    engine_joins: bool
    records_content: bool


def error_type(error: BaseException) -> str:
    """Bounded: a reason of ours, or the name of an exception's class."""
    return error.reason if isinstance(error, PenstockError) else type(error).__name__


def fail(span: Span, error: BaseException) -> None:
    """Marks a span that did not end well. Cut short (the client left, the deadline passed) is not well either."""
    span.set_attribute(names.ERROR_TYPE, error_type(error) if isinstance(error, Exception) else "cancelled")
    span.set_status(Status(StatusCode.ERROR))
