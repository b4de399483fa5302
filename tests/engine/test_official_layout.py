"""The official layout, written with Transformers' classes, from its files to replies: the 397B's way at 83 million.

The weights are random, so tests compare sizes, counts and log probabilities and never what the model says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.base import Engine
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import vision_parameters, vision_weight_bytes
from penstock.engine.sizing.weights import parameters, weight_bytes
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.engine.vllm.devices import find_devices
from penstock.engine.vllm.start import start
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from models.official_layout import official_layout
from tests.engine.image_calls import run, shown, spec
from tests.pictures import png
from tests.rpc.conftest import serving
from tests.unit.test_plan_cli import figures_of, plan_json

PIXELS = 262_144
"""Of `engine.image_pixels`, far below the 16 megapixels that the checkpoint's own image processor takes."""
BUDGETS = (0, 1, 7, 64)
HERE = find_devices("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_layout(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[Engine]:
    settings = EngineSettings(model=str(checkpoint), images="required", image_pixels=PIXELS, max_batch_tokens=512)
    engine = await start(settings)
    yield engine
    await engine.close()


async def held(engine: Engine) -> int:
    """Return the bytes of weights in the worker."""
    (worker,) = await engine.weight_bytes()
    return sum(worker.values())


async def test_the_worker_holds_the_weights_that_the_paper_says(engine: Engine, checkpoint: Path) -> None:
    found = read_checkpoint(str(checkpoint))
    shape, tower = read_shape(found.text), found.tower("required")
    assert tower is not None
    assert parameters(shape, draft=True) + vision_parameters(tower) == pytest.approx(83e6, rel=0.01)
    assert await held(engine) == weight_bytes(shape, fp8=True) + vision_weight_bytes(tower)


async def test_the_cache_is_laid_out_as_the_paper_says(engine: Engine, checkpoint: Path) -> None:
    """To the block, beside a vision tower; and the command says the size that vLLM logs."""
    flags = ("images=required", f"image_pixels={PIXELS}", "max_batch_tokens=512")
    cpu = "cpu" if HERE.reads_fp8_cache else "cpu-avx2"
    asked = [part for flag in flags for part in ("--set", f"engine.{flag}")]
    told = figures_of(plan_json("--model", str(checkpoint), "--device", cpu, *asked))
    (worker,) = await engine.cache_bytes()
    assert told["per device", "cache blocks"] == worker["blocks"]
    assert told["per device", "tokens per cache block"] == worker["block_tokens"]
    assert told["per device", "bytes per cache block"] == worker["block_bytes"]
    assert told["per device", "vision tower"] + told["per device", "weights"] == await held(engine)
    assert told["per device", "cache size, as vLLM logs it"] == engine.cache_tokens


async def test_the_engine_makes_room_for_an_image_of_the_configured_pixels(engine: Engine) -> None:
    """Not for one of 16,384 tokens, which the image processor would take; `penstock plan` counts on it."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    budget = MultiModalBudget(engine._llm.vllm_config, MULTIMODAL_REGISTRY)  # type: ignore[attr-defined]
    assert budget.mm_max_toks_per_item == {"image": PIXELS // 1024}
    assert budget.encoder_cache_size == 512


async def test_an_image_has_at_most_the_tokens_of_the_configured_pixels(engine: Engine) -> None:
    """vLLM counts the same, or refuses the request: its own processor would take 16 megapixels."""
    for width, height in ((32, 32), (256, 256), (1200, 900), (2400, 300)):
        ids, images = await shown(engine, png(width, height))
        assert 64 <= images[0].tokens <= PIXELS / 1024
        tokens, _, _ = await run(engine, f"size-{width}", ids, images, 2)
        assert len(tokens) == 2


async def test_budgets_are_exact_beside_an_image(engine: Engine) -> None:
    sampling = [pb.SamplingConfig(temperature=0), pb.SamplingConfig(temperature=1, seed=3)]
    asked = [
        (budget, spec(f"What is {budget}?", [png(320, 240, "red")], budget, one))
        for budget in BUDGETS
        for one in sampling
    ]
    async with serving(engine) as (_, channel):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def stream(one: pb.GenerationSpec) -> pb.GenerationFinished:
            events = [event.event async for event in stub.StreamGenerate(pb.StreamGenerateRequest(spec=one))]
            return events[-1].finished

        ends = await asyncio.gather(*(stream(one) for _, one in asked))
    for (budget, _), end in zip(asked, ends, strict=True):
        (result,) = end.results
        if result.thinking_outcome == pb.THINKING_OUTCOME_BUDGET_REACHED:
            assert end.usage.reasoning_tokens == budget
        assert end.usage.reasoning_tokens <= budget
        assert end.usage.answer_tokens >= 1
        assert end.usage.image_tokens == 80
    # Random weights hardly ever close a thought themselves.
    assert sum(end.usage.reasoning_tokens == budget for (budget, _), end in zip(asked, ends, strict=True)) >= 6


async def test_what_an_image_shows_changes_what_comes_next(engine: Engine) -> None:
    found = []
    for number, colour in enumerate(("red", "blue", "red")):
        ids, images = await shown(engine, png(256, 256, colour))
        _, _, logprobs = await run(engine, f"seen-{number}", ids, images, 1, top_logprobs=1)
        found.append(logprobs[0])
    assert found[0] == pytest.approx(found[2], abs=1e-3)
    assert abs(found[0] - found[1]) > 2 * abs(found[0] - found[2])
