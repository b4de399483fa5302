"""Liveness, readiness, metrics, the model, and counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError

from tests.gateway.conftest import Gateway, openai_of
from tests.gateway.test_callers import with_keys

ASKED: dict[str, Any] = {"model": "", "messages": [{"role": "user", "content": "hello"}], "thinking_mode": "fast"}


async def test_the_process_is_alive_and_the_service_is_ready(gateway: Gateway, tmp_path: Path) -> None:
    for config in (None, with_keys(tmp_path)):
        http = await gateway(config=config)
        for path in ("/healthz", "/readyz"):
            reply = await http.get(path)
            assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_without_a_service_it_is_alive_and_not_ready(gateway: Gateway) -> None:
    http = await gateway.in_front_of("127.0.0.1:1")
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 503
    reply = await http.post("/v1/chat/completions", json=ASKED)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "service_unavailable")


async def test_metrics_have_no_text_of_callers(gateway: Gateway) -> None:
    http = await gateway()
    await http.post("/v1/chat/completions", json=ASKED)
    await http.get("/v1/models/a-secret-name")
    await http.request("PUT", "/a-secret-path")
    text = (await http.get("/metrics")).text
    assert 'penstock_gateway_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'route="other"' in text
    assert "penstock_gateway_request_memory_bytes 0.0" in text
    assert "secret" not in text
    assert "PUT" not in text


async def test_the_served_model(gateway: Gateway) -> None:
    async with openai_of(await gateway()) as openai:
        (model,) = [one async for one in openai.models.list()]
        assert (model.id, model.object) == ("scripted", "model")
        assert (await openai.models.retrieve("scripted")).id == "scripted"
        with pytest.raises(NotFoundError) as missing:
            await openai.models.retrieve("org/another")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


async def test_counting_is_what_a_reply_would_have(gateway: Gateway) -> None:
    http = await gateway()
    counted = (await http.post("/v1/tokenize", json=ASKED)).json()
    usage = (await http.post("/v1/chat/completions", json=ASKED)).json()["usage"]
    assert (counted["count"], counted["max_model_len"]) == (usage["prompt_tokens"], 4096)
    assert counted["penstock"]["settings"]["thinking_mode"] == "fast"
    refused = await http.post("/v1/tokenize", json=ASKED | {"audio": {}})
    assert refused.json()["error"]["param"] == "audio"
