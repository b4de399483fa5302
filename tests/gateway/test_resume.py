"""Streams whose connection drops: continued from the last event id by any gateway, each chunk once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from penstock.engine.scripted import Reply

from tests.gateway.conftest import CountingEngine, Gateway, events_of, gateway_to, service, until

THINKS = Reply(thought="17+25=42", answer="The answer is é 42.", step_seconds=0.02)
ASKED: dict[str, Any] = {
    "model": "",
    "messages": [{"role": "user", "content": "hello"}],
    "thinking_mode": "thinking",
    "stream": True,
    "stream_options": {"include_usage": True},
    "resumable": True,
}
Events = list[tuple[str, dict[str, Any]]]


async def read(http: httpx.AsyncClient, events: int) -> Events:
    """The first events of a stream; then the connection is dropped."""
    async with http.stream("POST", "/v1/chat/completions", json=ASKED) as reply:
        assert reply.status_code == 200
        found: Events = []
        async for one in events_of(reply):
            found.append(one)
            if len(found) == events:
                break
    return found


async def go_on(http: httpx.AsyncClient, last: str) -> httpx.Response:
    generation = last.split(":")[3]
    return await http.get(f"/v1/generations/{generation}/events", headers={"last-event-id": last})


def text_of(events: Events) -> tuple[str, str]:
    deltas = [choice["delta"] for _, chunk in events for choice in chunk["choices"]]
    return (
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join(delta.get("content") or "" for delta in deltas),
    )


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 5, 9, 12, 20])
async def test_another_gateway_goes_on(after: int) -> None:
    async with (
        service(CountingEngine((THINKS,))) as target,
        gateway_to(target) as one,
        gateway_to(target) as other,
        httpx.AsyncClient(base_url=one, timeout=60) as first,
        httpx.AsyncClient(base_url=other, timeout=60) as second,
    ):
        begun = await read(first, after)
        last = next(event_id for event_id, _ in reversed(begun) if event_id)
        reply = await go_on(second, last)
        assert reply.status_code == 200, reply.text
        rest = [one async for one in events_of(reply)]
    assert text_of(begun + rest) == ("17+25=42", "The answer is é 42.")
    chunks = [chunk for _, chunk in begun + rest]
    assert len({(chunk["id"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8
    assert all(
        event_id for event_id, chunk in begun + rest if chunk["choices"] and not chunk["choices"][0]["finish_reason"]
    )


async def test_a_stream_can_be_continued_again_after_its_end(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    begun = await read(http, 10_000)
    for index in (0, 3, len(begun) - 1):
        last = begun[index][0]
        rest = [one async for one in events_of(await go_on(http, last))]
        for _, chunk in rest:
            chunk["created"] = begun[0][1]["created"]  # the time of the connection
        assert rest == begun[index + 1 :]


async def test_without_resumable_nothing_goes_on(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3000, step_seconds=0.01))
    engine = gateway.engines[-1]
    async with http.stream("POST", "/v1/chat/completions", json=ASKED | {"resumable": False}) as reply:
        async for event_id, _ in events_of(reply):
            assert not event_id
            break
    await until(lambda: engine.running == 0)


async def test_with_resumable_the_generation_outlives_its_connection(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3000, step_seconds=0.01))
    engine = gateway.engines[-1]
    begun = await read(http, 3)
    await asyncio.sleep(0.3)
    assert engine.running == 1
    async with http.stream("GET", *_events(begun[-1][0])[:1], headers=_events(begun[-1][0])[1]) as reply:
        assert reply.status_code == 200
    assert engine.running == 1


def _events(last: str) -> tuple[str, dict[str, str]]:
    return f"/v1/generations/{last.split(':')[3]}/events", {"last-event-id": last}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda last: "", 400),
        (lambda last: "nonsense", 400),
        (lambda last: last + "x" * 5000, 400),
        (lambda last: last.replace("v1:chat", "v2:chat"), 400),
        (lambda last: last[:-3] + "abc", 404),
        (lambda last: last.replace(":1:", ":999999:"), 400),
        (lambda last: last.replace(":1:", f":{10**19 - 1}:"), 400),
    ],
)
async def test_other_ids_are_refused(gateway: Gateway, change: Any, status: int) -> None:
    http = await gateway(THINKS)
    last = (await read(http, 1))[0][0]
    path, _ = _events(last)
    reply = await http.get(path, headers={"last-event-id": change(last)})
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error"), reply.text


async def test_the_id_of_another_generation_is_refused(gateway: Gateway) -> None:
    http = await gateway(THINKS)
    last = (await read(http, 1))[0][0]
    reply = await http.get("/v1/generations/other/events", headers={"last-event-id": last})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "last-event-id")
