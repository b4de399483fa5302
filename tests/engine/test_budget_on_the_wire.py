"""The budget table: through gRPC, on the real engine with its defaults (MTP on), thoughts are exactly as long as asked.

Greedy, the count is min(budget, natural length), the natural length being that of the unlimited run. Sampled, the
natural length is each run's own, so what must hold is: a thought cut at the budget has exactly the budget, one that
ended by itself has no more. The deltas' ids and counts must say the same as the usage.
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello

BUDGETS = (-1, 0, 1, 2, 7, 64)
QUESTIONS = (
    "What is 17 + 25 + 8 + 31?",
    "Sort 41, 7, 93 and 12.",
    "Tom has 3 boxes of 12 pens and gives away 7. How many?",
)


async def think(
    channel: grpc.aio.Channel, question: str, budget: int, temperature: float, **thinking: object
) -> list[pb.GenerationEvent]:
    spec = hello(
        question,
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget, **thinking),
        sampling=pb.SamplingConfig(temperature=temperature),
        output=pb.OutputConfig(max_output_tokens=160, return_token_ids=True),
    )
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return [reply.event async for reply in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec))]


def thought_tokens(engine: Engine, events: list[pb.GenerationEvent], budget: int) -> int:
    """Thought tokens of a stream, after everything about them that must hold was checked."""
    markers = engine.card.markers
    assert markers is not None
    ids = [token_id for event in events for token_id in event.thought.token_ids]
    finished = events[-1].finished
    assert not {markers.open_id, markers.close_id} & set(ids)
    assert len(ids) == sum(event.thought.token_count for event in events) == finished.usage.reasoning_tokens
    result = finished.results[0]
    if budget == 0:
        assert result.thinking_outcome == pb.THINKING_OUTCOME_DISABLED
        assert ids == []
    elif result.thinking_outcome == pb.THINKING_OUTCOME_BUDGET_REACHED:
        assert len(ids) == (budget if budget > 0 else finished.effective_settings.thinking_budget)
    else:
        assert result.thinking_outcome == pb.THINKING_OUTCOME_NATURAL_END
        assert budget == -1 or len(ids) <= budget
    assert finished.usage.answer_tokens > 0
    assert finished.usage.output_tokens <= 160
    return len(ids)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_greedy_alone(engine: Engine, channel: grpc.aio.Channel, question: str) -> None:
    lengths = {b: thought_tokens(engine, await think(channel, question, b, 0.0), b) for b in BUDGETS}
    natural = lengths[-1]
    assert lengths == {b: natural if b == -1 else min(b, natural) for b in BUDGETS}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_mixed_batches_of_eight(engine: Engine, channel: grpc.aio.Channel, temperature: float) -> None:
    for question in QUESTIONS:
        budgets = (*BUDGETS, 3, 20)
        streams = await asyncio.gather(*(think(channel, question, b, temperature) for b in budgets))
        lengths = {b: thought_tokens(engine, events, b) for b, events in zip(budgets, streams, strict=True)}
        if temperature == 0.0:
            natural = lengths[-1]
            assert lengths == {b: natural if b == -1 else min(b, natural) for b in budgets}


async def test_sampled_alone(engine: Engine, channel: grpc.aio.Channel) -> None:
    for budget in BUDGETS:
        for question in QUESTIONS:
            thought_tokens(engine, await think(channel, question, budget, 1.3), budget)


async def test_a_closing_message_is_neither_counted_nor_sent(engine: Engine, channel: grpc.aio.Channel) -> None:
    message = (
        "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    )
    events = await think(channel, QUESTIONS[0], 3, 0.0, closing_message=message)
    assert thought_tokens(engine, events, 3) == 3
    assert events[-1].finished.usage.marker_tokens == len(engine.tokenizer.encode(message)) + 1
    assert "Considering" not in "".join(event.thought.text + event.answer.text for event in events)
