"""Test that the grammar of tool calls holds what it says: random texts of it are read back and validated."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from penstock.engine.poison import accountable
from penstock.engine.vllm.constraints.compiling import grammar_of
from penstock.engine.vllm.constraints.json_schema import MARKERS
from penstock.engine.vllm.constraints.tool_calls import structural_tag
from penstock.errors import BadRequest
from penstock.generation.complexity import too_complex
from penstock.generation.tool_calls import CallFinished, ToolCallParser
from penstock.types import (
    Sampling,
    StructuredKind,
    StructuredOutput,
    Tool,
    ToolCallFormat,
    ToolCallStatus,
    ToolConstraint,
)

from tests.unit.grammar_walks import accepts, compiled_tag, walks
from tests.unit.test_json_schema import suite, written_by_tools
from tests.unit.tool_call_reader import NamedArguments, ReadOutput, read

JSON, XML = ToolCallFormat.JSON, ToolCallFormat.XML
BOTH = pytest.mark.parametrize("call_format", [JSON, XML], ids=["json", "xml"])
ENDINGS = (b"\n</parameter>\n", b"<tool_call>")
ONE_LETTER = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}}, "required": ["a"]}


def tool(schema: Any = None, name: str = "f", *, strict: bool = True) -> Tool:
    return Tool(name, parameters_json_schema="" if schema is None else json.dumps(schema), strict=strict)


def constraint(
    call_format: ToolCallFormat, *tools: Tool, requires_call: bool = True, max_calls: int | None = 1
) -> ToolConstraint:
    return ToolConstraint(call_format, tools, requires_call, max_calls)


def outputs(held: ToolConstraint, count: int = 20, most: int = 600) -> list[ReadOutput]:
    """Random outputs, read back; all their calls keep the schemas of strict tools."""
    texts = walks(compiled_tag(structural_tag(held)), count, most=most, endings=ENDINGS)
    assert texts
    schemas = {tool.name: json.loads(tool.parameters_json_schema or "{}") for tool in held.tools}
    found = [read(text, held.call_format, schemas) for text in texts]
    for text, output in zip(texts, found, strict=True):
        assert served(held, text) == output.calls
    for output in found:
        for name, arguments in output.calls:
            tool = next(tool for tool in held.tools if tool.name == name)
            if tool.strict:
                jsonschema.Draft202012Validator(schemas[name]).validate(arguments)
            if not tool.parameters_json_schema:
                assert arguments == {}
    return found


def served(held: ToolConstraint, text: str) -> list[NamedArguments]:
    """The calls that the service's own parser finds: complete, but for a key that comes twice without `strict`."""
    strict = {tool.name for tool in held.tools if tool.strict}
    parser = ToolCallParser(held.call_format, held.tools)
    cuts = [*range(0, len(text), 7), len(text)]
    pieces = [piece for begin, end in pairwise(cuts) for piece in parser.push(text[begin:end])] + parser.end()
    calls = [piece for piece in pieces if isinstance(piece, CallFinished)]
    for call in calls:
        repeated: list[bool] = []

        def note(pairs: list[tuple[str, Any]], found: list[bool] = repeated) -> None:
            found.append(len(dict(pairs)) < len(pairs))

        json.loads(call.arguments_json, object_pairs_hook=note)
        assert (call.status is ToolCallStatus.COMPLETE) != repeated[-1]
        assert not (repeated[-1] and call.name in strict)
    return [(call.name, json.loads(call.arguments_json)) for call in calls]


def call(name: str = "f", value: str = "x", call_format: ToolCallFormat = XML) -> str:
    if call_format is JSON:
        return f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": "{value}"}}}}\n</tool_call>'
    return f"<tool_call>\n<function={name}>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"


def allows(held: ToolConstraint, text: str) -> bool:
    return accepts(compiled_tag(structural_tag(held)), text.encode())


PROPERTIES: dict[str, Any] = {
    "string": {"type": "string"},
    "short": {"type": "string", "maxLength": 6},
    "long enough": {"type": "string", "minLength": 3},
    "between": {"type": "string", "minLength": 2, "maxLength": 20},
    "pattern": {"type": "string", "pattern": "^[a-c]{2}-"},
    "empty": {"type": "string", "pattern": "^$"},
    "pattern with markup": {"type": "string", "pattern": "a.*b"},
    "enum": {"enum": ["a", "b c", "größe", "☃", "x\ny", ' "q" ']},
    "typed enum": {"type": "string", "enum": ["1", "null", "true"]},
    "const": {"const": "one"},
    "integer": {"type": "integer", "minimum": -5, "maximum": 300},
    "number": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 10},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "list": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 3},
    "list of patterns": {"type": "array", "items": {"type": "string", "pattern": "^[<a]{1,3}$"}, "maxItems": 2},
    "object": {
        "type": "object",
        "properties": {"k": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["k"],
        "additionalProperties": False,
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "optional string": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    "optional enum": {"type": ["string", "null"], "enum": ["a", "b", None]},
    "string or null": {"anyOf": [{"type": "string"}, {"const": None}]},
    "string or integer": {"type": ["string", "integer"]},
    "string or list": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "string or bounded": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1000}]},
    "short or integer": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
    "mixed enum": {"enum": ["a", 1, None, True, [2]]},
    "reference": {"$ref": "#/$defs/color"},
    "list of references": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
    "anything": {},
    **{name: {"type": "string", "format": name} for name in ("date", "time", "date-time", "duration", "uuid")},
    **{name: {"type": "string", "format": name} for name in ("ipv4", "ipv6")},
}
DEFINITIONS = {
    "color": {"type": "string", "enum": ["red", "dark green"]},
    "node": {
        "type": "object",
        "properties": {
            "name": {"$ref": "#/$defs/color"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["name", "next"],
        "additionalProperties": False,
    },
}


@BOTH
def test_names_and_constants_inside_arguments_are_told_apart(call_format: ToolCallFormat) -> None:
    """Neither an escaped name of a property is an additional one, nor is 1 true."""
    inner = {"type": "object", "properties": {"k": {"type": "boolean"}}, "additionalProperties": {"type": "integer"}}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    held = constraint(call_format, tool(schema))
    outputs(held)
    for text, is_allowed in (('{"k":true,"b":5}', True), ('{"\\u006b":5}', False), ('{"k":true,"\\u006B":5}', False)):
        if call_format is JSON:
            whole = f'<tool_call>\n{{"name": "f", "arguments": {{"a":{text}}}}}\n</tool_call>'
        else:
            whole = call(value=text)
        assert allows(held, whole) == is_allowed
    mixed = {"type": "object", "properties": {"a": {"allOf": [{"const": 1}, {"const": True}]}}}
    with pytest.raises(BadRequest) as raised:
        structural_tag(constraint(call_format, tool(mixed)))
    assert "allOf at /properties/a/allOf" in str(raised.value.violations[0])


@BOTH
def test_a_tool_takes_its_named_properties_alone(call_format: ToolCallFormat) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}}
    for output in outputs(constraint(call_format, tool(schema))):
        assert all(arguments.keys() <= {"a"} for _, arguments in output.calls)


def schema_of(*names: str, required: bool = True) -> dict[str, Any]:
    properties = {name.replace(" ", "_"): PROPERTIES[name] for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
        "additionalProperties": False,
        "$defs": DEFINITIONS,
    }


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("name", PROPERTIES)
def test_arguments_keep_their_schema(call_format: ToolCallFormat, name: str) -> None:
    for output in outputs(constraint(call_format, tool(schema_of(name)))):
        assert len(output.calls) == 1
        assert output.texts == ["", ""]


@BOTH
def test_several_properties_keep_their_schemas(call_format: ToolCallFormat) -> None:
    names = ("short", "enum", "integer", "optional enum", "boolean")
    held = constraint(call_format, tool(schema_of(*names, required=False)))
    lengths = {len(output.calls[0][1]) for output in outputs(held, 40)}
    assert len(lengths) > 2


@pytest.mark.slow
@BOTH
def test_schemas_as_tools_write_them_are_kept(call_format: ToolCallFormat) -> None:
    refused = []
    for name, schema in written_by_tools():
        try:
            outputs(constraint(call_format, tool(schema)), 6)
        except BadRequest:
            refused.append(name)
    no_objects = {f"pydantic: {name}" for name in ("list of models", "optional", "literal", "tuple")}
    assert set(refused) == no_objects | {"pydantic: map"}


@pytest.mark.slow
@BOTH
@pytest.mark.needs("json-schema-suite")
def test_properties_of_the_public_suite_are_kept(call_format: ToolCallFormat) -> None:
    accepted, wrong = 0, []
    for name, schema in suite():
        whole = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        whole |= {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
        try:
            structural_tag(constraint(call_format, tool(whole)))
        except BadRequest:
            continue
        accepted += 1
        try:
            outputs(constraint(call_format, tool(whole)), 6)
        except (AssertionError, jsonschema.ValidationError) as error:
            wrong.append(f"{name}: {error}")
    assert wrong == []
    assert accepted >= 150


@BOTH
def test_arguments_of_other_tools_are_any_object(call_format: ToolCallFormat) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "not": {}}
    found = outputs(constraint(call_format, tool(schema, strict=False)), 60)
    arguments = [dict(output.calls[0][1]) for output in found]
    assert {} in arguments
    assert any(set(one) - {"a"} for one in arguments)


@BOTH
@pytest.mark.parametrize("strict", [True, False])
def test_a_tool_without_a_schema_takes_no_arguments(call_format: ToolCallFormat, strict: bool) -> None:
    held = constraint(call_format, tool(strict=strict))
    assert {len(output.calls[0][1]) for output in outputs(held)} == {0}
    assert not allows(held, call(call_format=call_format))


@BOTH
def test_an_object_without_properties_takes_none(call_format: ToolCallFormat) -> None:
    closed = {"type": "object", "additionalProperties": False}
    for schema in ({"type": "object"}, {}, {"type": "object", "properties": {}}, closed):
        held = constraint(call_format, tool(schema))
        assert not allows(held, call(call_format=call_format))
        assert {} in [output.calls[0][1] for output in outputs(held)]


@BOTH
@pytest.mark.parametrize("more", [True, {"type": "string"}, {}])
def test_no_argument_of_a_strict_tool_comes_twice(call_format: ToolCallFormat, more: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "additionalProperties": more}
    held = constraint(call_format, tool(schema))
    assert allows(held, call(call_format=call_format))
    assert {tuple(output.calls[0][1]) for output in outputs(held, 30)} == {(), ("a",)}
    twice = call(
        call_format=call_format, value='x", "a": "x' if call_format is JSON else "x\n</parameter>\n<parameter=a>\nx"
    )
    assert not allows(held, twice)


@BOTH
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "additionalProperties": True},
        {"type": "object", "patternProperties": {"^a": {"type": "string"}}, "additionalProperties": False},
        {"type": "object", "propertyNames": {"maxLength": 3}},
    ],
)
def test_arguments_of_any_name_are_refused(call_format: ToolCallFormat, schema: dict[str, Any]) -> None:
    keyword = next(key for key in ("patternProperties", "propertyNames", "additionalProperties") if key in schema)
    with pytest.raises(BadRequest) as caught:
        structural_tag(constraint(call_format, tool(schema)))
    (violation,) = caught.value.violations
    assert violation.field == "spec.tools[0].parameters_json_schema"
    assert violation.description.startswith(f"{keyword} at /{keyword}: ")
    inside = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    outputs(constraint(call_format, tool(inside)), 5)


def test_a_key_that_an_argument_has_twice_has_two_values_of_its_schema() -> None:
    """Whichever of them a reader of JSON takes: nearly all take the last one."""
    inner = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "additionalProperties": {"type": "string", "maxLength": 1},
    }
    held = constraint(JSON, tool({"type": "object", "properties": {"a": inner}, "required": ["a"]}))

    def written(text: str) -> str:
        return f'<tool_call>\n{{"name": "f", "arguments": {{"a": {{{text}}}}}}}\n</tool_call>'

    assert allows(held, written('"n": 1, "b": "x", "b": "y"'))
    assert served(held, written('"n": 1, "b": "x", "b": "y"')) == [("f", {"a": {"n": 1, "b": "y"}})]
    for text in ('"n": 1, "n": "x"', '"n": "x"', '"b": "x", "n": "y"', '"n": 1, "n": 2', '"n": 1, "b": "x", "b": 2'):
        assert not allows(held, written(text))


def test_a_parameter_of_several_objects_in_xml_is_read_alike_in_all_of_them() -> None:
    def of(key: str, value: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"a": value, key: {"type": "null"}}, "required": ["a", key]}

    schema = {"anyOf": [of("b", {"type": "string"}), of("c", {"type": ["integer", "null"]})]}
    held = constraint(XML, tool(schema))
    outputs(held, 40)
    for value, keys in (("5", "c"), ("null", "c"), ("None", ""), ("x5", "b"), ("", "b"), ("north", "")):
        whole = call(value=value).replace("</function>", "<parameter=%s>\nnull\n</parameter>\n</function>")
        assert [key for key in "bc" if allows(held, whole % key)] == list(keys), value
    same = {"anyOf": [of("b", {"type": ["string", "null"]}), of("c", {"type": ["string", "null"]})]}
    assert allows(constraint(XML, tool(same)), whole % "b")


@BOTH
def test_a_required_call_comes_first_and_nothing_follows(call_format: ToolCallFormat) -> None:
    one = call(call_format=call_format)
    for most in (1, 2, 3, None):
        held = constraint(call_format, tool(ONE_LETTER), max_calls=most)
        allowed = [count for count in range(6) if allows(held, "\n".join([one] * count))]
        assert allowed == list(range(1, 6 if most is None else most + 1))
        for around in ("", "x", "\n", " "):
            assert allows(held, around + one) is (around == "")
            assert allows(held, one + around) is (around == "")
        assert not allows(held, one + one)


@BOTH
def test_text_is_free_around_calls_that_need_not_come(call_format: ToolCallFormat) -> None:
    one = call(call_format=call_format)
    for most in (1, 2, 3, None):
        held = constraint(call_format, tool(ONE_LETTER), requires_call=False, max_calls=most)
        for text in ("", "Is it 3 < 4?\n", "<tool", "<<", "{}"):
            assert allows(held, text)
            counts = [count for count in range(1, 6) if allows(held, "".join([text + one] * count))]
            assert counts == list(range(1, 6 if most is None else most + 1)), text
        # After the last call nothing may follow, after others anything.
        for count in range(1, 4):
            assert allows(held, one * count + "So.") is (most is None or count < most)


@BOTH
@pytest.mark.parametrize("requires_call", [True, False])
@pytest.mark.parametrize("max_calls", [1, 2, None])
def test_an_output_ends_only_where_calls_are_whole(
    call_format: ToolCallFormat, requires_call: bool, max_calls: int | None
) -> None:
    held = constraint(call_format, tool(ONE_LETTER), requires_call=requires_call, max_calls=max_calls)
    one = call(call_format=call_format)
    marker = len("<tool_call>")
    ends = [length for length in range(len(one) + 1) if allows(held, one[:length])]
    assert ends == ([] if requires_call else [*range(marker)]) + [len(one)]


@BOTH
@pytest.mark.parametrize("requires_call", [True, False])
def test_only_tools_of_the_request_are_called(call_format: ToolCallFormat, requires_call: bool) -> None:
    tools = (tool(ONE_LETTER, "f"), tool(ONE_LETTER, "f_2"), tool(ONE_LETTER, "g.h-1"))
    held = constraint(call_format, *tools, requires_call=requires_call)
    for name in ("f", "f_2", "g.h-1"):
        assert allows(held, call(name, call_format=call_format))
    for name in ("", "f_", "f_3", "G", "g", "f f"):
        assert not allows(held, call(name, call_format=call_format))


@BOTH
def test_each_tool_has_its_own_schema(call_format: ToolCallFormat) -> None:
    tools = [
        tool(schema_of(property), name) for name, property in zip("abf", ("integer", "boolean", "short"), strict=True)
    ]
    held = constraint(call_format, *tools, requires_call=False, max_calls=3)
    found = [name for output in outputs(held, 60, 900) for name, _ in output.calls]
    assert set(found) == set("abf")


BROKEN_XML = [
    "<tool_call>",
    "<tool_call>x",
    "<tool_call>\n<function=f",
    "<tool_call>\n<function=f>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=a>\nx\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=a>x</parameter>\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=a\nx\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=b>\nx\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
    "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>",
    "</tool_call>",
    call().replace("\n<function", "<function"),
    call() + "</tool_call>",
]
BROKEN_JSON = [
    "<tool_call>",
    '<tool_call>\n{"name": "f"}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": "x"}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>',
    '<tool_call>\n{"arguments": {"a": "x"}, "name": "f"}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}</tool_call>',
    "</tool_call>",
    call(call_format=JSON) + "</tool_call>",
]


@pytest.mark.parametrize(
    ("call_format", "text"), [*((XML, text) for text in BROKEN_XML), *((JSON, text) for text in BROKEN_JSON)]
)
@pytest.mark.parametrize("max_calls", [1, 3, None])
def test_a_broken_call_is_no_text(call_format: ToolCallFormat, text: str, max_calls: int | None) -> None:
    held = constraint(call_format, tool(ONE_LETTER), requires_call=False, max_calls=max_calls)
    for before in ("", "So: ", "<"):
        assert not allows(held, before + text)


@pytest.mark.parametrize("name", ["string", "optional string", "anything", "string or integer"])
def test_a_string_in_xml_is_any_text_without_the_markers_of_calls(name: str) -> None:
    schema = schema_of(name) | {"properties": {"a": PROPERTIES[name]}, "required": ["a"]}
    held = constraint(XML, tool(schema))
    for value in (
        "",
        "\n",
        "x\n\ny\n",
        '"quoted"',
        "a < b",
        "<div></div>",
        "<p>a</p>",
        "<<EOF",
        "\\n&lt;",
    ):
        assert allows(held, call(value=value)), value
    for marker in MARKERS:
        for value in (marker, f"x\n{marker}\n", f"<{marker}"):
            assert not allows(held, call(value=value)), value


def test_lengths_in_xml_count_the_characters_of_the_value() -> None:
    def allowed(values: Any, **lengths: int) -> list[str]:
        schema = {"type": "object", "properties": {"a": {"type": "string", **lengths}}, "required": ["a"]}
        held = constraint(XML, tool(schema))
        return [value for value in values if allows(held, call(value=value))]

    texts = ["", "é", "☃\n", "abc", "𝄞" * 4, "a" * 5]
    assert allowed(texts, minLength=1, maxLength=4) == texts[1:5]
    assert allowed(texts, maxLength=2) == texts[:3]
    assert allowed(texts, minLength=3) == texts[3:]
    markup = ["<b>a</b> </p> <table> << <x", "a < b", *(f"x{marker}y" for marker in MARKERS)]
    assert allowed(markup, minLength=1) == markup[:2]
    assert allowed(markup, maxLength=100) == markup[:2]
    assert allowed(["a<b"], maxLength=3) == []  # too short for markup, which is left out then
    for spelling in (b"\x80", b"\xc1\xbf", b"\xed\xa0\x80", b"\xc3"):
        held = compiled_tag(structural_tag(constraint(XML, tool(ONE_LETTER))))
        assert not accepts(held, call(value="!").encode().replace(b"!", spelling)), spelling


def test_a_pattern_in_xml_never_writes_a_marker() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^<b>[a-z]*$|^.*x$"}},
        "required": ["a"],
    }
    held = constraint(XML, tool(schema))
    assert allows(held, call(value="abx"))
    for marker in MARKERS:
        assert not allows(held, call(value=f"{marker}x"))
    schema["properties"]["a"]["pattern"] = "^<b>[0-9]*$"  # type: ignore[index]
    assert allows(constraint(XML, tool(schema)), call(value="<b>12"))


def test_json_inside_of_xml_never_writes_a_marker() -> None:
    strings = [{"type": "string"}, {"type": "string", "maxLength": 30}, {"type": "string", "pattern": "^.*$"}, {}]
    for items in strings:
        schema = {"type": "object", "properties": {"a": {"type": "array", "items": items}}, "required": ["a"]}
        held = constraint(XML, tool(schema))
        assert allows(held, call(value='["x>y", "b"]'))
        for marker in ("</parameter", "</function>", "</tool_call>", "<function=f>"):
            assert not allows(held, call(value=f'["{marker}"]')), (items, marker)
    plain = constraint(XML, tool({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}))
    assert allows(plain, call(value='["<b> < <\\/b>", "\\u003c/parameter>", "\\u003cfunction=f>"]'))
    names = constraint(XML, tool({"type": "object", "properties": {"a": {"type": "object"}}, "required": ["a"]}))
    assert allows(names, call(value='{"<b>": 1}'))
    assert not allows(names, call(value='{"</parameter>": 1}'))


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        # What is refused would be read as a value which the schema does not allow.
        ("string or list", ['["a"]', "a [1]", "", "1", "null", "<b>", "<<x", "</p>"], ["[1]", " [1]", "\n[]", "[x"]),
        ("string or bounded", ["1000", "a 5", "true"], ["5", "-1", " 7", "1e1"]),
        ("string or integer", ["5", "-1", "5.5", "a", "null"], []),
        ("mixed enum", ["a", "1", "null", "true", "[2]"], ["2", "false", "[]", "b"]),
        ("string or null", ["null", "None", "north", "x"], []),
        ("optional string", ["null", "12", "[1]", '"x"'], []),
    ],
)
def test_a_value_in_xml_is_read_as_its_schema_means(name: str, allowed: list[str], refused: list[str]) -> None:
    schema = schema_of(name) | {"properties": {"a": PROPERTIES[name]}, "required": ["a"]}
    held = constraint(XML, tool(schema))
    for value in allowed:
        assert allows(held, call(value=value)), value
        (found,) = read(call(value=value), XML, {"f": schema}).calls
        jsonschema.Draft202012Validator(schema).validate(found[1])
    for value in refused:
        assert not allows(held, call(value=value)), value


REFUSED: list[tuple[Any, list[ToolCallFormat], str]] = [
    ({"type": "array"}, [JSON, XML], "type at the root"),
    ({"type": "string"}, [JSON, XML], "type at the root"),
    ({"enum": [{}]}, [JSON, XML], "type at the root"),
    ({"anyOf": [{"type": "null"}, {"type": "array"}]}, [JSON, XML], "type at the root"),
    ({"type": "object", "not": {}}, [JSON, XML], "not at /not"),
    ({"properties": {"a": {"multipleOf": 7}}}, [JSON, XML], "multipleOf at /properties/a/multipleOf"),
    ({"properties": {"a": {"pattern": "a(?=b)"}}}, [JSON, XML], "pattern at /properties/a/pattern"),
    ({"properties": {"a": {"pattern": "a", "maxLength": 3}}}, [JSON, XML], "maxLength at /properties/a/maxLength"),
    ({"$ref": "#"}, [JSON, XML], "$ref at"),
    ({"anyOf": [{"$ref": "#"}, {"type": "object"}]}, [JSON, XML], "$ref at"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, [XML], "propertyNames at /propertyNames"),
    ({"type": "object", "patternProperties": {"^a": {}}}, [XML], "patternProperties at /patternProperties"),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, [XML], "minProperties at /minProperties"),
    ({"properties": {"a>b": {}}}, [XML], "properties at /properties/a>b"),
    ({"properties": {" a": {}}}, [XML], "properties at /properties/ a"),
    ({"properties": {"a" * 257: {}}}, [XML], "properties at /properties/aaa"),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [XML], "additionalProperties at"),
    ({"properties": {"a": {"enum": ["True", False]}}}, [XML], "enum at /properties/a"),
    ({"properties": {"a": {"const": "</parameter>"}}}, [XML], "const at /properties/a/const"),
    ({"properties": {"a": {"items": {"enum": ["</b>"]}}}}, [XML], "enum at /properties/a/items/enum"),
    ({"properties": {"a": {"enum": [{"k": ["<f>"]}]}}}, [XML], "enum at /properties/a/enum"),
    (
        {"properties": {"a": {"properties": {"</function>": {}}}}},
        [XML],
        "properties at /properties/a/properties",
    ),
    ({"properties": {"a": {"enum": ["2", 1]}}}, [XML], "enum at /properties/a"),
    (
        {"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 2}, {"enum": [1]}]}}},
        [XML],
        "string at /properties/a",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "call_format", "part"),
    [(schema, call_format, part) for schema, formats, part in REFUSED for call_format in formats],
)
def test_what_cannot_be_enforced_is_refused_under_its_tool(schema: Any, call_format: ToolCallFormat, part: str) -> None:
    held = ToolConstraint(call_format, (tool(name="a"), tool(schema, "b")), True, 1, indexes=(3, 7))
    with pytest.raises(BadRequest) as raised:
        grammar_of(StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=held))
    (violation,) = raised.value.violations
    assert (violation.field, violation.reason) == ("spec.tools[7].parameters_json_schema", "INVALID_FIELD")
    assert violation.description.startswith(part)


@BOTH
@pytest.mark.parametrize(
    "text", ["{", "3", "[]", "null", '{"type": "array"}', '{"type": ["null", "string"]}', "[" * 90_000]
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_schema_of_an_object_is_refused_for_any_tool(
    call_format: ToolCallFormat, text: str, strict: bool
) -> None:
    held = constraint(call_format, Tool("f", parameters_json_schema=text, strict=strict))
    with pytest.raises(BadRequest) as raised:
        structural_tag(held)
    assert raised.value.violations[0].field == "spec.tools[0].parameters_json_schema"


@BOTH
def test_references_that_multiply_are_refused(call_format: ToolCallFormat) -> None:
    values = [f"v{number}" for number in range(4000)]
    properties = {f"p{number}": {"$ref": "#/$defs/e"} for number in range(1000)}
    many = {"type": "object", "properties": properties, "$defs": {"e": {"enum": values}}}
    chain = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {"type": "object"}}
    for schema in (many, {"$ref": "#/$defs/d0", "$defs": chain}):
        if call_format is XML or schema is not many:
            with pytest.raises(BadRequest, match="too large once its references are written out"):
                structural_tag(constraint(call_format, tool(schema)))


@pytest.mark.slow
@BOTH
def test_the_engine_takes_the_deepest_tag_that_is_accepted(call_format: ToolCallFormat) -> None:
    from vllm import sampling_params

    accepted, reasons = 0, set()
    for depth in range(1, 40):
        schema: Any = {"type": "integer"}
        for _ in range(depth):
            schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        try:
            held = constraint(call_format, tool(schema), tool(schema, "g"), requires_call=False, max_calls=3)
            tag = structural_tag(held)
        except BadRequest as error:
            reasons.add(error.violations[0].reason)
            continue
        sampling_params.check_json_nesting(tag, structural_tag=True)
        accepted = depth
    assert accepted >= 20
    assert reasons == {"LIMIT_EXCEEDED"}


def test_the_tag_is_one_that_xgrammar_knows() -> None:
    import xgrammar

    tools = (tool(schema_of(*(set(PROPERTIES) - {"anything"}))), tool({"type": "object"}, "g"), tool(name="h"))
    for call_format in (JSON, XML):
        for requires_call in (True, False):
            for most in (1, 2, None):
                tag = structural_tag(constraint(call_format, *tools, requires_call=requires_call, max_calls=most))
                known = xgrammar.StructuralTag.model_validate_json(tag).model_dump(exclude_unset=True, mode="json")
                assert known == json.loads(tag)


def test_a_call_is_written_as_the_template_writes_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "array"}}, "required": ["a"]}
    for call_format, text in (
        (
            XML,
            '<tool_call>\n<function=f>\n<parameter=a>\nx y\n</parameter>\n<parameter=n>\n[1, {"k": 2}]\n</parameter>\n'
            "</function>\n</tool_call>",
        ),
        (JSON, '<tool_call>\n{"name": "f", "arguments": {"a": "x y", "n": [1, {"k": 2}]}}\n</tool_call>'),
    ):
        assert allows(constraint(call_format, tool(schema)), text)
        for spaces in ("  ", "\n\n"):
            assert not allows(constraint(call_format, tool(schema)), text.replace("[1, ", f"[1,{spaces}"))


def test_the_text_of_a_tool_says_what_is_too_complex() -> None:
    deep = '{"a":' * 70 + "1" + "}" * 70
    nested = json.dumps({"properties": {"a": {"pattern": "((a{1,300}){1,300}){1,300}"}}})
    for text in (deep, nested):
        tools = (tool(ONE_LETTER, "a"), Tool("b", parameters_json_schema=text))
        held = StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=constraint(XML, *tools))
        assert "nested" in too_complex(held)
        assert too_complex(replace(held, tool_calls=constraint(XML, tools[0]))) == ""


def test_the_caller_of_tools_is_known_by_their_kind_alone() -> None:
    held = StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=constraint(XML, tool(ONE_LETTER)))
    other = replace(held, tool_calls=constraint(JSON, tool(name="g"), requires_call=False))
    who = accountable("a", Sampling(), held)
    assert who == accountable("a", Sampling(), other) != accountable("a", Sampling(), None)
