"""Tools that the model may ask the caller to execute. `penstock_client.functions` makes them of functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client import suggest

_SCHEMA_KEYS = ("parameters", "parameters_json_schema", "input_schema", "inputSchema")
_KEYS = ("type", "name", "description", "strict", *_SCHEMA_KEYS)


@dataclass(frozen=True)
class Tool:
    """A tool without a function: the program answers its calls itself. The decorator `tool` makes one of a function.

    Attributes:
        name: Letters, digits, `_`, `-` and `.`, at most 64, the first a letter or `_`.
        description: What it does and when to use it, for the model.
        parameters: JSON schema of the arguments, of type object; empty: a tool without arguments.
        strict: Whether a grammar holds the arguments to the schema.
    """

    name: str
    description: str = ""
    parameters: str | Mapping[str, Any] = ""
    strict: bool = False

    def to_proto(self) -> pb.Tool:
        """Return the message. Raises TypeError or ValueError for values that it cannot have."""
        schema = self.parameters
        if not isinstance(schema, str):
            schema = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        return pb.Tool(name=self.name, description=self.description, parameters_json_schema=schema, strict=self.strict)


ToolLike = Tool | Callable[..., Any] | Mapping[str, Any] | pb.Tool
"""What the decorator `tool` made, a `Tool`, a function with type hints, or a dict as other libraries take it."""


def tool_of(given: object) -> Tool | pb.Tool:
    """Return the tool for one item of the option `tools`.

    Raises:
        ImportError: It is a function, and pydantic is not installed.
        TypeError: It is no tool.
        ValueError: A dict has the wrong keys.
    """
    if isinstance(given, Tool | pb.Tool):
        return given
    if isinstance(given, Mapping):
        return _from_dict(given)
    if callable(given) and not isinstance(given, type):
        from penstock_client.functions import tool

        return tool(given)
    raise TypeError(
        f"a tool must be a Tool, a function or a dict, got {getattr(given, '__name__', type(given).__name__)}"
    )


def _from_dict(given: Mapping[str, Any]) -> Tool:
    inner = given.get("function") if given.get("type") == "function" else None  # OpenAI's chat completions
    named = inner if isinstance(inner, Mapping) else given
    surplus = next((key for key in named if key not in _KEYS), None)
    if surplus is None and named is not given:
        surplus = next((key for key in given if key not in ("type", "function")), None)
    if surplus is not None:
        raise ValueError(suggest.unknown("key of a tool:", surplus, ("name", "description", "parameters", "strict")))
    if named.get("type") not in (None, "function", "custom") or "name" not in named:
        raise ValueError("a tool needs a name; hosted tools such as web_search are not part of this service")
    schema = next((named[key] for key in _SCHEMA_KEYS if named.get(key) is not None), "")
    strict = named.get("strict") or False
    values = {"name": named["name"], "description": named.get("description") or "", "parameters": schema}
    for key, value in values.items():
        if not isinstance(value, (str, Mapping) if key == "parameters" else str):
            allowed = "a dict or a str" if key == "parameters" else "a str"
            raise TypeError(f"{key} must be {allowed}, got {type(value).__name__}")
    if not isinstance(strict, bool):
        raise TypeError(f"strict must be True or False, got {type(strict).__name__}")
    return Tool(**values, strict=strict)
