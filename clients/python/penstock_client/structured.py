"""Answers as objects: `response_format` becomes a JSON schema, and the answer is checked against the same type."""

from __future__ import annotations

import json
from typing import Any

from penstock_client.errors import UnparsableAnswer
from penstock_client.functions import pydantic_for, schema_of


def json_schema_for(kind: object) -> str:
    """Return the JSON schema of a type, as text.

    Raises:
        ImportError: pydantic is not installed.
        TypeError: It is no type.
    """
    if isinstance(kind, dict | str):
        raise TypeError("response_format must be a type, such as a pydantic model; for a schema use json_schema=")
    return json.dumps(schema_of(_adapter(kind)), ensure_ascii=False)


def parse(kind: Any, answer: str, finish_reason: str | None) -> Any:
    """Return the answer as a value of the type.

    Args:
        kind: The type.
        answer: JSON text.
        finish_reason: Why the output ended, for the exception.

    Raises:
        UnparsableAnswer: The answer is not a value of the type.
    """
    adapter = _adapter(kind)
    try:
        return adapter.validate_json(answer)
    except pydantic_for("response_format").ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        name = getattr(kind, "__name__", str(kind))
        why = f"the output ended by {finish_reason}" if finish_reason else "the reply is not complete"
        failure = UnparsableAnswer(f"the answer is no {name}: {len(found)} errors; {why}")
        failure.errors = tuple(found)
    raise failure


def _adapter(kind: object) -> Any:
    pydantic = pydantic_for("response_format")
    try:
        return pydantic.TypeAdapter(kind)
    except pydantic.PydanticSchemaGenerationError:
        raise TypeError(f"response_format must be a type that pydantic knows, got {type(kind).__name__}") from None
