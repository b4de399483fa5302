"""Bounds of requests with tools: on the work that they cause, and on what errors and traces show of them."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.config.schema import Config
from penstock.engine.vllm.constraints.compiling import compiled_text
from penstock.engine.vllm.constraints.sandbox import ConstraintSandbox
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.engine.vllm.constraints.tool_calls import structural_tag
from penstock.errors import BadRequest, FieldViolation
from penstock.generation import tool_validation
from penstock.generation.complexity import schema_fault
from penstock.generation.tool_planning import constraint_of
from penstock.server.rpc.status import status_of
from penstock.telemetry.otel import names
from penstock.telemetry.otel.content import Content
from penstock.types import Request, StructuredKind, StructuredOutput, Tool, ToolCallFormat, ToolConfig, ToolConstraint
from penstock_proto.v1 import generation_pb2 as pb

from tests.unit.test_tool_requests import ASSISTANT, CARD, TOOL, USER, M, call, message, result, spec, taken, tool

FORMATS = pytest.mark.parametrize("call_format", list(ToolCallFormat))
DIGITS = "9" * 5000


def refused(asked: pb.GenerationSpec) -> list[FieldViolation]:
    with pytest.raises(BadRequest) as error:
        taken(asked)
    return list(error.value.violations)


def constraint(call_format: ToolCallFormat, *schemas: Any) -> ToolConstraint:
    tools = [Tool(f"t{n}", parameters_json_schema=json.dumps(one), strict=True) for n, one in enumerate(schemas)]
    return ToolConstraint(call_format, tuple(tools), True, 1)


def doubling(width: int, levels: int, last: Any) -> dict[str, Any]:
    """Return a schema that is `width ** levels` copies of `last` once its references are written out."""
    chain = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * width} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": chain | {f"d{levels}": last}}


class Counted(str):
    """A name whose every comparison is a call of a Python function."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def work_of(does: Callable[[], object]) -> int:
    """Return how many functions are called meanwhile: a measure of work that no busy machine changes."""
    calls = 0

    def count(_: FrameType, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        does()
    finally:
        sys.setprofile(before)
    return calls


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tools", "allowed", "field"),
    [
        (200_000, 200_000, "spec.tools"),
        (1, 200_000, "spec.tool_config.allowed_names"),
        (20, 0, "spec.tools"),
    ],
    ids=["tools", "names", "bytes"],
)
def test_what_is_too_large_is_not_read(tools: int, allowed: int, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(text: str) -> str:
        raise AssertionError(text)

    monkeypatch.setattr(tool_validation, "schema_fault", read)
    schema = json.dumps({"title": "x" * 5000}) if tools == 20 else ""
    config = ToolConfig(
        tuple(Tool(Counted(f"t{n}"), parameters_json_schema=schema) for n in range(tools)),
        allowed_names=tuple(Counted(f"t{n}") for n in range(allowed)),
    )
    request = Request(messages=taken(spec()).messages, tools=config)

    def take() -> None:
        found = list(tool_validation.validate_tools(request, Config().resolved_limits))
        assert [(one.field, one.reason) for one in found] == [(field, "LIMIT_EXCEEDED")]
        assert len(config.callable_tools) == (min(tools, allowed) if allowed else tools)
        constraint_of(request, CARD)

    assert work_of(take) < 1000 + 20 * (tools + allowed)


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize(
    ("schema", "copies"),
    [
        (doubling(4, 7, {"type": "object", "properties": {"a": {"type": "string"}}}), 1),
        (doubling(4, 7, {"type": "object", "properties": {"a": {"type": "string"}}}), 70),
        (doubling(4, 5, {"enum": ["x" * 30_000]}), 2),
        (doubling(4, 6, {"type": "object", "properties": {"a": {"type": "string", "pattern": "x" * 400}}}), 45),
        ({"type": "object", "properties": {"a": {"oneOf": [{"const": n} for n in range(4000)]}}}, 1),
    ],
    ids=["references", "references of many", "values", "patterns", "parts"],
)
def test_schemas_that_grow_are_refused_soon(call_format: ToolCallFormat, schema: Any, copies: int) -> None:
    held = constraint(call_format, *[schema] * copies)
    assert sum(len(tool.parameters_json_schema) for tool in held.tools) < 1 << 17

    def write() -> None:
        with pytest.raises(BadRequest, match="too large once its references are written out"):
            structural_tag(held)

    assert work_of(write) < 4_000_000


@FORMATS
def test_tools_share_what_they_may_write(call_format: ToolCallFormat) -> None:
    schema = doubling(4, 4, {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    structural_tag(constraint(call_format, schema))
    with pytest.raises(BadRequest, match="written out") as error:
        structural_tag(constraint(call_format, *[schema] * 75))
    assert "spec.tools[" in error.value.violations[0].field


@FORMATS
def test_many_plain_tools_are_taken(call_format: ToolCallFormat) -> None:
    properties = {f"p{n}": {"type": ["string", "null"], "description": "what it is"} for n in range(7)}
    held = constraint(call_format, *[{"type": "object", "properties": properties}] * 128)
    assert 60_000 < sum(len(tool.parameters_json_schema) for tool in held.tools) < 70_000
    structural_tag(held)


async def test_a_long_constraint_is_converted_in_a_thread() -> None:
    threads = []

    def grammar_of(structured: StructuredOutput) -> tuple[str, str]:
        threads.append(threading.current_thread() is threading.main_thread())
        return "json", structured.spec

    class Taken(ConstraintSandbox):
        async def _try(self, kind: str, spec: str) -> int:
            await asyncio.sleep(0)
            return SandboxResult.GOOD

    sandbox = Taken(lambda: "", grammar_of, 5.0)
    for text in ("{}", json.dumps({"title": "x" * 5000})):
        await sandbox.check(StructuredOutput(StructuredKind.JSON_SCHEMA, text), "a")
    assert threads == [True, False]
    await sandbox.close()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/\ud800"}}},
        {"type": "object", "properties": {"\ud800": {"type": "array", "contains": {}}}},
    ],
    ids=["reference", "name"],
)
@pytest.mark.parametrize("kind", [*ToolCallFormat, "json_schema"])
def test_errors_are_well_formed_text(schema: Any, kind: str) -> None:
    if kind == "json_schema":
        structured = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema))
    else:
        held = constraint(ToolCallFormat(kind), schema)
        structured = StructuredOutput(StructuredKind.TOOL_CALLS, tool_calls=held)
    with pytest.raises(BadRequest) as error:
        compiled_text(structured)
    _, text, packed = status_of(error.value)
    details = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(packed).details[1].Unpack(details)
    assert "\ufffd" in details.field_violations[0].description
    assert "\ufffd" in text


def test_pairs_of_surrogates_are_one_character() -> None:
    assert FieldViolation("a\ud83d\ude00", "\ud83d", "INVALID_FIELD").field == "a\U0001f600"
    assert FieldViolation("a", "\ud83d!", "INVALID_FIELD").description == "\ufffd!"


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (spec(tools=[tool("my secret tool name!")]), "got 20 characters, the first wrong one at 2"),
        (spec(tools=[tool("mysecret" * 9)]), "got 72 characters"),
        (spec(tools=[tool("9secret")]), "got 7 characters, the first wrong one at 0"),
        (spec(tools=[tool()], config=pb.ToolConfig(allowed_names=["secret"])), "got 6 other characters"),
        (
            spec(tools=[tool("secret")], config=pb.ToolConfig(allowed_names=["secret", "secret"])),
            "must be named once, got a name again",
        ),
        (spec(USER, message(ASSISTANT, call(name="my secret")), message(TOOL, result())), "the first wrong one at 2"),
    ],
)
def test_errors_do_not_show_names_of_tools(asked: pb.GenerationSpec, what: str) -> None:
    with pytest.raises(BadRequest) as error:
        taken(asked)
    assert "secret" not in error.value.message
    assert error.value.message.endswith(what)


# --------------------------------------------------------------------------------------------------------------- texts


def test_numbers_of_any_length_are_read() -> None:
    schema = f'{{"type": "object", "default": {DIGITS}, "properties": {{"a": {{"type": "string"}}}}}}'
    arguments = f'{{"a": {DIGITS}, "b": -{DIGITS}.5e7}}'
    taken(
        spec(USER, message(ASSISTANT, call(arguments=arguments)), message(TOOL, result()), tools=[tool(schema=schema)])
    )
    assert "must be a JSON object, got a number" in refused(spec(tools=[tool(schema=DIGITS)]))[0].description


def test_a_long_number_does_not_hide_a_pattern() -> None:
    costly = f'{{"default": {DIGITS}, "pattern": "((a{{1,50}}){{1,50}}){{1,50}}"}}'
    assert "nested repetitions" in schema_fault(costly)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ('{"a": NaN}', "must be a JSON object"),
        ('{"a": -Infinity}', "must be a JSON object"),
        ('{"a": 1, "b": 2, "a": 3}', "must name each argument once"),
        ('{"a": 1, "\\u0061": 3}', "must name each argument once"),
    ],
)
def test_arguments_that_readers_differ_about_are_refused(arguments: str, what: str) -> None:
    (found,) = refused(spec(USER, message(ASSISTANT, call(arguments=arguments)), message(TOOL, result())))
    assert (found.field, found.reason) == (f"{M}[1].parts[0].tool_call.arguments_json", "INVALID_FIELD")
    assert what in found.description


def test_what_is_inside_an_argument_is_kept_as_it_stands() -> None:
    taken(spec(USER, message(ASSISTANT, call(arguments='{"a": {"b": 1, "b": 2}}')), message(TOOL, result())))


@pytest.mark.parametrize("name", ["9x", "-x", ".x", "_", "a" * 64])
def test_names_that_the_model_may_write_are_taken_in_earlier_calls(name: str) -> None:
    taken(spec(USER, message(ASSISTANT, call(name=name)), message(TOOL, result())))


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "é", "a\n"])
def test_other_names_are_refused_in_earlier_calls(name: str) -> None:
    (found,) = refused(spec(USER, message(ASSISTANT, call(name=name)), message(TOOL, result())))
    assert found.field == f"{M}[1].parts[0].tool_call.name"


@pytest.mark.parametrize(("most", "reason"), [(-5, "INVALID_FIELD"), (0, "INVALID_FIELD"), (33, "LIMIT_EXCEEDED")])
def test_the_most_calls_are_checked_without_tools(most: int, reason: str) -> None:
    (found,) = refused(spec(config=pb.ToolConfig(max_calls=most)))
    assert (found.field, found.reason) == ("spec.tool_config.max_calls", reason)


def test_texts_of_tool_results_count_as_parts() -> None:
    def asked(count: int) -> pb.GenerationSpec:
        two = [pb.Part(tool_result=pb.ToolResult(call_id=n, content=[pb.Part(text="")] * count)) for n in "12"]
        return spec(USER, message(ASSISTANT, call("1"), call("2")), message(TOOL, *two))

    taken(asked(2046))  # and 2 calls and 2 results
    (found,) = refused(asked(2047))
    assert (found.field, found.reason) == ("spec.messages", "LIMIT_EXCEEDED")


# -------------------------------------------------------------------------------------------------------------- traces


@pytest.mark.parametrize(
    ("description", "count", "kept"),
    [
        ("short", 3, 3),
        ("x" * 40_000, 1, 1),
        ("é" * 40_000, 1, 1),
        ("x" * 1000, 100, 100),
        ('"' * 1000, 50, 50),
        ("\U0001f600" * 1000, 50, 50),
        ("x" * 1000, 1000, 500),
    ],
)
def test_the_tools_of_a_trace_are_json_that_fits(description: str, count: int, kept: int) -> None:
    content = Content()
    tools = tuple(Tool(f"t{n}", description=description) for n in range(count))
    content.asked(Request(text="hello", tools=ToolConfig(tools)))
    written = content.attributes()[names.TOOL_DEFINITIONS]
    assert len(written) <= 32_768
    found = json.loads(written)
    assert [one["name"] for one in found] == [f"t{n}" for n in range(len(found))]
    assert len(found) == kept if kept == count else 100 < len(found) < count
    assert all(description.startswith(one["description"]) for one in found)
    assert all(one["description"] for one in found) or kept < count
