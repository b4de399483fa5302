"""Read what a model wrote under a grammar of tool calls: a small reader for tests, which allows no deviation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from penstock.types import ToolCallFormat

NamedArguments = tuple[str, dict[str, Any]]
_TYPES = {
    str: "string",
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}
_ALL = frozenset(_TYPES.values())


@dataclass
class ReadOutput:
    """The text around the calls, and the calls."""

    texts: list[str]
    calls: list[NamedArguments]


def read(text: str, call_format: ToolCallFormat, schemas: dict[str, Any]) -> ReadOutput:
    """Return the calls of an output. `schemas` by name of the tool. Raise AssertionError for what is malformed."""
    output = ReadOutput([], [])
    while (at := text.find("<tool_call>\n")) >= 0:
        output.texts.append(text[:at])
        reader = _xml if call_format is ToolCallFormat.XML else _json
        call, text = reader(text[at + len("<tool_call>\n") :], schemas)
        output.calls.append(call)
    output.texts.append(text)
    for free in output.texts:
        assert "<tool_call>" not in free
        assert "</tool_call>" not in free
    return output


def _json(text: str, schemas: dict[str, Any]) -> tuple[NamedArguments, str]:
    written, end = json.JSONDecoder().raw_decode(text)
    assert list(written) == ["name", "arguments"]
    assert written["name"] in schemas
    assert isinstance(written["arguments"], dict)
    return (written["name"], written["arguments"]), _after(text[end:], "\n</tool_call>")


def _xml(text: str, schemas: dict[str, Any]) -> tuple[NamedArguments, str]:
    name, text = _after(text, "<function=").split(">\n", 1)
    schema = schemas[name]
    arguments: dict[str, Any] = {}
    while text.startswith("<parameter="):
        key, text = _after(text, "<parameter=").split(">\n", 1)
        value, text = text.split("</parameter>\n", 1)
        assert value.endswith("\n"), value
        arguments[key] = _value(value[:-1], _types(_property(schema, key), schema))
    return (name, arguments), _after(text, "</function>\n</tool_call>")


def _after(text: str, start: str) -> str:
    assert text.startswith(start), (start, text)
    return text[len(start) :]


def _property(schema: Any, key: str) -> Any:
    """Return the schema of a property, of all parts of the whole schema that name it; of others, that of a string."""
    found = []
    for part in _parts(schema, schema):
        if key in part.get("properties", {}):
            found.append(part["properties"][key])
        elif isinstance(part.get("additionalProperties"), dict):
            found.append(part["additionalProperties"])
    return {"anyOf": found} if found else {"type": "string"}


def _parts(schema: Any, root: Any) -> list[dict[str, Any]]:
    if not isinstance(schema, dict):
        return []
    found = [schema]
    if "$ref" in schema:
        found += _parts(_target(schema["$ref"], root), root)
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(keyword, ()):
            found += _parts(part, root)
    return found


def _target(reference: str, root: Any) -> Any:
    for step in reference[2:].split("/") if reference != "#" else ():
        root = root[int(step) if isinstance(root, list) else unquote(step).replace("~1", "/").replace("~0", "~")]
    return root


def _types(schema: Any, root: Any) -> set[str]:
    """Return the types that a schema allows; every integer is a number too."""
    if not isinstance(schema, dict):
        return set(_ALL)
    allowed = set(_ALL)
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        allowed &= {"integer", *names} if "number" in names else set(names)
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if values is not None:
            allowed &= {_kind(value) for value in values}
    if "$ref" in schema:
        allowed &= _types(_target(schema["$ref"], root), root)
    for part in schema.get("allOf", ()):
        allowed &= _types(part, root)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            allowed &= set().union(*(_types(part, root) for part in schema[keyword]))
    return allowed


def _kind(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return "integer"
    return _TYPES[type(value)]


def _value(text: str, types: set[str]) -> Any:
    """As JSON where it is JSON of a type other than string that the schema allows, else as a string.

    Python's spellings of JSON's literals are read as these.
    """
    written = {"None": "null", "True": "true", "False": "false"}.get(text, text)
    try:
        value = json.loads(written) if types != {"string"} else text
    except ValueError:
        value = text
    if not isinstance(value, str) and _kind(value) in types:
        return value
    assert "string" in types, (text, types)
    return text
