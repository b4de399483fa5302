"""A service that is killed with SIGKILL while it works: what was spent is exact, but for the calls in flight."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from penstock.callers.keys import make
from penstock_client.v1 import generation_pb2 as pb

from tests.rpc.secure import bearer, channel, stub
from tests.rpc.test_quotas import INPUT_TICKS, OUTPUT_TICKS, PRICES, fast, generate

LIMIT_TICKS = 10**10
IN_FLIGHT = 3


@asynccontextmanager
async def serving(directory: Path, keys: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of its own, on the scripted engine."""
    replies, ready = directory / "replies.json", directory / "ready"
    replies.write_text(json.dumps([{"match": "slow", "answer": "x" * 2000, "step_seconds": 0.05}, {"answer": "quick"}]))
    ready.unlink(missing_ok=True)
    settings = {
        "auth.keys": keys,
        "quotas.usd_per_day": "1",
        "quotas.daily_file": str(directory / "quotas.db"),
        "pricing.tiers": json.dumps(PRICES["tiers"]),
    }
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--engine-kind", "scripted"]
    command += ["--model", str(replies), "--ready-file", str(ready)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process, ready.read_text().strip()
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()


async def test_after_kill_9_only_the_calls_in_flight_are_in_doubt(tmp_path: Path) -> None:
    key, entry = make("team-a")
    keys = json.dumps([entry.model_dump(mode="json")])
    spent = worst = 0
    async with serving(tmp_path, keys) as (process, address), channel(address) as at:
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
    async with serving(tmp_path, keys) as (_, address), channel(address) as at:
        reply, left = await generate(at, key, max_tokens=20)
        spent += reply.cost.total_usd_ticks
        assert left["usd-ticks"] == LIMIT_TICKS - spent - worst
