"""Rewrite a JSON schema (draft 2020-12) into what xgrammar enforces; refuse the rest by keyword and JSON pointer.

xgrammar 0.2.8 ignores keywords that it does not know, and known ones in many combinations: beside `$ref`, `anyOf`,
`allOf` and `enum`, and wherever `type` is absent. So each schema is written anew, one `type` at a time, from the
combinations that it enforces (tests/unit/test_json_schema.py checks the compiled grammars). The result may allow less
than the schema, as objects without `additionalProperties` are closed, but never more.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from penstock.engine.regex_syntax import MAX_COUNT, RefusedRegexError
from penstock.engine.vllm.constraints.regex import (
    json_string_of_length,
    json_string_other_than,
    raw_text_of_length,
    translate_json_pattern,
    translate_raw_pattern,
)

Schema = dict[str, Any]

_OF_TYPE: dict[str, tuple[str, ...]] = {
    "null": (),
    "boolean": (),
    "number": ("multipleOf", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": (
        *("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains"),
        "unevaluatedItems",
    ),
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"),
        *("maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
    ),
}
_OF_TYPE["integer"] = _OF_TYPE["number"]
_ANY_TYPE = ("null", "boolean", "number", "string", "array", "object")
_IN_PLACE = ("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else")
ASSERTIONS = frozenset({"type", "enum", "const", "$id", *_IN_PLACE}).union(*_OF_TYPE.values())
"""Every other key is an annotation: it is accepted and asserts nothing."""
MARKERS = ("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter")
"""What no value of a tool call in XML contains, so that nothing in a value can end it or begin another one.

The last one has no `>`: readers repair a closing marker that lacks it.
"""
JSON_MARKERS = ("</", "<f")
"""What no JSON inside such a value contains. Shorter, because the compiler needs a second for each longer one in each
schema; strings lose nothing, as JSON has `<\\/` and `\\u003cf`."""
_DATE = (
    r"([1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_MINUTES, _DAYS = r"\d{1,9}M(\d{1,9}S)?", r"\d{1,9}D"
_CLOCK = rf"T(\d{{1,9}}H({_MINUTES})?|{_MINUTES}|\d{{1,9}}S)"
_MONTHS = rf"\d{{1,9}}M({_DAYS})?"
_INDEX = re.compile("0|[1-9][0-9]{0,8}")
"""A place in an array, as a JSON pointer writes it; an array of a request has fewer."""
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_H16 = "[0-9a-f]{1,4}"
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P(\d{{1,9}}W|({_DAYS}|{_MONTHS}|\d{{1,9}}Y({_MONTHS})?)({_CLOCK})?|{_CLOCK})",
    "ipv4": _IPV4,
    "ipv6": "|".join(
        (
            f"({_H16}:){{7}}{_H16}",
            f"({_H16}:){{1,7}}:",
            *(f"({_H16}:){{1,{7 - after}}}(:{_H16}){{{after}}}" for after in range(1, 7)),
            f":((:{_H16}){{1,7}}|:)",
            f"::ffff:{_IPV4}",
        )
    ),
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
FORMATS: Mapping[str, str] = {name: f"^({pattern})$" for name, pattern in _FORMATS.items()}
"""Formats that are enforced where no `pattern` or length stands beside them: narrower than their standards in places,
never wider. All others are annotations."""
NOT_AN_OBJECT = "the arguments of a tool are an object, which this schema does not allow"
_MAX_NUMBER = 2**53
_SMALLEST_STEP = 1e-6


class RefusedSchemaError(ValueError):
    """A keyword that cannot be enforced: `keyword` at the JSON pointer `pointer`."""

    def __init__(self, keyword: str, pointer: str, why: str) -> None:
        super().__init__(f"{keyword} at {pointer or 'the root'}: {why}")
        self.keyword = keyword
        self.pointer = pointer


@lru_cache(maxsize=16)
def rewritten(text: str) -> str:
    """Return the schema for xgrammar, as JSON text.

    Raises:
        RefusedSchemaError: A keyword cannot be enforced.
        ValueError: The text is not JSON.
    """
    root = json.loads(text)
    try:
        return _Rewriter(root, budget=WritingBudget(len(text))).whole()
    except RecursionError:
        why = "references beside other keywords lead to themselves; move the other keywords out of the cycle"
        raise RefusedSchemaError("$ref", "", why) from None


class WritingBudget:
    """Count what is read, compared and written for an answer or for the tools of a request.

    A unit is a schema, a value of an enum, a few comparisons, or a piece of a text: each costs some microseconds. What
    is small in a request may be large here: a tool's references are replaced by what they refer to, and each part of a
    `oneOf` is compared with all others.
    """

    def __init__(self, characters: int = 0) -> None:
        """Allow a fixed number of units, and more for schemas of many characters."""
        self._left = _MAX_WRITTEN + characters // 8

    def spend(self, units: int, at: str) -> None:
        """Take units. Raise RefusedSchemaError when there are not so many left."""
        self._left -= units
        if self._left < 0:
            why = "the schema is too large once its references are written out and its alternatives compared"
            raise RefusedSchemaError("schema", at, why)


def rewritten_arguments(
    text: str, *, in_xml: bool, budget: WritingBudget | None = None
) -> tuple[list[Schema], dict[str, Schema]]:
    """Return schemas of a tool's arguments for xgrammar, and the definitions that they refer to.

    Arguments match one of the schemas, each of a closed or open object. With `in_xml` each property is a parameter of
    the XML format, which has strings without quotes: there a string is `{"type": "string"}`, with its regular
    expression as `raw` where it is constrained, and no reference is left outside of values that are JSON. The tools of
    a request share one `budget`.

    Raises:
        RefusedSchemaError: A keyword cannot be enforced, or arguments cannot be objects.
        ValueError: The text is not JSON.
    """
    budget = WritingBudget(len(text)) if budget is None else budget
    rewriter = _Rewriter(json.loads(text), _Level.ARGUMENTS, in_xml=in_xml, budget=budget)
    try:
        return rewriter.objects()
    except RecursionError:
        raise RefusedSchemaError("$ref", "", "references lead to themselves without a property or item") from None


class _Level(enum.Enum):
    """Where a schema stands: as all arguments of a tool, as one parameter in XML, or in anything else."""

    ARGUMENTS = enum.auto()
    PARAMETER = enum.auto()
    NESTED = enum.auto()


class _Rewriter:
    def __init__(
        self, root: Any, level: _Level = _Level.NESTED, *, in_xml: bool = False, budget: WritingBudget | None = None
    ) -> None:
        self._root = root
        self._level = level
        self._in_xml = in_xml
        self._names: dict[str, str] = {}
        self._merges = 0
        self._budget = budget
        self._definitions: dict[str, Schema] = {}

    def whole(self) -> str:
        """Return the rewritten schema with its definitions, as JSON text."""
        schema = self._schema(self._root, "")
        self._define()
        return json.dumps(schema | {"$defs": self._definitions} if self._definitions else schema)

    def objects(self) -> tuple[list[Schema], dict[str, Schema]]:
        """Return the rewritten schemas of objects that the whole schema allows, and the definitions."""
        found = [part for part in alternatives(self._schema(self._root, "")) if part.get("type", "object") == "object"]
        found = [part for part in found if "enum" not in part]
        if not found:
            raise RefusedSchemaError("type", "", NOT_AN_OBJECT)
        self._level = _Level.NESTED
        self._define()
        return found, self._definitions

    def _define(self) -> None:
        done = 0
        while done < len(self._names):
            pointer, name = list(self._names.items())[done]
            self._definitions[name] = self._schema(self._target(pointer, pointer), pointer)
            done += 1

    def _spend(self, count: int, at: str) -> None:
        if self._budget is not None and count:
            self._budget.spend(count, at)

    def _schema(self, schema: Any, at: str) -> Schema:
        self._spend(1, at)
        if schema is True:
            return {}
        if schema is False:
            raise RefusedSchemaError("false", at, "this schema allows no value")
        if not isinstance(schema, dict):
            raise RefusedSchemaError("schema", at, "a schema must be an object, true or false")
        self._spend(len(schema) // 16, at)
        asserted = _asserted(schema, at)
        for keyword, rewrite in self._in_place.items():
            if keyword in asserted:
                others = sorted(asserted.keys() - {keyword} - ({"type"} if keyword in ("enum", "const") else set()))
                if others and keyword in ("enum", "const"):
                    why = f"is not enforced beside {keyword}; leave out the values that it excludes"
                    raise RefusedSchemaError(others[0], _join(at, others[0]), why)
                if others and keyword in ("$ref", "anyOf", "oneOf"):
                    return self._beside(keyword, asserted, at)
                return rewrite(self, asserted, at)
        return self._by_type(asserted, at)

    def _beside(self, keyword: str, asserted: Schema, at: str) -> Schema:
        """Move the keywords beside `keyword` into its parts, as far as parts of allOf can be merged."""
        self._merges += 1
        if self._merges > _MAX_MERGES:
            raise RefusedSchemaError(
                keyword, _join(at, keyword), f"stands beside other keywords over {_MAX_MERGES} times"
            )
        others = {key: value for key, value in asserted.items() if key != keyword}
        if keyword == "$ref":
            return self._all_of(others | {"allOf": [*others.get("allOf", []), {"$ref": asserted["$ref"]}]}, at)
        parts = [others | {"allOf": [*others.get("allOf", []), part]} for part in _list(asserted, keyword, at)]
        if keyword == "oneOf":
            self._check_disjoint(asserted["oneOf"], at)
        return {"anyOf": [self._schema(part, f"{at}/{keyword}/{number}") for number, part in enumerate(parts)]}

    def _all_of(self, asserted: Schema, at: str) -> Schema:
        parts = [{key: value for key, value in asserted.items() if key != "allOf"}]
        parts += [
            self._resolved(part, f"{at}/allOf/{number}") for number, part in enumerate(_list(asserted, "allOf", at))
        ]
        merged: Schema = {}
        for part in parts:
            for key, value in part.items():
                if key == "required" and isinstance(value, list):
                    merged[key] = [*merged.get(key, []), *value]
                elif key not in merged:
                    merged[key] = value
                elif not self._are_equal(merged[key], value, at):
                    raise RefusedSchemaError("allOf", _join(at, "allOf"), f"its parts differ in {key}; merge them")
        for keys in _TOGETHER:
            split = [part for part in parts if keys & part.keys()]
            if len(split) > 1 and any(keys & part.keys() != keys & merged.keys() for part in split):
                names = " and ".join(sorted(keys & merged.keys()))
                raise RefusedSchemaError("allOf", _join(at, "allOf"), f"{names} are in different parts; merge them")
        return self._schema(merged, at)

    def _are_equal(self, one: Any, other: Any, at: str) -> bool:
        self._spend(units_of(one) // 8, at)
        return _equal(one, other)

    def _resolved(self, part: Any, at: str) -> Schema:
        """Return what a part of allOf asserts, with its references resolved."""
        for _ in range(_MAX_CHAIN):
            self._spend(1, at)
            if part is True:
                return {}
            if not isinstance(part, dict):
                raise RefusedSchemaError("false", at, "this schema allows no value")
            asserted = _asserted(part, at)
            if "$id" in asserted:
                self._refused(asserted, at)
            if asserted.keys() != {"$ref"}:
                if asserted.keys() & {"allOf", "$ref"}:
                    raise RefusedSchemaError("allOf", at, "allOf and $ref beside others are not merged; merge them")
                return asserted
            part = self._target(asserted["$ref"], at)
        raise RefusedSchemaError("$ref", _join(at, "$ref"), "these references lead to themselves")

    def _any_of(self, asserted: Schema, at: str) -> Schema:
        return {"anyOf": [self._schema(part, f"{at}/anyOf/{n}") for n, part in enumerate(_list(asserted, "anyOf", at))]}

    def _one_of(self, asserted: Schema, at: str) -> Schema:
        parts = _list(asserted, "oneOf", at)
        self._check_disjoint(parts, at)
        return {"anyOf": [self._schema(part, f"{at}/oneOf/{n}") for n, part in enumerate(parts)]}

    def _check_disjoint(self, parts: list[Any], at: str) -> None:
        known = [self._resolved(part, f"{at}/oneOf/{n}") for n, part in enumerate(parts)]
        for number, part in enumerate(known):
            self._spend(number // 4, at)
            if not all(self._are_disjoint(part, other) for other in known[:number]):
                raise RefusedSchemaError(
                    "oneOf",
                    f"{at}/oneOf/{number}",
                    "a value may match several parts: give each its own type or a required property with its own "
                    "const, or use anyOf",
                )

    def _are_disjoint(self, one: Schema, other: Schema) -> bool:
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return self._are_apart(values, others)
        if not _types(one) & _types(other):
            return True
        if not (_types(one) == _types(other) == {"object"}):
            return False
        tags = set(one.get("required", ())) & set(other.get("required", ()))
        return any(self._tags_differ(one, other, tag) for tag in tags)

    def _tags_differ(self, one: Schema, other: Schema, tag: str) -> bool:
        found = []
        for part in (one, other):
            properties = part.get("properties")
            if not isinstance(properties, dict) or tag not in properties:
                return False
            values = _values(self._resolved(properties[tag], "/oneOf"))
            if values is None:
                return False
            found.append(values)
        return self._are_apart(*found)

    def _are_apart(self, values: list[Any], others: list[Any]) -> bool:
        self._spend((units_of(values) * len(others) + units_of(others) * len(values)) // 32, "/oneOf")
        return not any(_equal(a, b) for a in values for b in others)

    def _ref(self, asserted: Schema, at: str) -> Schema:
        self._resolved(asserted, at)  # a chain that ends
        pointer = asserted["$ref"]
        self._spend(units_of(pointer), at)
        if self._level is not _Level.NESTED:
            return self._schema(self._target(pointer, at), pointer)
        name = self._names.setdefault(pointer, f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _target(self, pointer: Any, at: str) -> Any:
        where = _join(at, "$ref")
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise RefusedSchemaError("$ref", where, "only references within the schema by JSON pointer are supported")
        found = self._root
        for step in pointer[2:].split("/") if pointer != "#" else ():
            step = _unquoted(step)
            if found is not self._root and isinstance(found, dict) and isinstance(found.get("$id"), str):
                raise RefusedSchemaError("$ref", where, "leads through a schema with an $id; leave that out")
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and _INDEX.fullmatch(step) and int(step) < len(found):
                found = found[int(step)]
            else:
                raise RefusedSchemaError("$ref", where, f"nothing is at {pointer}")
        return found

    def _enum(self, asserted: Schema, at: str) -> Schema:
        keyword = "enum" if "enum" in asserted else "const"
        values = _list(asserted, "enum", at) if keyword == "enum" else [asserted["const"]]
        types = _types(asserted) if "type" in asserted else None
        values = [value for value in values if types is None or _is_of(value, asserted["type"])]
        if not values:
            raise RefusedSchemaError(keyword, _join(at, keyword), "none of the values is of the type")
        _check_values(values, keyword, _join(at, keyword))
        self._spend(units_of(values), at)
        if self._in_xml:
            is_raw = self._level is _Level.PARAMETER
            _check_markers(values, MARKERS if is_raw else JSON_MARKERS, keyword, _join(at, keyword))
        return {"enum": values}

    def _refused(self, asserted: Schema, at: str) -> Schema:
        keyword = next(key for key in _UNSUPPORTED if key in asserted)
        raise RefusedSchemaError(keyword, _join(at, keyword), "is not enforced; leave it out and check the answer")

    def _by_type(self, asserted: Schema, at: str) -> Schema:
        types = asserted.get("type", _ANY_TYPE if len(asserted) else ())
        self._spend(len(types) // 16, at)
        types = (types,) if isinstance(types, str) else tuple(dict.fromkeys(types))
        if "number" in types:
            types = tuple(name for name in types if name != "integer")
        if not asserted:
            return {}
        written = []
        for name in types:
            if name not in _OF_TYPE:
                raise RefusedSchemaError("type", _join(at, "type"), f"must name JSON types, got {name!r}")
            own = {key: asserted[key] for key in _OF_TYPE[name] if key in asserted}
            written.append(self._typed(name, own, at))
        if not written:
            raise RefusedSchemaError("type", _join(at, "type"), "names no type")
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _typed(self, name: str, own: Schema, at: str) -> Schema:
        level = self._level
        try:
            match name:
                case "null" | "boolean":
                    return {"type": name}
                case "integer" | "number":
                    return _number(name, own, at)
                case "string":
                    written = self._raw_string(own, at) if level is _Level.PARAMETER else self._string(own, at)
                    self._spend(units_of(written.get("raw") or written.get("pattern")), at)
                    return written
                case "array":
                    self._level = _Level.NESTED
                    return self._array(own, at)
                case _:
                    has_parameters = self._in_xml and level is _Level.ARGUMENTS
                    self._level = _Level.PARAMETER if has_parameters else _Level.NESTED
                    written = self._object(own, at)
                    if has_parameters:
                        _check_parameters(written, at)
                    return written
        finally:
            self._level = level

    def _array(self, own: Schema, at: str) -> Schema:
        least, most = _bounds(own, "minItems", "maxItems", at)
        if own.get("uniqueItems", False) is not False and (most is None or most > 1):
            raise RefusedSchemaError("uniqueItems", _join(at, "uniqueItems"), "is not enforced")
        if "contains" in own and not (_equal(own.get("minContains"), 0) and "maxContains" not in own):
            raise RefusedSchemaError("contains", _join(at, "contains"), "is not enforced; use items or prefixItems")
        prefix = _list(own, "prefixItems", at) if "prefixItems" in own else []
        key = "items" if "items" in own else "unevaluatedItems"
        rest = own.get(key, True)
        if isinstance(rest, list):
            raise RefusedSchemaError("items", _join(at, "items"), "must be a schema; a list of schemas is prefixItems")
        written: Schema = {"type": "array"}
        if prefix:
            prefix = prefix if most is None else prefix[:most]
            written["prefixItems"] = [self._schema(item, f"{at}/prefixItems/{n}") for n, item in enumerate(prefix)]
        if rest is False or (most is not None and most <= len(prefix)):
            if least > len(prefix):
                raise RefusedSchemaError("minItems", _join(at, "minItems"), "asks for more items than are allowed")
            written |= {"items": False} if prefix else {"maxItems": 0}
        else:
            written["items"] = self._schema(rest, _join(at, key))
            if most is not None:
                written["maxItems"] = most
        if least:
            written["minItems"] = least
        return written

    def _object(self, own: Schema, at: str) -> Schema:
        own = _without_names(own)
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            if own.get(keyword):
                raise RefusedSchemaError(keyword, _join(at, keyword), "is not enforced; use anyOf of closed objects")
        properties = own.get("properties", {})
        required = own.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise RefusedSchemaError("properties", at, "properties must be an object, and required a list")
        if not all(isinstance(name, str) for name in required):
            raise RefusedSchemaError("required", _join(at, "required"), "must name properties")
        self._spend((units_of([*properties]) + units_of(required)) // 8, at)
        key = "additionalProperties" if "additionalProperties" in own else "unevaluatedProperties"
        rest = own.get(key, True)
        names = own.get("propertyNames", True)
        if own.get("patternProperties") or not (names is True or names == {}):
            return self._by_name(own, at)
        missing = [name for name in dict.fromkeys(required) if name not in properties]
        if missing and rest is False:
            raise RefusedSchemaError("required", _join(at, "required"), "names a property that is not allowed")
        inner = {name: self._schema(part, _join(at, "properties", name)) for name, part in properties.items()}
        open_schema = {} if rest is False else self._schema(rest, _join(at, key))
        inner |= dict.fromkeys(missing, open_schema)
        _check_values([*inner], "properties", _join(at, "properties"))
        if self._in_xml:
            _check_markers(inner, JSON_MARKERS, "properties", _join(at, "properties"))
        written: Schema = {"type": "object"}
        if inner:
            written |= {"properties": inner, "required": list(dict.fromkeys(required))}
        # Without the keyword, an object that names properties is closed: models fill open ones without end.
        closed = rest is False or (key not in own and bool(inner))
        if closed:
            written["additionalProperties"] = False
        elif inner:
            # The compiler's own names of additional properties may be those of named ones, spelled with escapes.
            names = json_string_other_than(inner.keys(), in_xml=self._in_xml)
            self._spend(units_of(names), at)
            written |= {"patternProperties": {_anchored(names): open_schema}, "additionalProperties": False}
        elif key in own:
            written["additionalProperties"] = open_schema
        return self._counted(written, own, at, closed=closed)

    def _counted(self, written: Schema, own: Schema, at: str, *, closed: bool) -> Schema:
        least, most = _bounds(own, "minProperties", "maxProperties", at)
        least = 0 if least <= len(written.get("required", ())) else least
        names = len(written.get("properties", ()))
        if closed and least > names:
            raise RefusedSchemaError("minProperties", _join(at, "minProperties"), "asks for more than are allowed")
        if closed and most is not None and most >= names:
            most = None
        if least and not closed:
            # An open object may name a property twice, which counts once.
            raise RefusedSchemaError("minProperties", _join(at, "minProperties"), "is not enforced for open objects")
        if least:
            written["minProperties"] = least
        if most is not None:
            if most < len(written.get("required", ())):
                raise RefusedSchemaError("maxProperties", _join(at, "maxProperties"), "is less than is required")
            written["maxProperties"] = most
        return written

    def _by_name(self, own: Schema, at: str) -> Schema:
        """Return a schema of objects whose property names match one pattern or one schema of names, without others."""
        keyword = "patternProperties" if own.get("patternProperties") else "propertyNames"
        others = sorted(key for key in own if key != keyword and own[key] not in ({}, []))
        if own.get("additionalProperties") is True or keyword == "patternProperties":
            # All names match the pattern, so that none is an additional one.
            others = [key for key in others if key not in ("additionalProperties", "unevaluatedProperties")]
        if others:
            raise RefusedSchemaError(others[0], _join(at, others[0]), f"is not enforced beside {keyword}")
        if keyword == "propertyNames":
            names = self._schema({"type": "string", **_dict(own[keyword], keyword, at)}, _join(at, keyword))
            if not names.keys() & {"pattern", "enum"}:
                raise RefusedSchemaError(keyword, _join(at, keyword), "supports pattern, lengths, enum and const")
            return {"type": "object", "propertyNames": names}
        patterns = _dict(own[keyword], keyword, at)
        if len(patterns) > 1:
            raise RefusedSchemaError(keyword, _join(at, keyword), "supports one pattern")
        pattern, part = next(iter(patterns.items()))
        where = _join(at, keyword, pattern)
        return {
            "type": "object",
            keyword: {self._pattern(pattern, where, keyword): self._schema(part, where)},
            "additionalProperties": False,
        }

    def _string(self, own: Schema, at: str) -> Schema:
        least, most = _lengths(own, at)
        if "pattern" in own:
            return {"type": "string", "pattern": self._pattern(own["pattern"], _join(at, "pattern"), "pattern")}
        if least or most is not None:
            return {"type": "string", "pattern": _anchored(json_string_of_length(least, most, in_xml=self._in_xml))}
        if (pattern := _format(own)) is not None:
            return {"type": "string", "pattern": _anchored(translate_json_pattern(pattern))}
        return {"type": "string"}

    def _pattern(self, pattern: Any, at: str, keyword: str) -> str:
        with _regex_errors(pattern, at, keyword):
            self._spend(len(pattern), at)
            return _anchored(translate_json_pattern(pattern, in_xml=self._in_xml))

    def _raw_string(self, own: Schema, at: str) -> Schema:
        """Return the schema of a string without quotes: `raw` is the regular expression of a constrained one."""
        least, most = _lengths(own, at)
        if "pattern" in own:
            where = _join(at, "pattern")
            with _regex_errors(own["pattern"], where, "pattern"):
                self._spend(len(own["pattern"]), at)
                return {"type": "string", "raw": translate_raw_pattern(own["pattern"], MARKERS)}
        if least or most is not None:
            return {"type": "string", "raw": raw_text_of_length(least, most)}
        if (pattern := _format(own)) is not None:
            return {"type": "string", "raw": translate_raw_pattern(pattern, ())}
        return {"type": "string"}

    _in_place: Mapping[str, Callable[[_Rewriter, Schema, str], Schema]] = {}


_MAX_CHAIN = 64
_MAX_MERGES = 100
_MAX_PARAMETER_NAME = 256
_MAX_WRITTEN = 16_384  # units of WritingBudget
_UNSUPPORTED = ("$dynamicRef", "$recursiveRef", "not", "if", "$id")
_TOGETHER = (
    {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"},
    {"prefixItems", "items", "unevaluatedItems"},
    {"contains", "minContains", "maxContains"},
)
_Rewriter._in_place = {
    **dict.fromkeys(_UNSUPPORTED, _Rewriter._refused),
    "$ref": _Rewriter._ref,
    "enum": _Rewriter._enum,
    "const": _Rewriter._enum,
    "allOf": _Rewriter._all_of,
    "anyOf": _Rewriter._any_of,
    "oneOf": _Rewriter._one_of,
}


def _asserted(schema: Schema, at: str) -> Schema:
    """Return the keywords that assert something, without those that cannot fail."""
    asserted = {key: value for key, value in schema.items() if key in ASSERTIONS}
    if not at or asserted.get("$id") in ("", None):
        asserted.pop("$id", None)
    if asserted.get("not") is False:
        del asserted["not"]
    # The result may be read again as part of another schema, and must mean the same there.
    if "if" not in asserted or not asserted.keys() & {"then", "else"}:
        for key in ("if", "then", "else"):
            asserted.pop(key, None)
    for key, idle in _IDLE.items():
        if key in asserted and asserted[key] == idle and type(asserted[key]) is type(idle):
            del asserted[key]
    for key in ("minContains", "maxContains"):
        if "contains" not in asserted:
            asserted.pop(key, None)
    return asserted


_IDLE: Mapping[str, Any] = {
    "uniqueItems": False,
    "dependentRequired": {},
    "dependentSchemas": {},
    "patternProperties": {},
    "required": [],
    "propertyNames": True,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "minLength": 0,
    "minItems": 0,
    "minProperties": 0,
}


def _without_names(own: Schema) -> Schema:
    """Return the same schema without `propertyNames`, where that asserts nothing or lists the names."""
    names = own.get("propertyNames")
    if not isinstance(names, dict):
        return own
    asserted = _asserted(names, "/propertyNames")
    rest = {key: value for key, value in own.items() if key != "propertyNames"}
    if not asserted or asserted == {"type": "string"}:
        return rest
    values = _values(asserted)
    others = asserted.keys() - {"type", "enum", "const"}
    if values is None or others or rest.keys() & {"properties", "patternProperties"}:
        return own
    allowed = rest.pop("additionalProperties", rest.pop("unevaluatedProperties", True))
    listed = [] if allowed is False else [value for value in values if isinstance(value, str)]
    return rest | {"properties": dict.fromkeys(listed, allowed), "additionalProperties": False}


def _join(at: str, *steps: str) -> str:
    return at + "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _unquoted(step: str) -> str:
    from urllib.parse import unquote

    return unquote(step).replace("~1", "/").replace("~0", "~")


def alternatives(schema: Schema) -> list[Schema]:
    """Return the parts of a rewritten schema's `anyOf`, also of those inside."""
    if "anyOf" not in schema:
        return [schema]
    return [leaf for part in schema["anyOf"] for leaf in alternatives(part)]


def units_of(value: Any) -> int:
    """Return the units of a `WritingBudget` for a JSON value: one for each value in it, and for 64 characters."""
    units = 0
    left = [value]
    while left:
        node = left.pop()
        units += 1
        if isinstance(node, str):
            units += len(node) // 64
        elif isinstance(node, dict):
            units += sum(len(key) for key in node) // 64
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)
    return units


def _list(schema: Schema, key: str, at: str) -> list[Any]:
    value = schema[key]
    if not isinstance(value, list) or not value:
        raise RefusedSchemaError(key, _join(at, key), "must be a list that is not empty")
    return value


def _dict(value: Any, key: str, at: str) -> Schema:
    if not isinstance(value, dict):
        raise RefusedSchemaError(key, _join(at, key), "must be an object")
    return value


def _types(schema: Schema) -> set[str]:
    values = _values(schema)
    if values is not None:
        return {_type_of(value) for value in values}
    types = schema.get("type", _ANY_TYPE)
    types = {types} if isinstance(types, str) else set(types)
    return {"number" if name == "integer" else name for name in types}


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_of(value: Any, types: Any) -> bool:
    names = [types] if isinstance(types, str) else types
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    return _type_of(value) in names or ("integer" in names and whole)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0 and differs from true."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return _type_of(one) == _type_of(other) and bool(one == other)


def _check_values(values: Any, keyword: str, at: str) -> None:
    """Refuse values that the compiler cannot represent: numbers beyond a double's integers, lone surrogates."""
    if isinstance(values, list):
        for value in values:
            _check_values(value, keyword, at)
    elif isinstance(values, dict):
        for key, value in values.items():
            _check_values([key, value], keyword, at)
    elif isinstance(values, str):
        if any(0xD800 <= ord(character) <= 0xDFFF for character in values):
            raise RefusedSchemaError(keyword, at, "lone surrogates are not characters")
    elif isinstance(values, int | float) and not (math.isfinite(values) and abs(values) <= _MAX_NUMBER):
        raise RefusedSchemaError(keyword, at, "numbers must be in [-2^53, 2^53]")


def _check_markers(values: Iterable[Any], markers: tuple[str, ...], keyword: str, at: str) -> None:
    """Refuse texts that would end a value of the XML format. What is in lists and objects is written as JSON."""
    for value in values:
        if isinstance(value, list):
            _check_markers(value, JSON_MARKERS, keyword, at)
        elif isinstance(value, dict):
            _check_markers([*value, *value.values()], JSON_MARKERS, keyword, at)
        elif isinstance(value, str) and (found := next((marker for marker in markers if marker in value), "")):
            raise RefusedSchemaError(keyword, at, f"must not contain {found}, which this model reads as its own markup")


def _check_parameters(written: Schema, at: str) -> None:
    """Refuse what is not enforced for the parameters of the XML format."""
    for keyword in ("patternProperties", "propertyNames", "minProperties", "maxProperties"):
        # Beside properties, patternProperties are the additional ones, which a tool does not take.
        if keyword in written and not (keyword == "patternProperties" and "properties" in written):
            why = "is not enforced for a tool's own parameters with this model; use it in an object inside"
            raise RefusedSchemaError(keyword, _join(at, keyword), why)
    for name in written.get("properties", ()):
        is_clean = name == name.strip() and not any(character in "<>" or character < " " for character in name)
        if not (is_clean and 0 < len(name) <= _MAX_PARAMETER_NAME):
            why = f"names of parameters have 1 to {_MAX_PARAMETER_NAME} characters, no <, > or control characters"
            raise RefusedSchemaError("properties", _join(at, "properties", name), why)


def _bounds(own: Schema, low: str, high: str, at: str) -> tuple[int, int | None]:
    found: list[int | None] = []
    for key in (low, high):
        value = own.get(key)
        if value is not None and (_type_of(value) != "number" or value < 0 or value != int(value)):
            raise RefusedSchemaError(key, _join(at, key), "must be a whole number from 0")
        found.append(None if value is None else int(value))
    least, most = found[0] or 0, found[1]
    if most is not None and most < least:
        raise RefusedSchemaError(high, _join(at, high), f"is less than {low}")
    if least > MAX_COUNT:
        raise RefusedSchemaError(low, _join(at, low), f"must be at most {MAX_COUNT}, got {least}")
    # The compiler counts in 32 bits, and no answer reaches such a count.
    return least, None if most is None or most > MAX_COUNT else most


def _number(name: str, own: Schema, at: str) -> Schema:
    for key, value in own.items():
        if _type_of(value) != "number" or not math.isfinite(value) or abs(value) > _MAX_NUMBER:
            raise RefusedSchemaError(key, _join(at, key), "must be a number in [-2^53, 2^53]")
    if "multipleOf" in own:
        if own["multipleOf"] != 1:
            raise RefusedSchemaError("multipleOf", _join(at, "multipleOf"), "is not enforced, other than 1")
        name = "integer"
    # (bound, is it excluded): of two lower bounds the larger one, and the excluded one where they are the same.
    lows = [(own[key], key != "minimum") for key in ("minimum", "exclusiveMinimum") if key in own]
    highs = [(own[key], key == "maximum") for key in ("maximum", "exclusiveMaximum") if key in own]
    low, high = max(lows, default=None), min(highs, default=None)
    written: Schema = {"type": name}
    if name == "integer":
        least = None if low is None else math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])
        most = None if high is None else math.floor(high[0]) if high[1] else math.ceil(high[0]) - 1
        written |= {key: value for key, value in (("minimum", least), ("maximum", most)) if value is not None}
        if least is not None and most is not None and least > most:
            raise RefusedSchemaError("minimum", at, "no integer is between the bounds")
        return written
    if low is not None:
        written["exclusiveMinimum" if low[1] else "minimum"] = low[0]
    if high is not None:
        written["maximum" if high[1] else "exclusiveMaximum"] = high[0]
    for key in own:
        if round(own[key] / _SMALLEST_STEP) * _SMALLEST_STEP != own[key] and round(own[key], 6) != own[key]:
            raise RefusedSchemaError(key, _join(at, key), "is enforced to six decimals; round it")
    if low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and (low[1] or not high[1]))):
        raise RefusedSchemaError("minimum", at, "no number is between the bounds")
    return written


def _lengths(own: Schema, at: str) -> tuple[int, int | None]:
    """Return the bounds of a string's length. Raise RefusedSchemaError where a pattern is beside them."""
    least, most = _bounds(own, "minLength", "maxLength", at)
    if "pattern" in own and (least or most is not None):
        keyword = "minLength" if least else "maxLength"
        raise RefusedSchemaError(keyword, _join(at, keyword), "is not enforced beside pattern; count in the pattern")
    return least, most


def _format(own: Schema) -> str | None:
    """Return the pattern of an enforced format."""
    return FORMATS.get(own["format"]) if isinstance(own.get("format"), str) else None


@contextlib.contextmanager
def _regex_errors(pattern: Any, at: str, keyword: str) -> Iterator[None]:
    """Raise RefusedSchemaError where `pattern` is no string or is refused inside."""
    if not isinstance(pattern, str):
        raise RefusedSchemaError(keyword, at, "must be a string")
    try:
        yield
    except RefusedRegexError as error:
        raise RefusedSchemaError(keyword, at, str(error)) from error


def _anchored(pattern: str) -> str:
    return f"^(?:{pattern})$"
