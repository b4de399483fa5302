"""Stop patterns on the real engine with its defaults (MTP on): the thought ends with the first token that shows one."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb

from tests.engine.test_budget_on_the_wire import BUDGETS, QUESTIONS, think, thought_tokens

REGEX = r"\d{2}\D"


def ids_of(events: list[pb.GenerationEvent]) -> list[int]:
    return [token_id for event in events for token_id in event.thought.token_ids]


def length_at_match(engine: Engine, ids: list[int]) -> int | None:
    """Tokens up to the first one after which the expression matches; None where it does not."""
    text = b""
    for at, token_id in enumerate(ids):
        text += engine.tokenizer.token_bytes(token_id)
        if re.search(REGEX, text.decode(errors="ignore")):
            return at + 1
    return None


def check_stopped(engine: Engine, events: list[pb.GenerationEvent], budget: int) -> int:
    """Check a thought with the pattern, whatever was drawn, and return its tokens."""
    ids, finished = ids_of(events), events[-1].finished
    at = length_at_match(engine, ids)
    if finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_STOP_PATTERN:
        assert at == len(ids) == finished.usage.reasoning_tokens
        assert budget == -1 or len(ids) <= budget
        assert finished.usage.answer_tokens > 0
        return len(ids)
    assert at is None
    return thought_tokens(engine, events, budget)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_greedy_the_pattern_cuts_the_thought_that_would_have_been(
    engine: Engine, channel: grpc.aio.Channel, question: str
) -> None:
    whole = ids_of(await think(channel, question, -1, 0.0))
    at = length_at_match(engine, whole)
    assert at is not None
    assert at < len(whole)
    patterns = pb.StopPatterns(strings=["never written"], regex=REGEX)
    for budget in BUDGETS:
        events = await think(channel, question, budget, 0.0, stop_patterns=patterns)
        assert check_stopped(engine, events, budget) == (at if budget == -1 else min(at, budget))
        assert ids_of(events) == whole[: at if budget == -1 else min(at, budget)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_mixed_batches_of_budgets_and_patterns(
    engine: Engine, channel: grpc.aio.Channel, temperature: float
) -> None:
    patterns = (pb.StopPatterns(), pb.StopPatterns(regex=REGEX))
    for question in QUESTIONS:
        calls = [(budget, pattern) for budget in (-1, 1, 7, 64) for pattern in patterns]
        streams = await asyncio.gather(
            *(think(channel, question, budget, temperature, stop_patterns=pattern) for budget, pattern in calls)
        )
        for (budget, pattern), events in zip(calls, streams, strict=True):
            if pattern.regex:
                check_stopped(engine, events, budget)
            else:
                thought_tokens(engine, events, budget)
