"""A seed alone in a batch repeats, also where its prompt takes several steps or its start is in the cache."""

from __future__ import annotations

from collections.abc import Callable

from penstock.config.schema import EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.start import start
from penstock.types import EngineRequest, Sampling

from tests.engine.conftest import run

LENGTHS = (385, 513, 900, 1700)
"""Longer than a block (384), than a step's share (512), and than several."""


async def assert_seeds_repeat(engine: Engine, request_for: Callable[..., EngineRequest]) -> None:
    for length in LENGTHS:
        prompt = tuple(20 + (place * 7 + length) % 400 for place in range(length))

        async def drawn(seed: int, prompt: tuple[int, ...] = prompt) -> list[int]:
            return (await run(engine, request_for(prompt, 12, sampling=Sampling(temperature=1.5, seed=seed))))[0]

        assert await drawn(5) == await drawn(5) != await drawn(6), f"a prompt of {length} tokens"
    await engine.check()


async def test_a_seeded_prompt_of_several_steps_repeats(
    engine: Engine, request_for: Callable[..., EngineRequest]
) -> None:
    await assert_seeds_repeat(engine, request_for)


async def test_another_start_repeats_seeds_without_drafts_too_and_draws_other_numbers_without_a_seed(
    engine: Engine, request_for: Callable[..., EngineRequest]
) -> None:
    other = await start(EngineSettings(mtp="off", max_batch_tokens=512, kv_cache_gib=0.5))
    try:
        await assert_seeds_repeat(other, request_for)
        assert await other.drawn_from() != await engine.drawn_from()  # type: ignore[attr-defined]
    finally:
        await other.close()
