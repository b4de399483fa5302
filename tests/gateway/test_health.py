"""Liveness, readiness and metrics of the gateway."""

from __future__ import annotations

from tests.gateway.conftest import Gateway


async def test_the_process_is_alive(gateway: Gateway) -> None:
    reply = await (await gateway()).get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
