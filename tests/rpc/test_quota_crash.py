"""A service that is killed with SIGKILL while it works: what was spent is exact, but for the calls in flight."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
from penstock.auth.api_keys import make
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import bearer, channel, stub
from tests.rpc.service_process import service
from tests.rpc.test_quotas import INPUT_TICKS, OUTPUT_TICKS, PRICES, fast, generate

LIMIT_TICKS = 10**10
IN_FLIGHT = 3


REPLIES = [{"match": "slow", "answer": "x" * 2000, "step_seconds": 0.05}, {"answer": "quick"}]


@pytest.mark.slow
async def test_after_kill_9_only_the_calls_in_flight_are_in_doubt(tmp_path: Path) -> None:
    key, entry = make("team-a")
    settings = {
        "auth.keys": [entry.model_dump(mode="json")],
        "quotas.usd_per_day": "1",
        "quotas.daily_file": str(tmp_path / "quotas.db"),
        "pricing.tiers": PRICES["tiers"],
    }
    spent = worst = 0
    async with service(tmp_path, REPLIES, settings) as (process, address), channel(address) as at:
        replies = await asyncio.gather(*(generate(at, key, max_tokens=20) for _ in range(25)))
        spent = sum(reply.cost.total_usd_ticks for reply, _ in replies)
        streams = []
        for _ in range(IN_FLIGHT):
            request = pb.StreamGenerateRequest(spec=fast("slow", max_tokens=1000))
            call = stub(at).StreamGenerate(request, metadata=bearer(key))
            await anext(aiter(call))
            streams.append(call)
        prompt_tokens = (await generate(at, key, text="slow", max_tokens=1))[0].usage.prompt_tokens
        spent += prompt_tokens * INPUT_TICKS + OUTPUT_TICKS
        worst = IN_FLIGHT * (prompt_tokens * INPUT_TICKS + 1000 * OUTPUT_TICKS)
        _, left = await generate(at, key, max_tokens=20)
        spent += replies[0][0].cost.total_usd_ticks
        assert left["usd-ticks"] == LIMIT_TICKS - spent - worst
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        for call in streams:
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
    async with service(tmp_path, REPLIES, settings) as (_, address), channel(address) as at:
        reply, left = await generate(at, key, max_tokens=20)
        spent += reply.cost.total_usd_ticks
        assert left["usd-ticks"] == LIMIT_TICKS - spent - worst
