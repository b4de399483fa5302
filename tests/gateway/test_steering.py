"""`POST /v1/generations/{id}/steer`, while another request reads the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from penstock.auth.api_keys import make
from penstock.config.schema import Config
from penstock.engine.scripted import Reply

from tests.gateway.conftest import Gateway, events_of

THOUGHT = "I add the numbers one by one, and check each sum. " * 6
SLOW = Reply(thought=THOUGHT, answer="done", step_seconds=0.02)
SHORT = Reply(thought=THOUGHT[:150], answer="done", step_seconds=0.02)
"""Still thinks while a few requests are refused, beside load too, and is then read to its end."""
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "thinking_mode": "thinking",
    "stream": True,
    "stream_options": {"include_usage": True},
    "resumable": True,
}
FINISH: dict[str, Any] = {"action": "finish_thinking"}
Chunks = list[dict[str, Any]]


@asynccontextmanager
async def thinking(http: httpx.AsyncClient, chunks: int = 6) -> AsyncIterator[tuple[str, Chunks, AsyncIterator[Any]]]:
    """A stream in the middle of its thought: its last event id, the chunks so far, and those to come."""
    async with http.stream("POST", "/v1/chat/completions", json=ASKED) as reply:
        assert reply.status_code == 200
        events = events_of(reply)
        begun = [await anext(events) for _ in range(chunks)]
        yield begun[-1][0], [chunk for _, chunk in begun], events


async def steer(http: httpx.AsyncClient, event_id: str, body: Any, **headers: str) -> httpx.Response:
    path = f"/v1/generations/{event_id.split(':')[3]}/steer"
    return await http.post(path, json=body, headers={"last-event-id": event_id} | headers)


def ended(chunks: Chunks) -> tuple[str, int, str]:
    """How the thought ended, its tokens, and the answer."""
    last = next(chunk for chunk in reversed(chunks) if "candidates" in chunk.get("penstock", {}))
    candidate = last["penstock"]["candidates"][0]
    answer = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return candidate["thinking_outcome"], candidate["reasoning_tokens"], answer


async def test_answer_now(gateway: Gateway) -> None:
    http = await gateway(SLOW)
    async with thinking(http) as (event_id, chunks, rest):
        reply = await steer(http, event_id, FINISH)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        assert (told["id"], told["object"]) == (event_id.split(":")[3], "generation.steered")
        assert (told["applied"], told["phase"]) == (True, "thinking")
        assert 0 < told["reasoning_tokens"] < told["thinking_budget"]
        outcome, tokens, answer = ended(chunks + [chunk async for _, chunk in rest])
        assert (outcome, answer) == ("finished_by_client", "done")
        assert tokens < len(THOUGHT)


@pytest.mark.slow
async def test_another_budget_holds_exactly(gateway: Gateway) -> None:
    http = await gateway(SLOW)
    async with thinking(http) as (event_id, chunks, rest):
        told = (await steer(http, event_id, {"action": "change_budget", "thinking_budget": 100})).json()
        assert told["thinking_budget"] == 100
        assert ended(chunks + [chunk async for _, chunk in rest]) == ("budget_reached", 100, "done")


async def test_cancel_ends_the_stream_with_its_bill(gateway: Gateway) -> None:
    http = await gateway(SLOW)
    async with thinking(http) as (event_id, chunks, rest):
        assert (await steer(http, event_id, {"action": "cancel"})).json()["applied"]
        chunks += [chunk async for _, chunk in rest]
        assert ended(chunks)[0] == "cancelled"
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        late = await steer(http, event_id, FINISH)
        assert late.status_code == 404
        assert late.json()["error"]["penstock"]["metadata"] == {"state": "finished"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "action"),
        ({"action": "stop"}, "action"),
        ({"action": "change_budget"}, "thinking_budget"),
        ({"action": "cancel", "thinking_budget": 3}, "thinking_budget"),
        ({"action": "change_budget", "thinking_budget": -2}, "thinking_budget"),
        ({"action": "change_budget", "thinking_budget": 2**40}, "thinking_budget"),
        ({"action": "change_budget", "thinking_budget": "3"}, "thinking_budget"),
        (FINISH | {"extra": 1}, "extra"),
        (FINISH | {"timeout": -1}, "timeout"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_name(gateway: Gateway, body: Any, param: str) -> None:
    http = await gateway(SHORT)
    async with thinking(http) as (event_id, chunks, rest):
        reply = await steer(http, event_id, body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
        assert ended(chunks + [chunk async for _, chunk in rest]) == ("natural_end", len(SHORT.thought), "done")


@pytest.mark.slow
async def test_only_who_has_the_id_and_the_key_may_steer(gateway: Gateway) -> None:
    (mine, one), (other, two) = make("team-a"), make("team-b")
    auth = {"keys": [entry.model_dump(mode="json") for entry in (one, two)]}
    http = await gateway(SHORT, config=Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "auth": auth}))
    http.headers["authorization"] = f"Bearer {mine}"
    async with thinking(http) as (event_id, chunks, rest):
        generation = event_id.split(":")[3]
        guess = f"v1:chat:u:{generation}:3:guess"
        refused = [
            await steer(http, guess, FINISH),
            await steer(http, event_id, FINISH, authorization=f"Bearer {other}"),
            await steer(http, event_id.replace(generation, "0" * 32), FINISH),
        ]
        assert {reply.status_code for reply in refused} == {404}
        assert len({reply.text for reply in refused}) == 1
        for wrong in ("", "nonsense", event_id.replace(generation, "other")):
            reply = await http.post(
                f"/v1/generations/{generation}/steer", json=FINISH, headers={"last-event-id": wrong}
            )
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "last-event-id")
        assert ended(chunks + [chunk async for _, chunk in rest])[0] == "natural_end"
