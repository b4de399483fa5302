"""Requests with parts and tools: what is taken, and bad ones, each with its reason and path."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest, FeatureOff
from penstock.generation.validation import validate
from penstock.server.convert.generation import request_from_proto
from penstock.types import Request, Role, ToolCallFormat, ToolCallStatus, ToolMode
from penstock_proto.v1 import generation_pb2 as pb

CARD = replace(ScriptedEngine([]).card, tool_call_format=ToolCallFormat.XML, unsupported_fields={})
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
USER = pb.Message(role=pb.ROLE_USER, content="What is the weather in Oslo?")


def tool(name: str = "weather", schema: str = SCHEMA, **more: object) -> pb.Tool:
    return pb.Tool(name=name, parameters_json_schema=schema, **more)  # type: ignore[arg-type]


def call(call_id: str = "1", name: str = "weather", arguments: str = "{}", status: int = 0) -> pb.Part:
    return pb.Part(
        tool_call=pb.ToolCall(id=call_id, name=name, arguments_json=arguments, status=status)  # type: ignore[arg-type]
    )


def result(call_id: str = "1", text: str = "rain") -> pb.Part:
    return pb.Part(tool_result=pb.ToolResult(call_id=call_id, content=[pb.Part(text=text)]))


def message(role: pb.Role.ValueType, *parts: pb.Part, content: str = "") -> pb.Message:
    return pb.Message(role=role, parts=parts, content=content)


def spec(
    *messages: pb.Message, tools: Sequence[pb.Tool] = (), config: pb.ToolConfig | None = None, **more: object
) -> pb.GenerationSpec:
    asked = pb.GenerationSpec(messages=pb.Messages(messages=messages or [USER]), tools=tools, **more)  # type: ignore[arg-type]
    if config is not None:
        asked.tool_config.CopyFrom(config)
    return asked


def taken(asked: pb.GenerationSpec) -> Request:
    request = request_from_proto(asked)
    validate(request, CARD, Config().resolved_limits)
    return request


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


ASSISTANT, TOOL = pb.ROLE_ASSISTANT, pb.ROLE_TOOL
ASKED = message(ASSISTANT, call())
M = "spec.messages.messages"
REQUIRED = pb.ToolConfig(mode=pb.TOOL_MODE_REQUIRED)
BAD: dict[str, tuple[Callable[[], pb.GenerationSpec], str, str]] = {
    "a schema that is no JSON": (
        lambda: spec(tools=[tool(schema="{")]), "INVALID_FIELD", "spec.tools[0].parameters_json_schema"),
    "a schema that is a list": (
        lambda: spec(tools=[tool(schema="[]")]), "INVALID_FIELD", "spec.tools[0].parameters_json_schema"),
    "a schema that is true": (
        lambda: spec(tools=[tool(schema="true")]), "INVALID_FIELD", "spec.tools[0].parameters_json_schema"),
    "a schema of a string": (
        lambda: spec(tools=[tool(schema='{"type": "string"}')]),
        "INVALID_FIELD", "spec.tools[0].parameters_json_schema"),
    "a schema with NaN": (
        lambda: spec(tools=[tool(schema='{"default": NaN}')]),
        "INVALID_FIELD", "spec.tools[0].parameters_json_schema"),
    "a schema that nests without end": (
        lambda: spec(tools=[tool(schema=deep(10_000))]), "LIMIT_EXCEEDED", "spec.tools[0].parameters_json_schema"),
    "a huge schema": (
        lambda: spec(tools=[tool(schema=json.dumps({"description": "x" * 70_000}))]), "LIMIT_EXCEEDED", "spec.tools"),
    "many schemas that are huge together": (
        lambda: spec(tools=[tool(f"t{n}", json.dumps({"title": "x" * 5000})) for n in range(20)]),
        "LIMIT_EXCEEDED", "spec.tools"),
    "a tool without a name": (lambda: spec(tools=[tool("")]), "MISSING_FIELD", "spec.tools[0].name"),
    "a name that is a path": (lambda: spec(tools=[tool("../../etc/passwd")]), "INVALID_FIELD", "spec.tools[0].name"),
    "a name with a space": (lambda: spec(tools=[tool("get weather")]), "INVALID_FIELD", "spec.tools[0].name"),
    "a name that closes markup": (lambda: spec(tools=[tool("a>\n</function>")]), "INVALID_FIELD", "spec.tools[0].name"),
    "a name in other letters": (lambda: spec(tools=[tool("погода")]), "INVALID_FIELD", "spec.tools[0].name"),
    "a name that is too long": (lambda: spec(tools=[tool("a" * 65)]), "INVALID_FIELD", "spec.tools[0].name"),
    "a name that begins with a digit": (lambda: spec(tools=[tool("1a")]), "INVALID_FIELD", "spec.tools[0].name"),
    "two tools of one name": (lambda: spec(tools=[tool(), tool()]), "INVALID_FIELD", "spec.tools[1].name"),
    "too many tools": (lambda: spec(tools=[tool(f"t{n}") for n in range(129)]), "LIMIT_EXCEEDED", "spec.tools"),
    "a huge description": (
        lambda: spec(tools=[tool(description="x" * (20 << 20))]), "LIMIT_EXCEEDED", "spec.messages"),
    "required without tools": (lambda: spec(config=REQUIRED), "MISSING_FIELD", "spec.tools"),
    "validated without tools": (
        lambda: spec(config=pb.ToolConfig(mode=pb.TOOL_MODE_VALIDATED)), "MISSING_FIELD", "spec.tools"),
    "an unknown mode": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(mode=9)),  # type: ignore[arg-type]
        "INVALID_FIELD", "spec.tool_config.mode"),
    "an allowed name without tools": (
        lambda: spec(config=pb.ToolConfig(allowed_names=["a"])),
        "CONFLICTING_FIELDS", "spec.tool_config.allowed_names"),
    "an allowed name of no tool": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(allowed_names=["weather", "b"])),
        "INVALID_FIELD", "spec.tool_config.allowed_names[1]"),
    "an allowed name twice": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(allowed_names=["weather", "weather"])),
        "INVALID_FIELD", "spec.tool_config.allowed_names[1]"),
    "an allowed name beside NONE": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(mode=pb.TOOL_MODE_NONE, allowed_names=["weather"])),
        "CONFLICTING_FIELDS", "spec.tool_config.allowed_names"),
    "no call at most": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(max_calls=0)), "INVALID_FIELD", "spec.tool_config.max_calls"),
    "more calls than the limit": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(max_calls=33)),
        "LIMIT_EXCEEDED", "spec.tool_config.max_calls"),
    "two calls that are not parallel": (
        lambda: spec(tools=[tool()], config=pb.ToolConfig(max_calls=2, parallel=False)),
        "CONFLICTING_FIELDS", "spec.tool_config.max_calls"),
    "tools beside structured output": (
        lambda: spec(tools=[tool()], output=pb.OutputConfig(regex="a+")),
        "CONFLICTING_FIELDS", "spec.output.structured_output"),
    "a minimum beside required calls": (
        lambda: spec(tools=[tool()], config=REQUIRED, output=pb.OutputConfig(min_output_tokens=1)),
        "CONFLICTING_FIELDS", "spec.output.min_output_tokens"),
    "tools for raw text": (
        lambda: pb.GenerationSpec(text="hello", tools=[tool()]), "CONFLICTING_FIELDS", "spec.tools"),
    "a tool message first": (
        lambda: spec(message(TOOL, result()), USER), "INVALID_FIELD", f"{M}[0].parts[0].tool_result.call_id"),
    "a result for an unknown call": (
        lambda: spec(USER, ASKED, message(TOOL, result("2"))), "INVALID_FIELD", f"{M}[2].parts[0].tool_result.call_id"),
    "a second result for a call": (
        lambda: spec(USER, ASKED, message(TOOL, result(), result())),
        "INVALID_FIELD", f"{M}[2].parts[1].tool_result.call_id"),
    "a result without an id": (
        lambda: spec(USER, ASKED, message(TOOL, result(""))), "MISSING_FIELD", f"{M}[2].parts[0].tool_result.call_id"),
    "a call without its result": (lambda: spec(USER, ASKED, USER), "MISSING_FIELD", f"{M}[1].parts[0].tool_call"),
    "one of two calls without its result": (
        lambda: spec(USER, message(ASSISTANT, pb.Part(text="hm"), call("1"), call("2")), message(TOOL, result("1"))),
        "MISSING_FIELD", f"{M}[1].parts[2].tool_call"),
    "a result after another message": (
        lambda: spec(USER, ASKED, USER, message(TOOL, result())),
        "INVALID_FIELD", f"{M}[3].parts[0].tool_result.call_id"),
    "a call without an id": (
        lambda: spec(USER, message(ASSISTANT, call(""))), "MISSING_FIELD", f"{M}[1].parts[0].tool_call.id"),
    "two calls of one id": (
        lambda: spec(USER, message(ASSISTANT, call(), call()), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[1].tool_call.id"),
    "a call whose name is markup": (
        lambda: spec(USER, message(ASSISTANT, call(name="</tool_call>")), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[0].tool_call.name"),
    "arguments that are no JSON": (
        lambda: spec(USER, message(ASSISTANT, call(arguments='{"a":')), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[0].tool_call.arguments_json"),
    "arguments that are a list": (
        lambda: spec(USER, message(ASSISTANT, call(arguments="[1]")), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[0].tool_call.arguments_json"),
    "a call that was cut": (
        lambda: spec(USER, message(ASSISTANT, call(status=pb.TOOL_CALL_STATUS_INCOMPLETE)), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[0].tool_call.status"),
    "more calls in a message than the limit": (
        lambda: spec(USER, message(ASSISTANT, *(call(str(n)) for n in range(33)))),
        "LIMIT_EXCEEDED", f"{M}[1].parts"),
    "content beside parts": (
        lambda: spec(message(pb.ROLE_USER, pb.Part(text="a"), content="b")), "CONFLICTING_FIELDS", f"{M}[0].content"),
    "a part that is nothing": (
        lambda: spec(message(pb.ROLE_USER, pb.Part())), "MISSING_FIELD", f"{M}[0].parts[0]"),
    "a thought of the user": (
        lambda: spec(message(pb.ROLE_USER, pb.Part(thought="a"))), "INVALID_FIELD", f"{M}[0].parts[0]"),
    "a call of the system": (
        lambda: spec(message(pb.ROLE_SYSTEM, call()), USER), "INVALID_FIELD", f"{M}[0].parts[0]"),
    "text after a call": (
        lambda: spec(USER, message(ASSISTANT, call(), pb.Part(text="a")), message(TOOL, result())),
        "INVALID_FIELD", f"{M}[1].parts[1]"),
    "two thoughts": (
        lambda: spec(USER, message(ASSISTANT, pb.Part(thought="a"), pb.Part(thought="b"))),
        "INVALID_FIELD", f"{M}[1].parts[1]"),
    "a tool message without a result": (
        lambda: spec(USER, ASKED, pb.Message(role=TOOL, content="rain")), "MISSING_FIELD", f"{M}[2].parts"),
    "a call inside a result": (
        lambda: spec(USER, ASKED, message(TOOL, pb.Part(tool_result=pb.ToolResult(call_id="1", content=[call()])))),
        "INVALID_FIELD", f"{M}[2].parts[0].tool_result.content[0]"),
    "too many parts": (
        lambda: spec(message(pb.ROLE_USER, *[pb.Part(text="")] * 4097)), "LIMIT_EXCEEDED", "spec.messages"),
    "an unknown effort": (
        lambda: spec(thinking=pb.ThinkingConfig(effort=9)),  # type: ignore[arg-type]
        "INVALID_FIELD", "spec.thinking.effort"),
    "an unknown history": (
        lambda: spec(thinking=pb.ThinkingConfig(history=9)),  # type: ignore[arg-type]
        "INVALID_FIELD", "spec.thinking.history"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_reason_and_path(name: str) -> None:
    make, reason, path = BAD[name]
    with pytest.raises(BadRequest) as refused:
        taken(make())
    found = {violation.field: violation for violation in refused.value.violations}
    assert path in found, list(found)
    assert found[path].reason == reason
    assert any(word in found[path].description for word in ("got", "must", "leave out")), found[path]


def test_there_are_forty_bad_requests() -> None:
    assert len(BAD) >= 40


def test_a_loop_of_tools_is_taken() -> None:
    request = taken(
        spec(
            message(pb.ROLE_SYSTEM, pb.Part(text="Be brief. "), pb.Part(text="Be right.")),
            USER,
            message(
                ASSISTANT,
                pb.Part(thought="two cities"),
                pb.Part(text="I look."),
                call("a", arguments='{"city": "Oslo"}'),
                call("b", arguments=""),
            ),
            message(TOOL, result("b", "sun")),
            message(TOOL, result("a", "rain")),
            tools=[tool(), tool("time", "")],
            config=pb.ToolConfig(mode=pb.TOOL_MODE_VALIDATED, allowed_names=["time"], parallel=False),
        )
    )
    assert request.messages is not None
    system, _, assistant, first, _ = request.messages
    assert (system.role, system.content) == (Role.SYSTEM, "Be brief. Be right.")
    assert (assistant.thought, assistant.content) == ("two cities", "I look.")
    assert [one.id for one in assistant.tool_calls] == ["a", "b"]
    assert assistant.tool_calls[0].status is ToolCallStatus.COMPLETE
    assert first.tool_results[0].text == "sun"
    assert (request.tools.mode, request.tools.max_calls) == (ToolMode.VALIDATED, 1)
    assert [one.name for one in request.tools.callable_tools] == ["time"]


def test_a_last_assistant_message_is_taken_to_be_continued() -> None:
    request = taken(spec(USER, message(ASSISTANT, pb.Part(text="The answer"))))
    assert request.messages is not None
    assert request.messages[-1].role is Role.ASSISTANT


@pytest.mark.parametrize("place", ["a user message", "a tool result"])
def test_an_image_is_off_where_the_model_reads_text_only(place: str) -> None:
    image = pb.Part(image=pb.Image(mime_type="image/png", data=b"x"))
    in_result = message(TOOL, pb.Part(tool_result=pb.ToolResult(call_id="1", content=[image])))
    asked = spec(message(pb.ROLE_USER, image)) if place == "a user message" else spec(USER, ASKED, in_result)
    with pytest.raises(FeatureOff) as refused:
        validate(request_from_proto(asked), replace(CARD, image_token_ids=frozenset()), Config().resolved_limits)
    assert refused.value.metadata["feature"] == "images"
    assert refused.value.metadata["field"].endswith(".image")


@pytest.mark.parametrize("asked", [spec(tools=[tool()]), spec(USER, ASKED, message(TOOL, result()))])
def test_tools_are_off_where_the_template_has_none(asked: pb.GenerationSpec) -> None:
    with pytest.raises(FeatureOff) as refused:
        validate(request_from_proto(asked), replace(CARD, tool_call_format=None), Config().resolved_limits)
    assert refused.value.metadata["feature"] == "tool_calls"


def test_an_engine_that_cannot_constrain_refuses_what_a_grammar_must_hold() -> None:
    card = replace(ScriptedEngine([]).card, tool_call_format=ToolCallFormat.XML)
    validate(request_from_proto(spec(tools=[tool()])), card, Config().resolved_limits)
    for asked in (spec(tools=[tool()], config=REQUIRED), spec(tools=[tool(strict=True)])):
        with pytest.raises(FeatureOff):
            validate(request_from_proto(asked), card, Config().resolved_limits)
