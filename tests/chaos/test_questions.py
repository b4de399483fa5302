"""Check that each question of these tests has one clear reply: the same after a death and in any batch."""

from __future__ import annotations

import asyncio

from penstock_proto.v1 import generation_pb2 as pb

from tests.chaos.conftest import QUESTIONS, Patient, ask

MARGIN = 0.5
"""In the log probability of the likeliest token over the next one. bfloat16 moves it by a tenth."""


async def test_the_model_is_sure_of_every_token(patient: Patient) -> None:
    output = pb.OutputConfig(top_logprobs=2, max_output_tokens=400)
    replies = await asyncio.gather(*(ask(patient, question, output=output) for question in QUESTIONS))
    margins = {question: _least_margin(events) for question, events in zip(QUESTIONS, replies, strict=True)}
    assert {question: margin for question, margin in margins.items() if margin < MARGIN} == {}, "see `_NEAR_TIES`"


def _least_margin(events: list[pb.GenerationEvent]) -> float:
    deltas = [delta for event in events for delta in (event.thought, event.answer)]
    tops = [one.top for delta in deltas for one in delta.logprobs]
    assert tops
    return min(first.logprob - second.logprob for first, second in tops)
