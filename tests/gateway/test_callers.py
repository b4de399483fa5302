"""Test what passes through the gateway: keys, quotas, retry delays, deadlines, trace context, request ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, RateLimitError
from penstock.auth.api_keys import make
from penstock.config.schema import Config
from penstock.engine.scripted import Reply
from penstock_gateway.errors import BY_CODE, KINDS
from penstock_proto.v1 import error_reason_pb2

from tests.gateway.conftest import Gateway, chunks_of, events_of, openai_of
from tests.rpc.fake_service import FakeService

KEY, ENTRY = make("team-a")
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
ASKED = {"model": "", "messages": HELLO, "thinking_mode": "fast", "max_tokens": 20}


def with_keys(tmp_path: Path, **quotas: Any) -> Config:
    auth = {"keys": [ENTRY.model_dump(mode="json")]}
    quotas = {"file": str(tmp_path / "quotas.db"), **quotas} if "usd_per_day" in quotas else quotas
    return Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "auth": auth, "quotas": quotas})


async def test_the_bearer_key_is_the_callers(gateway: Gateway, tmp_path: Path) -> None:
    http = await gateway(config=with_keys(tmp_path))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic eDp5"},
        {"authorization": "Bearer"},
    ):
        reply = await http.post("/v1/chat/completions", json=ASKED, headers=headers)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["penstock"]["reason"]) == (
            401,
            "invalid_api_key",
            "CALLER_REFUSED",
        )
        assert reply.headers["www-authenticate"] == "Bearer"
    async with openai_of(http, KEY) as openai:
        assert (await openai.chat.completions.create(**ASKED_OF_OPENAI)).choices[0].message.content
    async with openai_of(http, "wrong") as openai:
        with pytest.raises(AuthenticationError):
            await openai.chat.completions.create(**ASKED_OF_OPENAI)


ASKED_OF_OPENAI: dict[str, Any] = {"model": "scripted", "messages": HELLO, "max_tokens": 20}


async def test_quotas_are_told_in_headers(gateway: Gateway, tmp_path: Path) -> None:
    http = await gateway(config=with_keys(tmp_path, requests_per_minute=2))
    http.headers["authorization"] = f"Bearer {KEY}"
    first = await http.post("/v1/chat/completions", json=ASKED)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    await http.post("/v1/chat/completions", json=ASKED)
    over = await http.post("/v1/chat/completions", json=ASKED | {"stream": True})
    assert (over.status_code, over.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert over.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(over.headers["retry-after"]) <= 60
    async with openai_of(http, KEY) as openai:
        with pytest.raises(RateLimitError):
            await openai.chat.completions.create(**ASKED_OF_OPENAI)


@pytest.mark.slow
@pytest.mark.parametrize("in_header", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_timeout_is_the_deadline(gateway: Gateway, in_header: bool, stream: bool) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3000, step_seconds=0.05))
    asked = ASKED | {"max_tokens": 3000, "stream": stream} | ({} if in_header else {"timeout": 0.4})
    headers = {"x-request-timeout": "0.4"} if in_header else {}
    if stream:
        async with http.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as reply:
            assert reply.status_code == 200
            *chunks, last = [data async for _, data in events_of(reply)]
        assert chunks
        error = last["error"]
    else:
        reply = await http.post("/v1/chat/completions", json=asked, headers=headers)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")
        error = reply.json()["error"]
    assert (error["code"], error["penstock"]["reason"]) == ("deadline_exceeded", "DEADLINE_PASSED")
    assert int(error["penstock"]["metadata"]["answer_tokens"]) >= 0


async def test_trace_context_and_request_id_reach_the_service(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService
) -> None:
    http = await gateway.in_front_of(served[1])
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "tracestate": "a=1", "x-request-id": "r-1"}
    reply = await http.post("/v1/chat/completions", json=ASKED, headers=headers)
    assert reply.headers["x-request-id"] == "r-1"
    sent = fake.generation_metadata
    assert sent["traceparent"].split("-")[1] == trace
    assert (sent["tracestate"], sent["x-request-id"]) == ("a=1", "r-1")
    await chunks_of(http, ASKED | {"stream": True})
    assert trace not in fake.generation_metadata.get("traceparent", "")
    reply = await http.get("/healthz", headers={"x-request-id": "a b"})
    assert reply.headers["x-request-id"] != "a b"


def test_every_reason_has_a_status() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert reasons - {"UNSPECIFIED"} == KINDS.keys()
    assert all(400 <= kind.status < 600 for kind in (*KINDS.values(), *BY_CODE.values()))


async def test_unknown_paths_and_methods(gateway: Gateway) -> None:
    http = await gateway()
    for method, path, code in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/x", 404),
    ):
        reply = await http.request(method, path)
        assert (reply.status_code, json.loads(reply.text)["error"]["type"]) == (code, "invalid_request_error")


async def test_what_is_too_large_for_the_service_is_not_to_be_repeated(gateway: Gateway) -> None:
    server = {"listen": "127.0.0.1:0", "max_message_bytes": 4096}
    http = await gateway(config=Config.model_validate({"server": server, "limits": {"max_prompt_bytes": 1024}}))
    reply = await http.post(
        "/v1/chat/completions", json=ASKED | {"messages": [{"role": "user", "content": "a" * 9000}]}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
