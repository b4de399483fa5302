"""Test what is asked of the text is what happens, on the real engine: stops, minimum, the window's edge."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello

QUESTION = "What is 17 + 25 + 8 + 31?"


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> generation_pb2_grpc.GenerationServiceStub:
    return generation_pb2_grpc.GenerationServiceStub(channel)


async def generate(stub: generation_pb2_grpc.GenerationServiceStub, spec: pb.GenerationSpec) -> pb.Candidate:
    return (await stub.Generate(pb.GenerateRequest(spec=spec))).candidates[0]


def thinking(budget: int = -1, **output: object) -> pb.GenerationSpec:
    return hello(
        QUESTION,
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget),
        sampling=pb.SamplingConfig(temperature=0.0),
        output=pb.OutputConfig(**{"max_output_tokens": 160, "return_token_ids": True, **output}),
    )


@pytest.mark.parametrize("budget", [-1, 5, 0])
async def test_every_token_as_a_stop_leaves_the_thought_and_ends_the_answer_at_it(
    stub: generation_pb2_grpc.GenerationServiceStub, budget: int
) -> None:
    plain = await generate(stub, thinking(budget))
    answer, thought = list(plain.answer_token_ids), list(plain.thought_token_ids)
    stops = sorted({*thought, *answer})
    runs = await asyncio.gather(*(generate(stub, thinking(budget, stop_token_ids=[stop])) for stop in stops))
    for stop, run in zip(stops, runs, strict=True):
        expected = answer[: answer.index(stop) + 1] if stop in answer else answer
        assert list(run.thought_token_ids) == thought
        assert list(run.answer_token_ids) == expected
        assert run.result.usage.answer_tokens == len(expected)
        assert run.result.thinking_outcome == plain.result.thinking_outcome


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [0, 7, -1])
async def test_the_minimum_is_kept(
    stub: generation_pb2_grpc.GenerationServiceStub, budget: int, temperature: float
) -> None:
    specs = []
    for least in (1, 40, 120, 160):
        # The marker's token, a stop too, would end the answer where it strays into it.
        spec = thinking(budget, min_output_tokens=least, stop_token_ids=[8], stop_strings=["1"])
        spec.sampling.temperature = temperature
        specs.append(spec)
    for spec, run in zip(specs, await asyncio.gather(*(generate(stub, spec) for spec in specs)), strict=True):
        assert run.result.usage.output_tokens >= spec.output.min_output_tokens


async def test_the_window_is_used_to_its_last_token(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    window, markers = engine.card.context_window_tokens, engine.card.markers
    assert markers is not None
    prompt = [20 + (i * 7) % 200 for i in range(window - 8)]
    fast = pb.GenerationSpec(token_ids=pb.TokenIds(ids=prompt), output=pb.OutputConfig(max_output_tokens=8))
    # The same, in a thought: its closing marker has a place of its own.
    thought = pb.GenerationSpec(
        token_ids=pb.TokenIds(ids=[*prompt[:-2], markers.open_id]),
        output=pb.OutputConfig(max_output_tokens=8, min_output_tokens=8),
    )
    for run in await asyncio.gather(generate(stub, fast), generate(stub, thought)):
        finish, tokens = run.result.finish_reason, run.result.usage.output_tokens
        assert finish == pb.FINISH_REASON_STOP or (finish, tokens) == (pb.FINISH_REASON_MAX_OUTPUT_TOKENS, 8)


async def test_a_seed_alone_repeats_and_its_absence_draws_from_entropy(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    async def drawn(**sampling: object) -> list[int]:
        spec = thinking(0)
        spec.sampling.CopyFrom(pb.SamplingConfig(temperature=1.8, **sampling))
        return list((await generate(stub, spec)).answer_token_ids)

    assert await drawn(seed=5) == await drawn(seed=5) != await drawn(seed=6)
    seeds = await engine.drawn_from()  # type: ignore[attr-defined]
    assert seeds != [0], "vLLM's default: every start would draw the same"
    await engine.draw_from(3)  # type: ignore[attr-defined]
    first = await drawn()
    assert first != await drawn()
    await engine.draw_from(3)  # type: ignore[attr-defined]
    assert first == await drawn(), "the generator is what decides"
    await engine.draw_from(seeds[0] % 2**32)  # type: ignore[attr-defined]
