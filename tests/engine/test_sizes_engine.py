"""Sizes on paper against the real engine: bytes of weights exactly, cache as vLLM laid it out."""

from __future__ import annotations

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.sizing.cache import CPU_BLOCK_TOKENS, CacheSettings, plan_cache
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.sizing.weights import ParallelLayout, inventory, weight_bytes
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.engine.vllm.devices import find_devices

from tests.unit.test_plan_cli import figures_of, plan_json

pytestmark = pytest.mark.cpu_build
HERE = find_devices("cpu")
CHECKPOINT = read_checkpoint(str(DEMO_MODEL_DIR))
DEMO, TOWER = read_shape(CHECKPOINT.text), CHECKPOINT.tower("required")


async def test_weights_are_those_that_the_worker_holds(engine):
    (worker,) = await engine.weight_bytes()
    assert TOWER is not None
    assert weight_bytes(DEMO, fp8=True) + vision_weight_bytes(TOWER) == sum(worker.values())
    converted = [matrix for matrix in inventory(DEMO) if matrix.fp8]
    assert sum(matrix.elements for matrix in converted) == worker["float8_e4m3fn"]


async def test_the_cache_is_laid_out_as_on_paper(engine, engine_settings: EngineSettings):
    (worker,) = await engine.cache_bytes()
    cache = plan_cache(
        DEMO,
        ParallelLayout(),
        CacheSettings(
            kv_fp8=HERE.reads_fp8_cache,
            drafted=engine_settings.mtp_draft_tokens,
            min_block_tokens=CPU_BLOCK_TOKENS,
        ),
    )
    on_paper = {
        "blocks": cache.blocks(int(engine_settings.kv_cache_gib * 2**30)),
        "block_tokens": cache.block_tokens,
        "block_bytes": cache.block_bytes,
        "kv_bytes_per_token": cache.kv_bytes_per_token + cache.draft_kv_bytes_per_token,
        "state_bytes": cache.state_bytes,
    }
    print(f"\nvLLM's cache: {worker}, {engine.cache_tokens} tokens")
    assert on_paper == worker


async def test_the_command_says_the_cache_size_that_vllm_logs(engine):
    """The limit asked for is 1 %."""
    told = figures_of(plan_json("--device", "cpu" if HERE.reads_fp8_cache else "cpu-avx2"))
    assert told["per device", "cache size, as vLLM logs it"] == engine.cache_tokens
    (worker,) = await engine.weight_bytes()
    assert told["per device", "weights"] + told["per device", "vision tower"] == sum(worker.values())
