"""Read from a tool's JSON schema which JSON types its parameters may have, and write values of these types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from penstock.generation.tool_calls.json_scanner import NUMBER, SPACE, checked_json
from penstock.generation.tool_calls.pieces import json_text

STRING: Final = frozenset({"string"})
ALL_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

_MAX_PARTS: Final = 1_000
"""Most schemas by which one tool's parameters are named."""
_MAX_DEPTH: Final = 32
"""Most references and combinations inside each other."""

_LITERALS: Final = {
    "boolean": {"true": "true", "false": "false", "True": "true", "False": "false"},
    "null": {"null": "null", "None": "null"},
}
"""Spellings of JSON's and of Python's literals: chat templates show the model both."""
_LONGEST_LITERAL: Final = 5

_PYTHON_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


class ParameterTypes:
    """Hold the types of one tool's parameters. A schema that is not valid has no parameters."""

    def __init__(self, parameters_json_schema: str) -> None:
        try:
            # Only the type of a number counts, and Python refuses to read one of more than 4,300 digits.
            self._root: Any = json.loads(parameters_json_schema or "{}", parse_int=_zero)
        except (ValueError, RecursionError):
            self._root = {}
        self._resolved: dict[str, Any] = {}
        """What references lead to."""
        self._types_of_nodes: dict[int, frozenset[str]] = {}
        """Types by the id of a schema inside the root, so that none is read twice."""
        self._parts = tuple(self._parts_of(self._root))
        self._names = {name for part in self._parts for name in _mapping(part.get("properties"))}
        self._known: dict[str, frozenset[str]] = {}
        """Types by parameter; those of parameters that the schema does not name under an empty name."""
        # All in the order of the schema: which of several schemas in a circle is read first decides their types.
        for part in self._parts:
            for schema in [*_mapping(part.get("properties")).values(), part.get("additionalProperties")]:
                self._types(schema)

    def __contains__(self, name: str) -> bool:
        """Return whether the schema names the parameter."""
        return name in self._names

    def types_of(self, name: str) -> frozenset[str]:
        """Return the JSON types that a parameter may have. One that the schema does not know is a string."""
        name = name if name in self._names else ""
        if name not in self._known:
            types = [self._types(schema) for schema in self._schemas_of(name)]
            self._known[name] = (frozenset().union(*types) or ALL_TYPES) if types else STRING
        return self._known[name]

    def _schemas_of(self, name: str) -> Iterator[Any]:
        for part in self._parts:
            properties = _mapping(part.get("properties"))
            if name in properties:
                yield properties[name]
            elif isinstance(part.get("additionalProperties"), Mapping):
                yield part["additionalProperties"]

    def _types(self, schema: Any, depth: int = 0) -> frozenset[str]:
        """Return the types that a schema allows; all where it does not say, and inside a circle of schemas."""
        if not isinstance(schema, Mapping):
            return ALL_TYPES
        known = self._types_of_nodes.get(id(schema))
        if known is None and depth <= _MAX_DEPTH:
            self._types_of_nodes[id(schema)] = ALL_TYPES
            known = self._types_of_nodes[id(schema)] = self._read_types(schema, depth)
        return ALL_TYPES if known is None else known

    def _read_types(self, schema: Mapping[str, Any], depth: int) -> frozenset[str]:
        inner = partial(self._types, depth=depth + 1)
        types = _own_types(schema)
        if isinstance(schema.get("$ref"), str):
            types = _both(types, inner(self._resolve(schema["$ref"])))
        for part in _sequence(schema.get("allOf")):
            types = _both(types, inner(part))
        for keyword in ("anyOf", "oneOf"):
            if branches := _sequence(schema.get(keyword)):
                types = _both(types, frozenset().union(*map(inner, branches)))
        return types

    def _parts_of(self, schema: Any) -> Iterator[Mapping[str, Any]]:
        """Yield a schema, and those that apply to the same object by reference or combination."""
        waiting, seen = [schema], set[int]()
        while waiting and len(seen) < _MAX_PARTS:
            part = waiting.pop()
            if isinstance(part, Mapping) and id(part) not in seen:
                seen.add(id(part))
                yield part
                waiting += [inner for word in ("allOf", "anyOf", "oneOf") for inner in _sequence(part.get(word))]
                if isinstance(part.get("$ref"), str):
                    waiting.append(self._resolve(part["$ref"]))

    def _resolve(self, reference: str) -> Any:
        """Return what a JSON pointer into this schema leads to; None for nothing."""
        if reference not in self._resolved:
            self._resolved[reference] = self._follow(reference)
        return self._resolved[reference]

    def _follow(self, reference: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            return None
        node = self._root
        for step in reference.split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping):
                node = node.get(step)
            elif isinstance(node, list) and step.isdecimal() and len(step) < 7 and int(step) < len(node):
                node = node[int(step)]
            else:
                return None
        return node


def _own_types(schema: Mapping[str, Any]) -> frozenset[str]:
    types = ALL_TYPES
    stated = schema.get("type")
    if isinstance(stated, str | list):
        types = frozenset({stated} if isinstance(stated, str) else filter(_is_text, stated)) & ALL_TYPES
    values = _sequence(schema.get("enum")) + ([schema["const"]] if "const" in schema else [])
    if values:
        types = _both(types, frozenset(_PYTHON_TYPES.get(type(value), "null") for value in values))
    return types


def _both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Return the types that both sets allow. An integer is a number, too."""
    both = one & other
    if ("integer" in one and "number" in other) or ("integer" in other and "number" in one):
        both |= {"integer"}
    return both


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _zero(_digits: str) -> int:
    return 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def may_only_be_text(start: str, types: frozenset[str]) -> bool:
    """Return whether a value that starts so cannot be anything but a string. `start` has no white space in front."""
    if "string" not in types or not start:
        return types == STRING
    first = start[0]
    if first in "{[":
        return not types & {"object", "array"}
    if first in "-0123456789":
        return not types & {"integer", "number"}
    spellings = [spelling for kind in _LITERALS if kind in types for spelling in _LITERALS[kind]]
    word = start[: _LONGEST_LITERAL + 1].rstrip()
    return not any(spelling.startswith(word) for spelling in spellings)


def json_of(text: str, types: frozenset[str]) -> str:
    """Return a value as JSON of the first type that it can be read as, otherwise as a JSON string.

    Numbers, arrays and objects stay as written, so that no digit is lost.
    """
    word = text.strip(SPACE)
    for kind, spellings in _LITERALS.items():
        if kind in types and word in spellings:
            return spellings[word]
    is_number = bool(types & {"number", "integer"}) and NUMBER.fullmatch(word) is not None
    if is_number and ("number" in types or _is_integral(word)):
        return word
    opens = ("{" if "object" in types else "") + ("[" if "array" in types else "")
    found = checked_json(text, opens) if opens else None
    return found if found is not None else f'"{json_text(text)}"'


def _is_integral(number: str) -> bool:
    """Return whether a JSON number is an integer, such as 12, 1.0 and 1.5e3, by its digits alone."""
    mantissa, _, exponent = number.lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("-0")
    trailing_zeros = len(digits) - len(digits.rstrip("0"))
    shift = int(exponent) if len(exponent) < 10 and exponent else 10**10 * (-1 if exponent.startswith("-") else 1)
    return not digits or len(fraction) - trailing_zeros <= (shift if exponent else 0)
