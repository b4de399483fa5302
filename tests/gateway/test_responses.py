"""`POST /v1/responses`: each object and each event is what the official `openai` package says it is."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseFunctionCallOutputItemListParam,
    ResponseFunctionToolCallParam,
    ResponseInputParam,
    ResponseStreamEvent,
)
from openai.types.responses.response_input_param import FunctionCallOutput
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from pydantic import BaseModel, TypeAdapter

from tests.gateway.conftest import Gateway, openai_of, until
from tests.pictures import png
from tests.rpc.fake_service import FakeService, events
from tests.rpc.test_tool_calls import ARGUMENTS, OSLO, ROME, SCHEMA

THINKS = Reply(thought="17+25=42", answer="The answer is é 42.")
ASKED: dict[str, Any] = {"model": "scripted", "input": "hello", "thinking_mode": "thinking"}
TOOL = {"type": "function", "name": "weather", "parameters": json.loads(SCHEMA), "strict": False}
DRAW: FunctionToolParam = {"type": "function", "name": "draw", "parameters": {"type": "object"}, "strict": False}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
Events = list[dict[str, Any]]


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/responses", json=ASKED | body)


async def read(reply: httpx.Response) -> tuple[Events, list[str]]:
    """The events of a stream and their ids; checks each, its name and its number."""
    events: Events = []
    ids: list[str] = []
    name = event_id = ""
    async for line in reply.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "id":
            event_id = value
        elif field == "data":
            data = json.loads(value)
            EVENT.validate_python(data, strict=True)
            assert data["type"] == name
            events.append(data)
            ids.append(event_id)
            name = event_id = ""
        else:
            assert not line or line.startswith(":"), line
    return events, ids


async def events_of(http: httpx.AsyncClient, **body: Any) -> Events:
    async with http.stream("POST", "/v1/responses", json=ASKED | {"stream": True} | body) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        events, _ = await read(reply)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def without_ids(value: Any) -> Any:
    """The value without what differs between two generations."""
    if isinstance(value, list):
        return [without_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: without_ids(one)
        for name, one in value.items()
        if name not in ("id", "call_id", "item_id", "created_at", "completed_at", "penstock")
    }


def deltas(events: Events, kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


async def test_a_response_has_openais_shape(gateway: Gateway) -> None:
    made = (await ask(await gateway(THINKS))).json()
    response = Response.model_validate(made, strict=True)
    assert response.output_text == "The answer is é 42."
    assert (made["object"], made["status"], made["model"]) == ("response", "completed", "scripted")
    assert made["id"] == f"resp_{made['penstock']['generation_id']}"
    thought, message = made["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "17+25=42"}]
    assert (thought["type"], thought["summary"], thought["status"]) == ("reasoning", [], "completed")
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    usage = made["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": len("17+25=42")}
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (made["store"], made["background"], made["previous_response_id"]) == (False, False, None)
    assert made["penstock"]["candidates"][0]["thinking_outcome"] == "natural_end"


async def test_a_stream_sums_to_the_response(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    whole = (await ask(http)).json()
    events = await events_of(http)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["type"] == "response.completed"
    assert without_ids(events[-1]["response"]) == without_ids(whole)
    assert (deltas(events, "reasoning_text"), deltas(events, "output_text")) == ("17+25=42", "The answer is é 42.")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}


@pytest.mark.parametrize("field", ["summary", "generate_summary"])
async def test_with_summary_the_thought_is_the_summary(gateway: Gateway, field: str) -> None:
    http = await gateway(THINKS)
    whole = (await ask(http, reasoning={field: "auto"})).json()
    assert whole["output"][0]["summary"] == [{"type": "summary_text", "text": "17+25=42"}]
    assert "content" not in whole["output"][0]
    events = await events_of(http, reasoning={field: "auto"})
    assert deltas(events, "reasoning_summary_text") == "17+25=42"
    assert without_ids(events[-1]["response"]) == without_ids(whole)


async def test_without_thought_there_is_no_reasoning_item(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    for more in ({"include_reasoning": False}, {"reasoning": {"effort": "none"}, "thinking_mode": None}):
        assert [one["type"] for one in (await ask(http, **more)).json()["output"]] == ["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_loop_of_tools(gateway: Gateway, stream: bool) -> None:
    http = await gateway(
        Reply("<tool_response>", thought="ok", answer="It is warm."),
        Reply(thought="I look.", answer=f"One moment.\n{OSLO}\n{ROME}", chunk_tokens=3),
    )
    async with openai_of(http) as openai:
        items: list[Any] = [{"role": "user", "content": "How warm is it in Oslo?"}]
        response = await _response(openai, stream, items)
        kinds = [item.type for item in response.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        assert response.output_text == "One moment."
        calls = [item for item in response.output if item.type == "function_call"]
        assert json.loads(calls[0].arguments) == ARGUMENTS
        items += response.output
        items += [{"type": "function_call_output", "call_id": one.call_id, "output": "21 degrees"} for one in calls]
        response = await _response(openai, stream, items)
        assert (response.output_text, response.status) == ("It is warm.", "completed")


async def _response(openai: AsyncOpenAI, stream: bool, items: list[Any]) -> Any:
    asked: dict[str, Any] = {"model": "scripted", "input": items, "tools": [TOOL]}
    asked |= {"extra_body": {"thinking_mode": "thinking"}}
    if not stream:
        return await openai.responses.create(**asked)
    async with openai.responses.stream(**asked) as events:
        async for event in events:
            assert event.type
        return await events.get_final_response()


async def test_streamed_calls_sum_to_the_response(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="I look.", answer=f"One moment.\n{OSLO}\n{ROME}", chunk_tokens=3))
    whole = (await ask(http, tools=[TOOL])).json()
    events = await events_of(http, tools=[TOOL])
    assert without_ids(events[-1]["response"]) == without_ids(whole)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert deltas(events, "function_call_arguments") == "".join(call["arguments"] for call in calls)
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == [call["arguments"] for call in calls]
    assert whole["tools"][0]["parameters"] == json.loads(SCHEMA)


class Sum(BaseModel):
    """A sum."""

    value: int


async def test_structured_output(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    fake.candidate = pb.Candidate(answer='{"value": 75}')
    async with openai_of(await gateway.in_front_of(served[1])) as openai:
        response = await openai.responses.parse(model="", input="What is 48 + 27?", text_format=Sum)
    assert response.output_parsed == Sum(value=75)
    schema = json.loads(fake.generations[-1].spec.output.json_schema)
    assert schema["properties"]["value"]["type"] == "integer"


async def test_items_become_messages(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    http = await gateway.in_front_of(served[1])
    text = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "How "}, {"type": "input_text", "text": "warm?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]},
        {"type": "function_call", "id": "f", "call_id": "c1", "name": "weather", "arguments": "{}", "async": None},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "21"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "22"}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "so"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "function_call", "call_id": "c3", "name": "weather", "arguments": ""},
        {"type": "function_call_output", "call_id": "c3", "output": "23"},
        {"role": "assistant", "content": "All are warm."},
        {"role": "user", "content": "Thanks"},
    ]
    reply = await ask(http, input=items, instructions="Speak French.")
    assert reply.status_code == 200, reply.text
    told = [(pb.Role.Name(one.role)[5:].lower(), *_told(one)) for one in fake.generations[-1].spec.messages.messages]
    assert told == [
        ("system", "Speak French."),
        ("system", "Be brief."),
        ("user", "How ", "warm?"),
        ("assistant", "thought hm", "I look.", "call c1 {}", 'call c2 {"a": 1}'),
        ("tool", "result c1 21"),
        ("tool", "result c2 22"),
        ("assistant", "thought so", "call c3 {}"),
        ("tool", "result c3 23"),
        ("assistant", "All are warm."),
        ("user", "Thanks"),
    ]


def _told(message: pb.Message) -> list[str]:
    if message.content:
        return [message.content]
    made = []
    for part in message.parts:
        match part.WhichOneof("part"):
            case "thought":
                made.append(f"thought {part.thought}")
            case "tool_call":
                made.append(f"call {part.tool_call.id} {part.tool_call.arguments_json}")
            case "tool_result":
                made.append(f"result {part.tool_result.call_id} {part.tool_result.content[0].text}")
            case _:
                made.append(part.text)
    return made


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def with_output(output: ResponseFunctionCallOutputItemListParam) -> ResponseInputParam:
    """A conversation whose tool has returned this, in the package's own types."""
    call: ResponseFunctionToolCallParam = {
        "type": "function_call",
        "call_id": "c",
        "name": "draw",
        "arguments": "{}",
    }
    told: FunctionCallOutput = {"type": "function_call_output", "call_id": "c", "output": output}
    return [{"role": "user", "content": "Draw!"}, call, told]


async def test_a_function_returns_texts_and_images(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService
) -> None:
    red, blue = png(64, 64, "red"), png(64, 32, "blue")
    output: ResponseFunctionCallOutputItemListParam = [
        {"type": "input_text", "text": "before "},
        {"type": "input_image", "image_url": url_of(red), "detail": "auto"},
        {"type": "input_text", "text": "between"},
        {"type": "input_image", "image_url": url_of(blue)},
    ]
    async with openai_of(await gateway.in_front_of(served[1])) as openai:
        await openai.responses.create(model="", input=with_output(output), tools=[DRAW])
    (part,) = fake.generations[-1].spec.messages.messages[-1].parts
    assert part.tool_result.call_id == "c"
    assert [one.text or one.image.data for one in part.tool_result.content] == ["before ", red, "between", blue]
    assert {one.image.mime_type for one in part.tool_result.content if one.HasField("image")} == {"image/png"}


async def test_images_of_a_function_are_counted_like_those_of_a_user(gateway: Gateway) -> None:
    """Two images of 64 x 64 and 64 x 32 pixels, of which the scripted model reads 32 x 32 as a token."""
    texts: ResponseFunctionCallOutputItemListParam = [{"type": "input_text", "text": "Here."}]
    shown: ResponseFunctionCallOutputItemListParam = [
        *texts,
        {"type": "input_image", "image_url": url_of(png(64, 64))},
        {"type": "input_image", "image_url": url_of(png(64, 32))},
    ]
    async with openai_of(await gateway(THINKS)) as openai:
        counts = []
        for output in (texts, shown):
            made = await openai.responses.create(model="", input=with_output(output), tools=[DRAW])
            assert made.usage is not None
            counts.append(made.usage.input_tokens)
    assert counts[1] - counts[0] == 4 + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "param", "said"),
    [
        ({"type": "input_image", "image_url": "https://a.example/x.png"}, ".image_url", "no address is ever fetched"),
        ({"type": "input_image", "file_id": "file-1"}, ".file_id", "no files are stored"),
        ({"type": "input_image"}, ".image_url", "is required"),
        ({"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}, "", "image"),
        ({"type": "input_file", "file_data": "eA=="}, ".type", "not taken by this service"),
    ],
)
async def test_what_a_function_returns_is_refused_at_its_place(
    gateway: Gateway, part: dict[str, str], param: str, said: str
) -> None:
    http = await gateway(THINKS)
    output = [{"type": "input_text", "text": "a"}, part]
    items = [{"type": "function_call", "call_id": "c", "name": "draw", "arguments": "{}"}]
    items.append({"type": "function_call_output", "call_id": "c", "output": output})  # type: ignore[dict-item]
    reply = await ask(http, input=[{"role": "user", "content": "Draw!"}, *items], tools=[DRAW])
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert error["param"] == f"input[2].output[1]{param}"
    assert said in error["message"]


async def test_options_reach_the_service(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    http = await gateway.in_front_of(served[1])
    asked = {
        "reasoning": {"effort": "low", "context": "all_turns", "mode": "standard"},
        "truncation": "auto",
        "prompt_cache_key": "k",
        "max_output_tokens": 50,
        "tools": [TOOL, TOOL | {"name": "other", "allowed_callers": ["direct"], "async": False}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]},
        "parallel_tool_calls": False,
        "service_tier": "flex",
        "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "thinking_mode": None,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
    }
    reply = await ask(http, **asked)
    made, spec = reply.json(), fake.generations[-1].spec
    assert Response.model_validate(made, strict=True)
    assert (spec.thinking.effort, spec.thinking.history) == (pb.EFFORT_LOW, pb.THOUGHT_HISTORY_ALL_TURNS)
    assert spec.context.overflow == pb.OVERFLOW_POLICY_DROP_OLDEST_TURNS
    assert (spec.context.session_id, spec.output.max_output_tokens) == ("k", 50)
    assert (spec.tool_config.mode, [*spec.tool_config.allowed_names]) == (pb.TOOL_MODE_REQUIRED, ["other"])
    assert (spec.tool_config.parallel, spec.priority) == (False, pb.PRIORITY_LOW)
    assert spec.output.HasField("top_logprobs")
    assert spec.output.top_logprobs == 0
    for name in ("metadata", "temperature", "truncation", "tool_choice", "parallel_tool_calls", "service_tier", "text"):
        assert made[name] == asked[name], name
    assert made["reasoning"] == {"effort": "low", "summary": None}


async def test_log_probabilities(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    asked: dict[str, Any] = {"top_logprobs": 1, "thinking_mode": "fast"}
    whole = (await ask(http, **asked)).json()
    entries = whole["output"][0]["content"][0]["logprobs"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "The answer is é 42."
    assert len(entries[0]["top_logprobs"]) == 1
    events = await events_of(http, **asked)
    told = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for one in told for entry in one] == entries
    assert without_ids(events[-1]["response"]) == without_ids(whole)


async def test_what_was_cut_is_incomplete(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    for asked, last in (
        ({"thinking_mode": "fast"}, "message"),
        ({"answer_reserve": 1, "thinking_budget": 4}, "message"),
    ):
        whole = (await ask(http, max_output_tokens=5, **asked)).json()
        assert Response.model_validate(whole, strict=True)
        assert (whole["status"], whole["completed_at"]) == ("incomplete", None)
        assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
        assert (whole["output"][-1]["type"], whole["output"][-1]["status"]) == (last, "incomplete")
        events = await events_of(http, max_output_tokens=5, **asked)
        assert events[-1]["type"] == "response.incomplete"
        assert without_ids(events[-1]["response"]) == without_ids(whole)


async def test_a_call_that_was_cut_is_incomplete(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer=OSLO))
    asked = {"tools": [TOOL], "thinking_mode": "fast", "max_output_tokens": 60}
    whole = (await ask(http, **asked)).json()
    assert (whole["output"][-1]["type"], whole["output"][-1]["status"]) == ("function_call", "incomplete")
    events = await events_of(http, **asked)
    assert without_ids(events[-1]["response"]) == without_ids(whole)


@pytest.mark.slow
async def test_an_error_after_the_start_is_an_event(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3000, step_seconds=0.05))
    events = await events_of(http, timeout=2, thinking_mode="fast")
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["error"]["penstock"]["reason"] == "DEADLINE_PASSED"


@pytest.mark.slow
@pytest.mark.parametrize("summary", [None, "auto"])
async def test_a_dropped_stream_is_continued(gateway: Gateway, summary: str | None) -> None:
    http = await gateway(Reply(thought="17+25=42", answer=f"Look.\n{OSLO}", step_seconds=0.005))
    asked = ASKED | {"stream": True, "resumable": True, "tools": [TOOL], "reasoning": {"summary": summary}}
    async with http.stream("POST", "/v1/responses", json=asked) as reply:
        events, ids = await read(reply)
    assert ids[-1].startswith("v1:response:")
    for after in (1, 6, 12, 30, len(events) - 1):
        after = next(place for place in range(after, len(events)) if ids[place])
        path = f"/v1/generations/{ids[after].split(':')[3]}/events"
        async with http.stream("GET", path, headers={"last-event-id": ids[after]}) as reply:
            assert reply.status_code == 200, await reply.aread()
            rest, _ = await read(reply)
        assert without_echo(rest) == without_echo(events[after + 1 :])


def without_echo(events: Events) -> Events:
    """The events without the time of the connection, and what a continued stream does not know of the request."""
    names = ("tools", "created_at", "completed_at", "reasoning")
    return [
        event | {"response": {name: one for name, one in event["response"].items() if name not in names}}
        if "response" in event
        else event
        for event in events
    ]


async def test_steering_ends_a_response(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="x" * 3000, answer="done", step_seconds=0.01))
    asked = ASKED | {"stream": True, "resumable": True}
    async with http.stream("POST", "/v1/responses", json=asked) as reply:
        lines = reply.aiter_lines()
        last = ""
        async for line in lines:
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
                break
        path = f"/v1/generations/{last.split(':')[3]}/steer"
        steered = await http.post(path, json={"action": "cancel"}, headers={"last-event-id": last})
        assert steered.status_code == 200, steered.text
        data = [json.loads(line.removeprefix("data: ")) async for line in lines if line.startswith("data: ")]
    assert EVENT.validate_python(data[-1], strict=True)
    assert data[-1]["type"] == "response.incomplete"
    assert data[-1]["response"]["incomplete_details"] == {"reason": "steered"}


async def test_a_client_that_leaves_ends_the_generation(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3000, step_seconds=0.01))
    async with http.stream("POST", "/v1/responses", json=ASKED | {"thinking_mode": "fast", "stream": True}):
        await until(lambda: gateway.engines[-1].running == 1)
    await until(lambda: gateway.engines[-1].running == 0)


async def test_line_breaks_between_the_parts_of_a_request_do_not_break_events(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    asked = ASKED | {"stream": True, "tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}
    asked["tool_choice"]["tools"] = [{"type": "function", "name": "weather"}]
    body = json.dumps(asked, indent=1).replace("\n", "\r\n")
    async with http.stream(
        "POST", "/v1/responses", content=body, headers={"content-type": "application/json"}
    ) as reply:
        events, _ = await read(reply)
    assert events[-1]["response"]["tools"][0]["parameters"] == json.loads(SCHEMA)


HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "missing_required_parameter"),
        ({"input": ["x"]}, "input[0]", "invalid_value"),
        ({"input": [HELLO, {"role": "tool", "content": "x"}]}, "input[1].role", "invalid_value"),
        ({"input": [HELLO, {"type": "item_reference", "id": "x"}]}, "input[1].type", "unsupported_value"),
        ({"input": [{"type": "computer_call_output"}]}, "input[0].type", "unsupported_value"),
        ({"input": [HELLO | {"x": 1}]}, "input[0].x", "unknown_parameter"),
        ({"input": [HELLO, CALL]}, "input[1]", "missing_required_parameter"),
        ({"input": [HELLO, CALL | {"arguments": "{"}]}, "input[1]", "invalid_value"),
        ({"input": [HELLO, CALL | {"namespace": "x"}]}, "input[1].namespace", "unsupported_value"),
        ({"input": [HELLO, CALL | {"async": True}]}, "input[1].async", "unsupported_value"),
        (
            {"input": [HELLO, CALL | {"caller": {"type": "program", "caller_id": "x"}}]},
            "input[1].caller",
            "unsupported_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0].type",
            "unsupported_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
            "input[0].content[0].file_id",
            "unsupported_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/x"}]}]},
            "input[0].content[0].image_url",
            "unsupported_value",
        ),
        ({"input": "x" * 5000}, "input", "context_length_exceeded"),
        ({"input": [HELLO], "instructions": ""}, None, None),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"prompt": {"id": "x"}}, "prompt", "unsupported_parameter"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"max_tokens": 2}, "max_tokens", "unknown_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading", "unsupported_value"),
        ({"tools": [TOOL | {"async": True}]}, "tools[0].async", "unsupported_value"),
        ({"tools": [TOOL, TOOL]}, "tools[1]", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice", "unsupported_value"),
        ({"include": ["web_search_call.results"]}, "include[0]", "unsupported_value"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "unsupported_value"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_value"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "unsupported_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "feature_off"),
        ({"truncation": "auto", "overflow": "error"}, "truncation", "conflicting_parameters"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown_parameter"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(
    gateway: Gateway, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    http = await gateway(THINKS)
    for stream in (False, True):
        reply = await ask(http, stream=stream, **body)
        if param is None:
            assert reply.status_code == 200, reply.text
            continue
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


async def test_nothing_is_stored(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    for more in ({"store": None}, {"store": False}, {"background": False}, {"previous_response_id": None}):
        assert (await ask(http, **more)).json()["store"] is False
    async with openai_of(http) as openai:
        response = await openai.responses.create(model="scripted", input="hello")
        assert response.to_dict()["store"] is False
        for work in (openai.responses.retrieve, openai.responses.delete, openai.responses.cancel):
            with pytest.raises(NotFoundError, match="no response is stored"):
                await work(response.id)
        with pytest.raises(BadRequestError) as refused:
            await openai.responses.create(model="scripted", input="hello", previous_response_id=response.id)
        assert (refused.value.param, refused.value.code) == ("previous_response_id", "unsupported_parameter")


async def test_the_prompt_is_in_no_error(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    secret = "a-secret-that-nobody-may-see"
    for given in (
        [{"role": "user", "content": [{"type": "input_text", "text": secret, "x": 1}]}],
        [{"role": "user", "content": [{"type": "input_text", "text": [secret]}]}],
        [{"type": "reasoning", "summary": secret}],
        [secret],
        {"a": secret},
    ):
        reply = await ask(http, input=given)
        assert reply.status_code == 400
        assert secret not in reply.text


async def test_a_stream_whose_start_is_gone_is_not_continued(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService
) -> None:
    """As where it moved to another server, which sends what came after the move."""
    http = await gateway.in_front_of(served[1])
    fake.playing = [*events()[3:]]
    for last, status in (("v1:response::g1:5:t", 404), ("v1:completion:l:g1:5:t", 404), ("v1:completion::g1:5:t", 200)):
        reply = await http.get("/v1/generations/g1/events", headers={"last-event-id": last})
        assert reply.status_code == status, reply.text
        assert status == 200 or reply.json()["error"]["code"] == "generation_not_found"
