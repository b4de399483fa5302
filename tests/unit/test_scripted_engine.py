"""The scripted engine's steps: what a stream gets that is read late."""

from __future__ import annotations

import asyncio
import time

import pytest
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.types import EngineRequest, Sampling

_STEP_SECONDS = 0.02
_LATE_SECONDS = 0.1


@pytest.mark.parametrize("keeps_schedule", [True, False])
async def test_steps_that_were_missed_come_at_once_or_are_put_off(keeps_schedule: bool) -> None:
    reply = Reply(answer="x" * 101, chunk_tokens=2, step_seconds=_STEP_SECONDS, keeps_schedule=keeps_schedule)
    engine = ScriptedEngine([reply])
    prompt = tuple(engine.tokenizer.encode("go"))
    stream = engine.stream(EngineRequest("1", prompt, 100, 0, Sampling()))
    chunks = []
    async for chunk in stream:
        chunks.append(len(chunk.token_ids))
        if len(chunks) == 2:
            await asyncio.sleep(_LATE_SECONDS)
    assert sum(chunks) == 100, "neither lost nor told twice, and no more than was asked for"
    if keeps_schedule:
        assert chunks[2] >= 2 * int(_LATE_SECONDS / _STEP_SECONDS - 1)
        assert {tokens % 2 for tokens in chunks} == {0}
    else:
        assert set(chunks) == {2}


async def test_streams_of_one_pace_step_together_whoever_leaves() -> None:
    engine = ScriptedEngine([Reply(answer="x" * 20, step_seconds=_STEP_SECONDS)])
    prompt = tuple(engine.tokenizer.encode("go"))

    async def read(name: str) -> list[int]:
        """Return the number of the step in which each token came."""
        stream = engine.stream(EngineRequest(name, prompt, 10, 0, Sampling()))
        return [int(time.monotonic() / _STEP_SECONDS) async for _ in stream]

    leaving, *staying = [asyncio.create_task(read(name)) for name in "abc"]
    await asyncio.sleep(_STEP_SECONDS / 2)
    leaving.cancel()
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(*staying)
    assert len(first) == len(second) == 10
    assert first == sorted(first)


def test_an_engine_outlives_the_loop_in_which_a_stream_was_left() -> None:
    engine = ScriptedEngine([Reply(answer="x" * 4, step_seconds=_STEP_SECONDS)])
    prompt = tuple(engine.tokenizer.encode("go"))

    async def read(seconds: float) -> int:
        async with asyncio.timeout(seconds):
            return len([one async for one in engine.stream(EngineRequest("1", prompt, 4, 0, Sampling()))])

    with pytest.raises(TimeoutError):
        asyncio.run(read(_STEP_SECONDS / 10))
    assert asyncio.run(read(60)) == 4
