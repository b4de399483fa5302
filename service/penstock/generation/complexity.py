"""Bound the work that a constraint may cause, by its text only, before anything is compiled.

The check is linear in the text. A constraint that passes may still be too expensive: the engine then tries it in a
sandbox (`Engine.check_constraint`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from penstock.types import StructuredKind, StructuredOutput

MAX_SCHEMA_DEPTH = 64
"""Depth of nested objects and arrays in a JSON schema, as vLLM accepts them; an object in an object is two. Compilers
recurse."""
MAX_NESTED_REPETITIONS = 10_000
"""Product of nested counts, as in `((a{1,50}){1,50}){1,50}`. A single count may have any size, because it is cheap;
with nested counts the ways to match a text multiply, and each is followed at every token."""

_COUNT = re.compile(r"\{ {0,2}(\d{0,10}) {0,2}(?:, {0,2}(\d{0,10}) {0,2})?\}")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)


def too_complex(structured: StructuredOutput) -> str:
    """Return why a constraint is refused; empty where its text is simple enough. See also `schema_fault`."""
    match structured.kind:
        case StructuredKind.JSON_SCHEMA:
            return schema_fault(structured.spec)
        case StructuredKind.REGEX:
            return _repetition_fault(structured.spec)
        case StructuredKind.GRAMMAR:
            return _repetition_fault(structured.spec, quote='"')
        case StructuredKind.TOOL_CALLS:
            tools = structured.tool_calls.tools if structured.tool_calls is not None else ()
            return next((fault for tool in tools if (fault := schema_fault(tool.parameters_json_schema))), "")
        case StructuredKind.CHOICE:
            return ""


def schema_fault(text: str) -> str:
    """Return why a JSON schema is refused, an answer's or a tool's; empty where it is simple enough."""
    if depth_of(text) > MAX_SCHEMA_DEPTH:
        return f"must be nested at most {MAX_SCHEMA_DEPTH} levels deep, got {depth_of(text)}"
    try:
        # Python reads no integers of over 4,300 digits.
        schema = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return ""  # Not JSON: the compiler reports that.
    return next((fault for pattern in _patterns(schema) if (fault := _repetition_fault(pattern))), "")


def _repetition_fault(pattern: str, quote: str = "") -> str:
    if nested_repetitions(pattern, quote) > MAX_NESTED_REPETITIONS:
        got = nested_repetitions(pattern, quote)
        return f"must have nested repetitions of at most {MAX_NESTED_REPETITIONS} in product, got {got}"
    return ""


def depth_of(text: str) -> int:
    """Return the largest number of brackets open at once in JSON text, without those in strings."""
    depth = most = 0
    for bracket in _JSON_STRING.sub("", text):
        if bracket in "[{":
            depth += 1
            most = max(most, depth)
        elif bracket in "]}":
            depth -= 1
    return most


def _patterns(schema: Any) -> Iterator[str]:
    """Yield every regular expression in a JSON schema."""
    if isinstance(schema, list):
        for entry in schema:
            yield from _patterns(entry)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        if isinstance(schema.get("patternProperties"), dict):
            yield from schema["patternProperties"]
        for entry in schema.values():
            yield from _patterns(entry)


def nested_repetitions(pattern: str, quote: str = "") -> int:
    """Return the largest product of nested counts in a regular expression or grammar rule; 1 for none.

    `quote` is the quotation mark around literals, where the notation has one.
    """
    inside = [1]  # per open group: the largest product in it so far
    atom = at = 0
    nested = 1
    while at < len(pattern):
        character = pattern[at]
        count = _COUNT.match(pattern, at) if character == "{" else None
        if count is not None:
            times = int(count[2] or count[1] or 1)
            if atom > 1 and times > 1:
                nested = max(nested, atom * times)
            atom = max(atom, 1) * max(times, 1)
            inside[-1] = max(inside[-1], atom)
            at = count.end()
            continue
        at += 1
        if character == "\\":
            atom, at = 1, at + 1
        elif character == "[" or character == quote:
            atom, at = 1, _after(pattern, at, quote if character == quote else "]")
        elif character == "(":
            inside.append(1)
        elif character == ")" and len(inside) > 1:
            atom = inside.pop()
            inside[-1] = max(inside[-1], atom)
        elif character not in "*+? \t":
            atom = 1
    return nested


def _after(pattern: str, at: int, closing: str) -> int:
    """Return the position after a character class or quoted text; the pattern's end where it is not closed."""
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == closing:
            return at + 1
        at += 1
    return at
