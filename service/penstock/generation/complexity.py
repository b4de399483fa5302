"""How much work a constraint may be, judged by its text alone, before anything is compiled.

Linear in the text. What passes may still be a bomb: the engine tries it out of harm's way (`Engine.check_constraint`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from penstock.types import StructuredKind, StructuredOutput

MAX_SCHEMA_DEPTH = 64
"""Objects and arrays inside one another in a JSON schema, as vLLM takes them; an object in an object is two. Compilers
recurse."""
MAX_NESTED_REPETITIONS = 10_000
"""Product of counts inside one another, as in `((a{1,50}){1,50}){1,50}`. One count alone may be any size: it is cheap;
nested, the ways to match a text multiply, and each is followed at every token."""

_COUNT = re.compile(r"\{ {0,2}(\d{0,10}) {0,2}(?:, {0,2}(\d{0,10}) {0,2})?\}")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)


def too_complex(structured: StructuredOutput) -> str:
    """Why this constraint is refused; empty where its text is simple enough."""
    match structured.kind:
        case StructuredKind.JSON_SCHEMA:
            return _schema_fault(structured.spec)
        case StructuredKind.REGEX:
            return _repetition_fault(structured.spec)
        case StructuredKind.GRAMMAR:
            return _repetition_fault(structured.spec, quote='"')
        case StructuredKind.CHOICE:
            return ""


def _schema_fault(text: str) -> str:
    if depth_of(text) > MAX_SCHEMA_DEPTH:
        return f"is nested more than {MAX_SCHEMA_DEPTH} deep"
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return ""  # No JSON: whoever compiles it says so.
    return next((fault for pattern in _patterns(schema) if (fault := _repetition_fault(pattern))), "")


def _repetition_fault(pattern: str, quote: str = "") -> str:
    if nested_repetitions(pattern, quote) > MAX_NESTED_REPETITIONS:
        return f"repeats repetitions more than {MAX_NESTED_REPETITIONS} times over"
    return ""


def depth_of(text: str) -> int:
    """Most brackets open at once in JSON text, those in its strings left out."""
    depth = most = 0
    for bracket in _JSON_STRING.sub("", text):
        if bracket in "[{":
            depth += 1
            most = max(most, depth)
        elif bracket in "]}":
            depth -= 1
    return most


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression in a JSON schema."""
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
    """The largest product of counts inside one another, in a regular expression or a grammar's rule; 1 for none.

    `quote` is what literals stand in, where the notation has such.
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
    """Where a character class or a quoted text ends; the pattern's end where it never does."""
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == closing:
            return at + 1
        at += 1
    return at
