"""The gateway on the real engine: what a client gets over HTTP is what the engine did, and leaving stops the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError
from penstock.engine.base import Engine

from tests.engine.gateway_calls import WEATHER_SCHEMA, Sum
from tests.engine.test_constrained_answers import SCHEMA
from tests.engine.test_service import until_running
from tests.gateway.conftest import chunks_of, events_of, openai_of

QUESTION: list[Any] = [{"role": "user", "content": "What is 48 + 27 + 36 + 15?"}]
GREEDY: dict[str, Any] = {"messages": QUESTION, "temperature": 0}
THINKING = GREEDY | {"thinking_mode": "thinking"}
LONG_THOUGHT = THINKING | {
    "messages": [{"role": "user", "content": "What is 4 + 9 + 33 + 12 + 6 + 21 + 8 + 31?"}],
    "stream": True,
    "resumable": True,
}
ENDLESS: dict[str, Any] = {"messages": QUESTION, "max_tokens": 20_000, "min_tokens": 20_000, "thinking_mode": "fast"}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}


@pytest.fixture(scope="module")
async def openai(http: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with openai_of(http) as made:
        yield made


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    reply = await http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def texts(chunks: list[dict[str, Any]]) -> tuple[str, str]:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return (
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join(delta.get("content") or "" for delta in deltas),
    )


async def test_a_stream_is_the_reply_in_parts(http: httpx.AsyncClient) -> None:
    whole = await ask(http, THINKING)
    chunks = await chunks_of(http, THINKING | {"stream": True, "stream_options": {"include_usage": True}})
    message = whole["choices"][0]["message"]
    assert texts(chunks) == (message["reasoning_content"], message["content"])
    assert "126" in message["content"]
    assert message["reasoning_content"]
    used = [usage.copy() for usage in (whole["usage"], chunks[-1]["usage"])]
    for usage in used:
        usage.pop("prompt_tokens_details")  # the second call finds the first one's prompt in the cache
    assert used[0] == used[1]
    assert len(chunks) > 5


@pytest.mark.parametrize("budget", [0, 1, 7, 16])
async def test_a_budget_holds_exactly(openai: AsyncOpenAI, budget: int) -> None:
    reply = await openai.chat.completions.create(
        model="", messages=QUESTION, temperature=0, extra_body={"thinking_mode": "thinking", "thinking_budget": budget}
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == budget
    assert reply.choices[0].message.content


async def test_structured_output(http: httpx.AsyncClient, openai: AsyncOpenAI) -> None:
    parsed = await openai.chat.completions.parse(model="", messages=QUESTION, temperature=0, response_format=Sum)
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    form = {"type": "json_schema", "json_schema": {"name": "sum", "strict": True, "schema": SCHEMA}}
    for more in ({"thinking_mode": "fast"}, {"thinking_mode": "thinking", "thinking_budget": 9}):
        body = {"messages": QUESTION, "temperature": 1.5, "seed": 3, "response_format": form, **more}
        whole = (await ask(http, body))["choices"][0]
        thought, answer = texts(await chunks_of(http, body | {"stream": True}))
        assert (thought, answer) == (whole["message"]["reasoning_content"] or "", whole["message"]["content"])
        jsonschema.validate(json.loads(answer), SCHEMA)


async def test_a_schema_that_cannot_be_held_is_refused_by_name(openai: AsyncOpenAI) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object", "unevaluatedProperties": 3}},
    }
    with pytest.raises(BadRequestError) as refused:
        await openai.chat.completions.create(model="", messages=QUESTION, response_format=form)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_required_tool_is_called(http: httpx.AsyncClient, choice: Any) -> None:
    asked = GREEDY | {
        "tools": [TOOL],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "thinking_mode": "thinking",
        "thinking_budget": 7,
        "max_tokens": 400,
    }
    whole = (await ask(http, asked))["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    (call,) = whole["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER_SCHEMA)
    chunks = await chunks_of(http, asked | {"stream": True})
    parts = [part for chunk in chunks for one in chunk["choices"] for part in one["delta"].get("tool_calls", ())]
    assert [part["function"]["name"] for part in parts if "name" in part["function"]] == ["weather"]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]


@pytest.mark.parametrize("action", ["finish_thinking", "change_budget"])
async def test_steering_in_the_middle_of_a_thought(http: httpx.AsyncClient, action: str) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=LONG_THOUGHT) as reply:
        assert reply.status_code == 200, await reply.aread()
        events = events_of(reply)
        begun = [await anext(events) for _ in range(2)]
        last = begun[-1][0]
        # To ask for no limit changes nothing, and tells how far the thought is.
        before = await steer(http, last, action="change_budget", thinking_budget=-1)
        assert (before["applied"], before["phase"]) == (True, "thinking"), before
        budget = before["reasoning_tokens"] + 12
        asked = {"thinking_budget": budget} if action == "change_budget" else {}
        assert (await steer(http, last, action=action, **asked))["applied"]
        chunks = [chunk for _, chunk in begun] + [chunk async for _, chunk in events]
    ended = next(chunk["penstock"] for chunk in reversed(chunks) if "candidates" in chunk.get("penstock", {}))
    (candidate,) = ended["candidates"]
    outcome = {"finish_thinking": "finished_by_client", "change_budget": "budget_reached"}[action]
    assert candidate["thinking_outcome"] == outcome
    if action == "change_budget":
        assert candidate["reasoning_tokens"] == budget
    thought, answer = texts(chunks)
    assert thought
    assert answer


async def steer(http: httpx.AsyncClient, event_id: str, **action: Any) -> dict[str, Any]:
    path = f"/v1/generations/{event_id.split(':')[3]}/steer"
    return dict((await http.post(path, json=action, headers={"last-event-id": event_id})).json())


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_stops_the_engine(http: httpx.AsyncClient, engine: Engine, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=http.base_url, timeout=120) as leaving:
        if stream:
            async with leaving.stream("POST", "/v1/chat/completions", json=ENDLESS | {"stream": True}) as reply:
                events = events_of(reply)
                await anext(events)
                await until_running(engine, 1)
        else:
            with pytest.raises(httpx.ReadTimeout):
                await leaving.post("/v1/chat/completions", json=ENDLESS, timeout=httpx.Timeout(60, read=1))
    await until_running(engine, 0)


@pytest.mark.parametrize("after", [1, 3, 12])
async def test_a_resumed_stream_has_the_same_text(http: httpx.AsyncClient, after: int) -> None:
    whole = (await ask(http, THINKING))["choices"][0]["message"]
    asked = THINKING | {"stream": True, "resumable": True}
    begun: list[tuple[str, dict[str, Any]]] = []
    async with http.stream("POST", "/v1/chat/completions", json=asked) as reply:
        async for one in events_of(reply):
            begun.append(one)
            if len(begun) == after:
                break
    last = next(event_id for event_id, _ in reversed(begun) if event_id)
    reply = await http.get(f"/v1/generations/{last.split(':')[3]}/events", headers={"last-event-id": last})
    assert reply.status_code == 200, reply.text
    chunks = [chunk for _, chunk in begun] + [chunk async for _, chunk in events_of(reply)]
    assert texts(chunks) == (whole["reasoning_content"], whole["content"])
