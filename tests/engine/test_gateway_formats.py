"""Text completions and responses on the real engine: the same tokens as chats, in other formats."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest
from openai.types import Completion
from penstock.engine.base import Engine
from penstock.types import Message, Role

from tests.engine.gateway_calls import WEATHER_SCHEMA, Sum
from tests.gateway.conftest import events_of, openai_of
from tests.gateway.test_responses import read

QUESTION = "What is 48 + 27 + 36 + 15?"
GREEDY: dict[str, Any] = {"model": "", "temperature": 0}
TOOL: Any = {"type": "function", "name": "weather", "parameters": WEATHER_SCHEMA}


async def ask(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    reply = await http.post(path, json=GREEDY | body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def chat(http: httpx.AsyncClient, mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message and the usage of a chat."""
    messages = [{"role": "user", "content": QUESTION}]
    made = await ask(http, "/v1/chat/completions", messages=messages, thinking_mode=mode, max_tokens=300)
    made["usage"].pop("prompt_tokens_details")  # the second call finds the first one's prompt in the cache
    return made["choices"][0]["message"], made["usage"]


@pytest.mark.parametrize("mode", ["fast", "thinking"])
async def test_a_chats_prompt_as_token_ids_gives_the_chats_answer(
    http: httpx.AsyncClient, engine: Engine, mode: str
) -> None:
    message, usage = await chat(http, mode)
    ids = engine.tokenizer.render([Message(Role.USER, QUESTION)], thinking=mode == "thinking")
    made = await ask(http, "/v1/completions", prompt=[*ids], max_tokens=300, early_exit="off")
    assert Completion.model_validate(made, strict=True)
    choice = made["choices"][0]
    assert (choice["text"], choice.get("reasoning_content")) == (message["content"], message["reasoning_content"])
    made["usage"].pop("prompt_tokens_details")
    assert made["usage"] == usage


async def test_log_probabilities_belong_to_the_text(http: httpx.AsyncClient) -> None:
    asked = {"prompt": ["The sum of 17 and 25 is", "Zwölf plus"], "max_tokens": 24, "logprobs": 3, "min_tokens": 24}
    whole = await ask(http, "/v1/completions", **asked)
    for choice in whole["choices"]:
        lists, text = choice["logprobs"], choice["text"]
        assert len(lists["tokens"]) == 24
        for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
            assert token.startswith("bytes:") or text[offset : offset + len(token)] == token
        for token, top in zip(lists["tokens"], lists["top_logprobs"], strict=True):
            # Greedy, but for the end of turn, which has no text, and which the minimum keeps away.
            assert max((one for one in top if one), key=lambda one: top[one]) == token
            assert 3 <= len(top) <= 4
    async with http.stream("POST", "/v1/completions", json=GREEDY | asked | {"stream": True}) as reply:
        choices = [choice async for _, chunk in events_of(reply) for choice in chunk["choices"]]
    for index, choice in enumerate(whole["choices"]):
        mine = [one for one in choices if one["index"] == index]
        assert "".join(one["text"] for one in mine) == choice["text"]
        for name in ("tokens", "text_offset"):
            told = [entry for one in mine if one["logprobs"] for entry in one["logprobs"][name]]
            assert told == choice["logprobs"][name]


@pytest.mark.parametrize("mode", ["fast", "thinking"])
async def test_a_response_is_the_chat_in_another_format(http: httpx.AsyncClient, mode: str) -> None:
    message, usage = await chat(http, mode)
    asked = {"input": QUESTION, "thinking_mode": mode, "max_output_tokens": 300}
    body = GREEDY | asked | {"stream": True}
    async with http.stream("POST", "/v1/responses", json=body) as reply:
        events, _ = await read(reply)
    for response in (await ask(http, "/v1/responses", **asked), events[-1]["response"]):
        *thought, answer = response["output"]
        assert answer["content"][0]["text"] == message["content"]
        assert [one["content"][0]["text"] for one in thought] == [
            text for text in [message["reasoning_content"]] if text
        ]
        assert response["usage"]["output_tokens"] == usage["completion_tokens"]
        assert response["usage"]["input_tokens"] == usage["prompt_tokens"]


async def test_schemas_and_tools_are_held(http: httpx.AsyncClient) -> None:
    async with openai_of(http) as openai:
        parsed = await openai.responses.parse(model="", input=QUESTION, temperature=0, text_format=Sum)
        assert isinstance(parsed.output_parsed, Sum)
        response = await openai.responses.create(
            model="",
            input="How warm is it in Oslo?",
            tools=[TOOL],
            tool_choice={"type": "function", "name": "weather"},
            temperature=0,
            max_output_tokens=400,
            extra_body={"thinking_mode": "thinking", "thinking_budget": 7},
        )
    (call,) = [item for item in response.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), WEATHER_SCHEMA)
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 7
