"""Images on the real engine: the official layout with a vision tower and random weights.

The weights are random, so tests compare token counts and log probabilities and never what the model says.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.start import start
from penstock.errors import BadRequest
from penstock.types import Image, Message, Role, Sampling
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from models.small.random_checkpoint import random_checkpoint
from tests.engine.image_calls import run, shown, spec
from tests.hostile_images import CASES
from tests.pictures import png
from tests.rpc.conftest import serving

WILD = Sampling(temperature=2.0, top_k=0)
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("official-layout"))


@pytest.fixture(scope="module", params=[2, pytest.param(1, marks=pytest.mark.full)], ids=["2-drafts", "1-draft"])
async def engine(checkpoint: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    settings = EngineSettings(model=str(checkpoint), max_batch_tokens=512, mtp_draft_tokens=request.param)
    engine = await start(settings)
    yield engine
    await engine.close()


async def test_the_profile_says_that_images_are_read(engine: Engine) -> None:
    row = next(feature for feature in engine.card.profile if feature.name == "images")
    assert (row.enabled, row.value) == (True, "a token per 32 x 32 pixels")


async def test_an_image_has_as_many_tokens_as_the_engine_gives_it(engine: Engine) -> None:
    """`VllmEngine` refuses a request whose count differs from vLLM's own."""
    for width, height in ((64, 64), (192, 128), (1, 1), (300, 40), (40, 300), (1000, 700), (97, 131)):
        ids, images = await shown(engine, png(width, height))
        tokens, _, _ = await run(engine, f"size-{width}-{height}", ids, images, 3)
        assert len(tokens) == 3
        assert ids.count(max(set(ids) & engine.card.image_token_ids, key=ids.count)) == images[0].tokens


async def test_budgets_are_exact_beside_images_in_mixed_batches(engine: Engine) -> None:
    greedy = pb.SamplingConfig(temperature=0)
    calls = [
        (budget, spec(f"What is {budget}?", [png(64, 64, "red"), png(96, 64, "blue")][:count], budget, sampling))
        for budget in (0, 1, 7, 64)
        for count in (0, 1, 2)
        for sampling in (greedy, pb.SamplingConfig(temperature=1, seed=budget + count))
    ]
    async with serving(engine) as (_, channel):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def stream(asked: pb.GenerationSpec) -> pb.GenerationFinished:
            events = [one.event async for one in stub.StreamGenerate(pb.StreamGenerateRequest(spec=asked))]
            return events[-1].finished

        streamed = await asyncio.gather(*(stream(asked) for _, asked in calls))
        whole = await asyncio.gather(*(stub.Generate(pb.GenerateRequest(spec=asked)) for _, asked in calls))
    for (budget, asked), *ends in zip(calls, streamed, whole, strict=True):
        expected = sum(part.image.ByteSize() > 0 for part in asked.messages.messages[0].parts)
        for end in ends:
            (result,) = end.results if isinstance(end, pb.GenerationFinished) else end.candidates
            outcome = (
                result.thinking_outcome if isinstance(end, pb.GenerationFinished) else result.result.thinking_outcome
            )
            assert end.usage.reasoning_tokens <= budget
            if outcome == pb.THINKING_OUTCOME_BUDGET_REACHED:
                assert end.usage.reasoning_tokens == budget
            assert end.usage.answer_tokens >= 1
            assert (end.usage.image_tokens > 0) is (expected > 0)


async def test_twenty_calls_with_two_images_at_once(engine: Engine) -> None:
    """Two images in one call killed other servers' engines (vLLM 43473)."""
    prompts = [
        await shown(engine, png(64 + 32 * (n % 4), 64, COLOURS[n % 6]), png(96, 64, COLOURS[(n + 1) % 6], f"{n}"))
        for n in range(20)
    ]
    found = await asyncio.gather(*(run(engine, f"two-{n}", ids, images, 24) for n, (ids, images) in enumerate(prompts)))
    assert [len(tokens) for tokens, _, _ in found] == [24] * 20
    await engine.check()


async def test_callers_share_no_cache_of_an_image(engine: Engine) -> None:
    long = "What is in it? " * 200
    ids, images = await shown(engine, png(128, 96, "red"), said=long)
    _, first, _ = await run(engine, "salt-1", ids, images, 2, cache_salt="a")
    _, again, _ = await run(engine, "salt-2", ids, images, 2, cache_salt="a")
    _, other, _ = await run(engine, "salt-3", ids, images, 2, cache_salt="b")
    assert (first, other) == (0, 0)
    assert again > images[0].tokens
    same_size, changed = await shown(engine, png(128, 96, "blue"), said=long)
    assert same_size == ids
    _, another, _ = await run(engine, "salt-4", ids, changed, 2, cache_salt="a")
    assert another == 0, "another image with the same tokens has other cache entries"


async def test_a_continuation_sees_the_image(engine: Engine) -> None:
    """After half of its output, a call goes on in a new run, as after an engine's death."""
    ids, images = await shown(engine, png(128, 96, "red", "12 + 7"), png(64, 64, "blue"))
    whole, _, logprobs = await run(engine, "whole", ids, images, 24, top_logprobs=1)
    rest, _, continued = await run(engine, "rest", (*ids, *whole[:12]), images, 1, top_logprobs=1)
    blind_ids, blind = await shown(engine, png(128, 96, "white"), png(64, 64, "white"))
    assert blind_ids == ids
    _, _, without = await run(engine, "blind", (*ids, *whole[:12]), blind, 1, top_logprobs=1)
    # One token may differ by rounding where two are nearly equal; what the model sees shows in the probability.
    assert math.isclose(continued[0], logprobs[12], abs_tol=0.05), (rest, whole[12])
    assert abs(without[0] - logprobs[12]) > abs(continued[0] - logprobs[12])


async def test_no_token_of_images_is_ever_sampled(engine: Engine) -> None:
    """A generated one would stand for a picture that is not there (ms-swift 9287)."""
    ids, images = await shown(engine, png(64, 64, "red"))
    prompts = [(ids, images), (tuple(engine.tokenizer.render([Message(Role.USER, "hi")], thinking=True)), ())]
    found = await asyncio.gather(*(run(engine, f"wild-{n}", *prompts[n % 2], 200, sampling=WILD) for n in range(16)))
    drawn = [token for tokens, _, _ in found for token in tokens]
    assert len(drawn) > 1000
    assert engine.card.image_token_ids.isdisjoint(drawn)


async def test_hostile_images_leave_the_engine_alone(engine: Engine) -> None:
    """Each is refused or read; calls with those that are read run beside each other."""
    read: list[Image] = []
    for case in CASES:
        image = Image(case.data, case.mime_type, 0, "spec")
        if case.refusal:
            with pytest.raises(BadRequest):
                await engine.image_tokens(image, "stranger")
        else:
            read.append(replace(image, tokens=await engine.image_tokens(image, "stranger")))
    prompts = [engine.tokenizer.render([Message(Role.USER, "a", images=(image,))], thinking=True) for image in read]
    found = await asyncio.gather(
        *(
            run(engine, f"hostile-{n}", prompt, (image,), 4)
            for n, (prompt, image) in enumerate(zip(prompts, read, strict=True))
        )
    )
    assert [len(tokens) for tokens, _, _ in found] == [4] * len(read)
    await engine.check()
