"""Make the violations that validation yields: paths below `spec`, and limits with what was received."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.errors import FieldReason, FieldViolation


def invalid(field: str, description: str, reason: FieldReason = "INVALID_FIELD") -> FieldViolation:
    """Return a violation; `field` is the path below `spec`."""
    return FieldViolation(f"spec.{field}", description, reason)


def limit(field: str, got: int, most: int | None, unit: str) -> Iterator[FieldViolation]:
    """Yield a violation where there are more than `most`; None is no limit."""
    if most is not None and got > most:
        yield invalid(field, f"must have at most {most} {unit}, got {got}", "LIMIT_EXCEEDED")
