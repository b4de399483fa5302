"""Build the structural tag that holds an output to tool calls, as xgrammar compiles it.

xgrammar's own tags for these models (`get_model_structural_tag` with `qwen_3_5` and `qwen_3`) are not used: they allow
free text after a required call, white space without end, values without the line breaks that the chat template writes
(of constrained strings only those), and know no maximum of calls above one. The tag here is built from the same formats
(xgrammar.structural_tag) and allows what the chat template writes, byte for byte, apart from spaces in JSON.

A value in the XML format has no quotes and no escapes, so it is read by its schema: as JSON where it is JSON of a type
other than string that the schema allows, else as a string. Values never contain the markers of calls
(`json_schema.MARKERS`), and JSON in them not its shorter ones. What the schema would allow and this reading would not
keep is left out, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from penstock.engine.vllm.constraints.json_schema import (
    JSON_MARKERS,
    MARKERS,
    NOT_AN_OBJECT,
    RefusedSchemaError,
    Schema,
    WritingBudget,
    alternatives,
    rewritten_arguments,
    units_of,
)
from penstock.engine.vllm.constraints.regex import raw_start_without, translate_raw_pattern
from penstock.errors import BadRequest, FieldViolation
from penstock.types import Tool, ToolCallFormat, ToolConstraint

Format = dict[str, Any]
"""A format of xgrammar.structural_tag, as JSON."""

MAX_DEPTH = 80
"""Nested objects and arrays of a structural tag: vLLM refuses more (sampling_params.check_json_nesting)."""
_MAX_BYTES = 4 << 20
_CALL, _END = "<tool_call>", "</tool_call>"
_MAX_WHITESPACE = 1  # per place in JSON: the template writes one space after a comma and a colon
_SPACES = " \t\r\n"


def structural_tag(constraint: ToolConstraint) -> str:
    """Return the structural tag of a constraint as JSON text, of at most 4 MiB.

    With `requires_call` the output is one or more calls, with a line break between them and nothing else. Without, it
    is text with calls in it. After `max_calls` calls it ends.

    Raises:
        BadRequest: A schema is refused, by keyword and JSON pointer, or a name cannot be written.
    """
    return _structural_tag(constraint)


@lru_cache(maxsize=16)
def _structural_tag(constraint: ToolConstraint) -> str:
    budget = WritingBudget(sum(len(tool.parameters_json_schema) for tool in constraint.tools))
    tags: list[Format] = []
    size = 0
    for place in range(len(constraint.tools)):
        tags.append(_checked(constraint, place, budget))
        size += len(json.dumps(tags[-1]))
        _check_size(constraint, size)
    before, _ = _around_name(constraint.call_format)
    head = {"type": "const_string", "value": before.removeprefix(_CALL)}
    body = _sequence(head, _any_of(tags))
    most = constraint.max_calls
    if constraint.requires_call:
        output = _required(_sequence(_const(_CALL), body), most)
    else:
        output = _optional(body, most, constraint.call_format)
    written = json.dumps({"type": "structural_tag", "format": output})
    _check_size(constraint, len(written))
    return written


def _check_size(constraint: ToolConstraint, size: int) -> None:
    if size > _MAX_BYTES:
        why = f"schemas must be at most {_MAX_BYTES} bytes once their references are written out, got at least {size}"
        raise BadRequest(FieldViolation(field_of_all(constraint), why, "LIMIT_EXCEEDED"))


def path_of(constraint: ToolConstraint, place: int) -> str:
    """Return the request's field of the schema of the tool at `place`."""
    return f"spec.tools[{constraint.index_of(place)}].parameters_json_schema"


def field_of_all(constraint: ToolConstraint) -> str:
    """Return the request's field for what is wrong with all tools together; of a single tool, its schema."""
    return path_of(constraint, 0) if len(constraint.tools) == 1 else "spec.tools"


def _checked(constraint: ToolConstraint, place: int, budget: WritingBudget) -> Format:
    """Return the format of one tool's call behind the marker and what stands before the name."""
    tool = constraint.tools[place]
    field = path_of(constraint, place)
    try:
        tag = _tag(tool, constraint.call_format, budget)
    except RefusedSchemaError as error:
        raise BadRequest(FieldViolation(field, str(error), "INVALID_FIELD")) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRequest(FieldViolation(field, "the schema cannot be compiled", "INVALID_FIELD")) from error
    if _depth_exceeds(tag, MAX_DEPTH - _DEPTH_AROUND):
        why = f"must be nested less deep: its grammar has more than {MAX_DEPTH} levels"
        raise BadRequest(FieldViolation(field, why, "LIMIT_EXCEEDED"))
    return tag


_DEPTH_AROUND = 12  # objects and lists of the tag around a tool's own, at most


def _depth_exceeds(tag: Any, most: int) -> bool:
    level = [tag]
    for _ in range(most):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


# ------------------------------------------------------------------------------------------------------------- outputs


def _required(call: Format, most: int | None) -> Format:
    if most == 1:
        return call
    following = _sequence(_const("\n"), call)
    return _sequence(call, {"type": "repeat", "min": 0, "max": -1 if most is None else most - 1, "content": following})


def _optional(body: Format, most: int | None, call_format: ToolCallFormat) -> Format:
    # Half a call is no text: neither its end nor, in XML, its second line may stand alone.
    excludes = [_END, "<function="] if call_format is ToolCallFormat.XML else [_END]
    if most is None:
        return {"type": "dispatch", "rules": [[_CALL, body]], "loop": True, "excludes": excludes}
    text = {"type": "any_text", "excludes": [_CALL, *excludes]}
    call = _sequence(_const(_CALL), body)
    last = _sequence(text, {"type": "optional", "content": call})
    if most == 1:
        return last
    return _sequence({"type": "repeat", "min": 0, "max": most - 1, "content": _sequence(text, call)}, last)


def _around_name(call_format: ToolCallFormat) -> tuple[str, str]:
    if call_format is ToolCallFormat.XML:
        return f"{_CALL}\n<function=", ">\n"
    return f'{_CALL}\n{{"name": "', '", "arguments": '


def _tag(tool: Tool, call_format: ToolCallFormat, budget: WritingBudget) -> Format:
    _, after = _around_name(call_format)
    if call_format is ToolCallFormat.XML:
        content, end = _parameters(tool, budget), f"</function>\n{_END}"
    else:
        content, end = _json_arguments(tool, budget), f"}}\n{_END}"
    return {"type": "tag", "begin": f"{json.dumps(tool.name)[1:-1]}{after}", "content": content, "end": end}


# ---------------------------------------------------------------------------------------------------------------- JSON


def _json_arguments(tool: Tool, budget: WritingBudget) -> Format:
    if not tool.parameters_json_schema:
        return _json({"type": "object", "properties": {}, "additionalProperties": False}, {}, budget)
    if not tool.strict:
        _check_object(tool)
        return _json({"type": "object"}, {}, budget)
    objects, definitions = rewritten_arguments(tool.parameters_json_schema, in_xml=False, budget=budget)
    return _any_of([_json(_closed(one), definitions, budget) for one in objects])


def _closed(schema: Schema) -> Schema:
    """Return the schema of an object with the named properties alone.

    No grammar can hold that a name comes once where any name may come. Readers of JSON differ about which of two values
    counts, so such a call would be INCOMPLETE.
    """
    named = schema.get("properties", {})
    for keyword in ("additionalProperties", "patternProperties", "propertyNames"):
        if not named and schema.get(keyword, False) is not False:
            why = "is not enforced for a tool's own arguments, where a name could come twice; name them"
            raise RefusedSchemaError(keyword, f"/{keyword}", why)
    others = {key: value for key, value in schema.items() if key != "patternProperties"}
    return {"type": "object", "properties": named} | others | {"additionalProperties": False}


def _json(
    schema: Schema, definitions: Mapping[str, Schema], budget: WritingBudget, excludes: Sequence[str] = ()
) -> Format:
    needed = _needed(schema, definitions)
    for name in needed:
        budget.spend(1 + units_of(definitions[name]) // 8, "")
    whole = schema | {"$defs": {name: definitions[name] for name in needed}} if needed else schema
    written: Format = {"type": "json_schema", "json_schema": whole, "max_whitespace_cnt": _MAX_WHITESPACE}
    return written | {"excludes": list(excludes)} if excludes else written


def _needed(schema: Schema, definitions: Mapping[str, Schema]) -> list[str]:
    """Return the names of definitions that a schema leads to, in the order of first use."""
    found: dict[str, None] = {}
    left: list[Any] = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/") if definitions else ""
            if name in definitions and name not in found:
                found[name] = None
                left.append(definitions[name])
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)
    return list(found)


def _check_object(tool: Tool) -> None:
    """Refuse a schema under which arguments cannot be an object; its other keywords are not read."""
    schema = json.loads(tool.parameters_json_schema)
    if schema is True:
        return
    types = schema.get("type", "object") if isinstance(schema, dict) else None
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise RefusedSchemaError("type", "", NOT_AN_OBJECT)


# ----------------------------------------------------------------------------------------------------------------- XML


def _parameters(tool: Tool, budget: WritingBudget) -> Format:
    if any(character in "<>" or character <= " " for character in tool.name):
        raise RefusedSchemaError("name", "", "this model writes names of tools without <, > and white space")
    if not tool.parameters_json_schema:
        return _const("")
    if not tool.strict:
        _check_object(tool)
        return _named_freely()
    objects, definitions = rewritten_arguments(tool.parameters_json_schema, in_xml=True, budget=budget)
    namesakes = _namesakes(objects)
    return _any_of([_of_object(one, namesakes, definitions, budget) for one in objects])


Namesakes = Mapping[str, Mapping[str, set[str]]]
"""By name of a parameter and by characters that begin its values: the schemas that it has, as JSON."""


def _namesakes(objects: Sequence[Schema]) -> Namesakes:
    found: dict[str, dict[str, set[str]]] = {}
    for one in objects:
        for name, part in one.get("properties", {}).items():
            starts = "".join(sorted(set("".join(map(_starts, alternatives(part))))))
            found.setdefault(name, {}).setdefault(starts, set()).add(_text_of(part))
    return found


def _text_of(schema: Schema) -> str:
    return json.dumps(schema, sort_keys=True)


def _of_object(
    schema: Schema, namesakes: Namesakes, definitions: Mapping[str, Schema], budget: WritingBudget
) -> Format:
    """Return the format of the parameters of an object, one of those that the tool takes."""
    properties = _closed(schema)["properties"]
    required = set(schema.get("required", ()))
    written = [_const("")]
    for name, part in properties.items():
        own = _text_of(part)
        beside = "".join(starts for starts, texts in namesakes[name].items() if len(texts) > (own in texts))
        value = _value(part, beside, definitions, budget, name)
        parameter = _sequence(_const(f"<parameter={name}>\n"), value, _const("\n</parameter>\n"))
        written.append(parameter if name in required else {"type": "optional", "content": parameter})
    return _sequence(*(written[1:] or written))


def _named_freely() -> Format:
    """Return any number of parameters with any names and texts."""
    name = {"type": "regex", "pattern": _NAME}
    one = _sequence(_const("<parameter="), name, _const(">\n"), _TEXT, _const("\n</parameter>\n"))
    return {"type": "star", "content": one}


def _value(schema: Schema, beside: str, definitions: Mapping[str, Schema], budget: WritingBudget, name: str) -> Format:
    """Return the format of a parameter's value.

    `beside` are the characters that begin values of a parameter with the same name and another schema, in other objects
    that the tool takes: its reader does not know which object it belongs to.
    """
    texts: list[Format] = []
    consts: list[str] = []
    others: list[Schema] = []
    for part in alternatives(schema):
        if not part:
            return _TEXT
        if "enum" in part:
            consts += [value for value in part["enum"] if isinstance(value, str)]
            values = [value for value in part["enum"] if not isinstance(value, str)]
            others += [{"enum": values}] if values else []
        elif part.get("type") == "string":
            raw = part.get("raw")
            texts.append(_TEXT if raw is None else {"type": "regex", "pattern": raw} if raw else _const(""))
        else:
            others.append(part)
    # A null is always allowed where it may be read; of other types, some values only.
    own = "".join(_starts(other) for other in others if other not in _OPEN).replace(_STARTS["null"], "")
    starts = own + beside
    if starts and (texts or consts):
        consts = [_unread(value, starts, name) for value in consts]
        texts = [_without_starts(text, starts, name) for text in texts]
    whole = [_json(other, definitions, budget, JSON_MARKERS) for other in others]
    return _any_of([*whole, *map(_const, consts), *texts])


def _starts(other: Schema) -> str:
    """Return the characters that begin JSON of the types of a schema, apart from strings.

    A string beside it that is such JSON would be read as a value of these types, which the schema may not allow.
    """
    if not other:
        return "".join(_STARTS.values())
    types = {other["type"]} if "type" in other else {_TYPES[type(value)] for value in other.get("enum", ())}
    return "".join(_STARTS[name] for name in sorted(types) if name in _STARTS)


def _unread(value: str, starts: str, name: str) -> str:
    word = value.strip(_SPACES)
    if word[:1] in (*starts,):
        try:
            json.loads(_LITERALS.get(word, word))
        except (ValueError, RecursionError):
            return value
        why = "in this model's format a string is not told from the JSON that it looks like; leave one of the two out"
        raise RefusedSchemaError("enum", f"/properties/{name}", why)
    return value


def _without_starts(text: Format, starts: str, name: str) -> Format:
    if text is not _TEXT:
        why = "pattern, lengths and format are not enforced beside lists, objects or bounded numbers with this model"
        raise RefusedSchemaError("string", f"/properties/{name}", why)
    start = {"type": "regex", "pattern": raw_start_without(starts + _SPACES)}
    return {"type": "optional", "content": _sequence(start, _TEXT)}


_STARTS = {
    "null": "nN",
    "boolean": "tTfF",  # Readers take Python's spellings too, which chat templates show the model.
    "integer": "-0123456789",
    "number": "-0123456789",
    "array": "[",
    "object": "{",
}
_TYPES = {type(None): "null", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_TYPES[str] = "string"
_LITERALS = {"None": "null", "True": "true", "False": "false"}
_OPEN: tuple[Schema, ...] = (
    *({"type": name} for name in ("null", "boolean", "integer", "number", "object")),
    {"type": "array", "items": {}},
)
_TEXT: Format = {"type": "any_text", "excludes": list(MARKERS)}
_NAME = translate_raw_pattern(r"^[^\s<>=\x00-\x1f\x7f]{1,64}$", ())


def _const(text: str) -> Format:
    return {"type": "const_string", "value": text}


def _sequence(*formats: Format) -> Format:
    return formats[0] if len(formats) == 1 else {"type": "sequence", "elements": list(formats)}


def _any_of(formats: Sequence[Format]) -> Format:
    return formats[0] if len(formats) == 1 else {"type": "or", "elements": list(formats)}
