"""`POST /v1/chat/completions`, by the official `openai` package and by bare HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from penstock.engine.scripted import Reply

from tests.gateway.conftest import Gateway, chunks_of, openai_of, until
from tests.pictures import png
from tests.rpc.test_tool_calls import ARGUMENTS, OSLO, ROME, SCHEMA

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": json.loads(SCHEMA)}}
_CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"role": "assistant", "reasoning_content": "hm", "tool_calls": [_CALL | {"id": "a"}, _CALL | {"id": "b"}]}
THINKS = Reply(thought="17+25=42", answer="The answer is é 42.")
ASKED = {"model": "scripted", "messages": HELLO, "thinking_mode": "thinking"}


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=ASKED | body)


async def test_a_reply_has_openais_shape(gateway: Gateway) -> None:
    reply = await ask(await gateway(THINKS))
    assert reply.status_code == 200, reply.text
    made = reply.json()
    assert made["id"] == f"chatcmpl-{made['penstock']['generation_id']}"
    assert (made["object"], made["model"]) == ("chat.completion", "scripted")
    (choice,) = made["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "The answer is é 42.",
        "refusal": None,
        "reasoning_content": "17+25=42",
        "reasoning": "17+25=42",
    }
    assert (choice["finish_reason"], choice["logprobs"], choice["stop_reason"]) == ("stop", None, None)
    usage = made["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("17+25=42")}
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    ours = made["penstock"]["candidates"][0]
    assert (ours["finish_reason"], ours["thinking_outcome"]) == ("stop", "natural_end")
    assert made["penstock"]["settings"]["thinking_mode"] == "thinking"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_sums_to_the_reply(gateway: Gateway, include_usage: bool) -> None:
    http = await gateway(THINKS)
    whole = (await ask(http)).json()
    chunks = await chunks_of(http, ASKED | {"stream": True, "stream_options": {"include_usage": include_usage}})
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    message = whole["choices"][0]["message"]
    for name in ("content", "reasoning_content", "reasoning"):
        assert "".join(choice["delta"].get(name) or "" for choice in choices) == message[name]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    ended = [chunk["penstock"] for chunk in chunks if "thinking_finished" in chunk.get("penstock", {})]
    assert ended[0]["thinking_finished"] == {"outcome": "natural_end", "reasoning_tokens": 8}
    if include_usage:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)


async def test_the_official_package_streams_and_counts(gateway: Gateway) -> None:
    async with openai_of(await gateway(THINKS)) as openai:
        stream = await openai.chat.completions.create(
            model="scripted",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"thinking_mode": "thinking", "thinking_budget": 3},
        )
        chunks = [chunk async for chunk in stream]
    thought = "".join(getattr(c.choices[0].delta, "reasoning_content", "") or "" for c in chunks if c.choices)
    assert thought == "17+"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 3
    last = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert last.penstock["candidates"][0]["thinking_outcome"] == "budget_reached"  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_loop_of_tools(gateway: Gateway, stream: bool) -> None:
    http = await gateway(
        Reply("<tool_response>", thought="ok", answer="It is warm."),
        Reply(thought="I look.", answer=f"One moment.\n{OSLO}\n{ROME}", chunk_tokens=3),
    )
    async with openai_of(http) as openai:
        messages: list[Any] = [{"role": "user", "content": "How warm is it in Oslo?"}]
        common: dict[str, Any] = {"model": "scripted", "tools": [TOOL], "extra_body": {"thinking_mode": "thinking"}}
        message, finish = await _message(openai, stream, messages=messages, **common)
        assert finish == "tool_calls"
        assert message["content"] == "One moment."
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "weather"]
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == ARGUMENTS
        messages.append(message)
        for call in message["tool_calls"]:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"})
        message, finish = await _message(openai, stream, messages=messages, **common)
        assert (message["content"], finish) == ("It is warm.", "stop")


async def _message(openai: AsyncOpenAI, stream: bool, **asked: Any) -> tuple[dict[str, Any], str]:
    """The assistant's message as a client sends it back, with what the package keeps of it."""
    if not stream:
        reply = await openai.chat.completions.create(**asked)
        return reply.choices[0].message.model_dump(), reply.choices[0].finish_reason
    async with openai.chat.completions.stream(**asked) as opened:
        reply = await opened.get_final_completion()
    message = reply.choices[0].message.model_dump()
    for call in message["tool_calls"] or []:
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    message.pop("parsed", None)
    return message, reply.choices[0].finish_reason


async def test_several_choices_and_log_probabilities(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    asked = ASKED | {"n": 2, "logprobs": True, "top_logprobs": 1, "thinking_mode": "fast", "return_token_ids": True}
    whole = (await ask(http, **asked)).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    chunks = await chunks_of(http, asked | {"stream": True})
    for index, choice in enumerate(whole["choices"]):
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        entries = [entry for one in mine if one["logprobs"] for entry in one["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
        assert len(entries[0]["top_logprobs"]) == 1
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == choice["message"]["content"]
        assert [one for each in mine for one in each.get("token_ids", [])] == choice["token_ids"]


async def test_length_and_stop(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    cut = (await ask(http, thinking_mode="fast", max_tokens=5)).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("The a", "length")
    stopped = (await ask(http, thinking_mode="fast", stop="is")).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["stop_reason"]) == ("The answer ", "is")
    assert stopped["finish_reason"] == "stop"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"audio": {}, "verbosity": "low"}, "audio", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 10, "max_completion_tokens": 11}, "max_tokens", "conflicting_parameters"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"thinking_budget": 100, "max_tokens": 50}, "thinking_budget", "budget_does_not_fit"),
        ({"top_logprobs": 2}, "top_logprobs", "conflicting_parameters"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5000": 1}}, "logit_bias[5000]", "invalid_value"),
        ({"messages": []}, "messages", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
        ({"messages": [*HELLO, {"role": "function", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]", "missing_required_parameter"),
        ({"messages": [*HELLO, CALLED]}, "messages[1].tool_calls[0]", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "feature_off"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "unsupported_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [TOOL, TOOL]}, "tools[1]", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "unsupported_value"),
        ({"timeout": -1}, "timeout", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(
    gateway: Gateway, body: dict[str, Any], param: str, code: str
) -> None:
    http = await gateway(THINKS)
    for stream in (False, True):
        reply = await ask(http, stream=stream, **body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"
        assert error["penstock"]["reason"]


async def test_options_of_a_stream_need_one(gateway: Gateway) -> None:
    reply = await ask(await gateway(THINKS), stream_options={"include_usage": True})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "stream_options", "conflicting_parameters")


async def test_images_are_read_from_the_request_and_never_fetched(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [{"type": "text", "text": "What is it?"}, picture]
    error = (await ask(http, messages=[{"role": "user", "content": content}])).json()["error"]
    assert (error["code"], error["penstock"]["reason"]) == ("invalid_value", "INVALID_FIELD")
    assert error["param"] == "messages[0].content[1]"
    shown = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(64, 64)).decode()}"},
    }
    reply = (await ask(http, messages=[{"role": "user", "content": [content[0], shown]}])).json()
    without = (await ask(http, messages=[{"role": "user", "content": [content[0]]}])).json()
    assert reply["usage"]["prompt_tokens"] == without["usage"]["prompt_tokens"] + 4
    for url, why in (
        ("https://example.org/x.png", "no address is ever fetched"),
        ("data:image/png;base64,%%", "base64"),
    ):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        error = (await ask(http, messages=[{"role": "user", "content": content}])).json()["error"]
        assert error["param"] == "messages[0].content[0].image_url.url"
        assert why in error["message"]


async def test_the_package_raises_its_own_errors(gateway: Gateway) -> None:
    async with openai_of(await gateway(THINKS)) as openai:
        with pytest.raises(NotFoundError) as missing:
            await openai.chat.completions.create(model="gpt-9", messages=HELLO)  # type: ignore[arg-type]
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(BadRequestError) as bad:
            await openai.chat.completions.create(model="scripted", messages=HELLO, temperature=9)  # type: ignore[arg-type]
        assert bad.value.param == "temperature"
        assert bad.value.request_id


async def test_the_prompt_is_in_no_error(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    secret = "a-secret-that-nobody-may-see"
    for content in (
        [{"type": "text", "text": secret, "x": 1}],
        [{"type": "text", "text": [secret]}],
        {"a": secret},
        [secret],
    ):
        reply = await ask(http, messages=[{"role": "user", "content": content}])
        assert reply.status_code == 400
        assert secret not in reply.text


async def test_a_client_that_leaves_ends_the_generation(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 100_000, step_seconds=0.01), window=200_000)
    engine = gateway.engines[-1]
    asked = ASKED | {"thinking_mode": "fast"}
    async with http.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}):
        await until(lambda: engine.running == 1)
    await until(lambda: engine.running == 0)
    request = asyncio.create_task(http.post("/v1/chat/completions", json=asked))
    await until(lambda: engine.running == 1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await until(lambda: engine.running == 0)
