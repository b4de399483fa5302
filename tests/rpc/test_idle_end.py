"""An idle service ends at a signal: neither idle connections, nor finished streams, nor health checks hold it up."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc.aio
import penstock_client as pc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rpc.service_process import service

LONGER_THAN_THE_TEST = 3600


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_service_ends_at_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    waits = {"server.drain_seconds": LONGER_THAN_THE_TEST, "resume.grace_seconds": LONGER_THAN_THE_TEST}
    async with (
        service(tmp_path, [{"answer": "hi"}], waits) as (process, target),
        pc.AsyncClient(target) as client,
        grpc.aio.insecure_channel(target) as channel,
    ):
        async for _ in client.stream("hi"):
            pass
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(number)
        async with asyncio.timeout(120):
            assert await process.wait() == 0
