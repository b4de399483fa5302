"""A caller at fifty times its quota takes nothing from another one: who is refused, and who is served.

What the other one notices in milliseconds is a benchmark: `python -m bench.fair_callers`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from penstock.auth.api_keys import make
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import bearer, channel, stub
from tests.rpc.service_process import service
from tests.rpc.test_quotas import fast

STEP_SECONDS = 0.2
QUOTA_PER_MINUTE = 60
STREAMS = 16
"""Of the caller that keeps its quota."""
_FLOOD = Path(__file__).with_name("flood.py")
_FLOOD_CALLS_PER_SECOND, _FLOOD_SECONDS = 50, 6


@asynccontextmanager
async def two_callers(folder: Path) -> AsyncIterator[tuple[str, str, str]]:
    """Start a service; give its address, a key without a quota, and the key of a caller with a small one."""
    (key, entry), (hostile, hostile_entry) = make("good"), make("hostile")
    (folder / "callers.toml").write_text(
        f"[callers.hostile]\nrequests_per_minute = {QUOTA_PER_MINUTE}\nconcurrent_streams = 4\n"
    )
    replies = [
        {"match": "well", "answer": "12", "step_seconds": STEP_SECONDS},
        {"answer": "x" * 2000, "step_seconds": 0.01},
    ]
    settings = {
        "auth.keys": [one.model_dump(mode="json") for one in (entry, hostile_entry)],
        "auth.callers_file": str(folder / "callers.toml"),
        "admission.max_running_sequences": STREAMS + 4,
        "engine.max_context_tokens": 16384,
    }
    async with service(folder, replies, settings) as (_, address):
        yield address, key, hostile


@pytest.mark.slow
async def test_a_caller_at_50_times_its_quota_takes_nothing_from_another(tmp_path: Path) -> None:
    """All places but the flood's four stay the other caller's: none of its calls is refused, and each is whole."""
    async with two_callers(tmp_path) as (address, key, hostile), channel(address) as at:
        command = [sys.executable, str(_FLOOD), address, hostile, str(_FLOOD_CALLS_PER_SECOND), str(_FLOOD_SECONDS)]
        flood = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert flood.stdout is not None
        assert await flood.stdout.readline() == b"flooding\n"
        over = asyncio.create_task(flood.communicate())
        answers: list[str] = []

        async def one_after_the_other() -> None:
            while not over.done():
                request = pb.StreamGenerateRequest(spec=fast("well"))
                call = stub(at).StreamGenerate(request, metadata=bearer(key), timeout=60)
                answers.append("".join([reply.event.answer.text async for reply in call]))

        await asyncio.gather(*(one_after_the_other() for _ in range(STREAMS)))
        counts = json.loads((await over)[0].splitlines()[-1])
    assert set(answers) == {"12"}
    assert len(answers) >= 2 * STREAMS, "each stream was served again while the flood went on"
    assert counts["sent"] == _FLOOD_CALLS_PER_SECOND * _FLOOD_SECONDS
    assert counts["ok"] <= 2 * QUOTA_PER_MINUTE
    assert counts["refused"] > 0.5 * counts["sent"]
