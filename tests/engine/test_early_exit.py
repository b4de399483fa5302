"""Early exit on the real engine with its defaults (MTP on): budgets stay exact beside probes, which nobody hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb

from tests.engine.test_budget_on_the_wire import BUDGETS, QUESTIONS, think, thought_tokens
from tests.rpc.conftest import serving

MARKER, PROBE = pb.EARLY_EXIT_MARKER, pb.EARLY_EXIT_PROBE
LONG = "What is 17 + 25 + 8 + 31 + 14 + 22 + 9 + 40 + 13 + 27?"
EAGER = {
    "early_exit_interval_tokens": 2,
    "early_exit_share": 64.0,
    "early_exit_agreements": 3,
    "early_exit_answer_tokens": 3,
    "early_exit_marker_probability": 0.05,
}


@pytest.fixture(scope="module")
async def eager(engine: Engine) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that probes as often as it can."""
    config = {"server": {"listen": "127.0.0.1:0"}, "thinking": EAGER}
    async with serving(engine, Config.model_validate(config)) as (_, channel):
        yield channel


def ids_of(events: list[pb.GenerationEvent]) -> list[int]:
    return [token_id for event in events for token_id in event.thought.token_ids]


def check_thought(engine: Engine, events: list[pb.GenerationEvent], budget: int) -> int:
    """Check a thought beside early exit, whatever was drawn, and return its tokens."""
    finished = events[-1].finished
    if finished.results[0].thinking_outcome != pb.THINKING_OUTCOME_CONVERGED:
        return thought_tokens(engine, events, budget)
    ids, markers = ids_of(events), engine.card.markers
    assert markers is not None
    assert not {markers.open_id, markers.close_id} & set(ids)
    assert len(ids) == sum(event.thought.token_count for event in events) == finished.usage.reasoning_tokens
    assert budget == -1 or 0 < len(ids) <= budget
    assert finished.usage.answer_tokens > 0
    return len(ids)


@pytest.mark.parametrize("sign", [MARKER, PROBE])
@pytest.mark.parametrize("question", QUESTIONS)
async def test_greedy_a_thought_is_cut_and_nothing_else_changes(
    engine: Engine, eager: grpc.aio.Channel, question: str, sign: pb.EarlyExit
) -> None:
    whole = ids_of(await think(eager, question, -1, 0.0))
    for budget in BUDGETS:
        events = await think(eager, question, budget, 0.0, early_exit=sign)
        spent, finished = check_thought(engine, events, budget), events[-1].finished
        assert ids_of(events) == whole[:spent]
        result = finished.results[0]
        if result.thinking_outcome != pb.THINKING_OUTCOME_CONVERGED:
            assert spent == (len(whole) if budget == -1 else min(len(whole), budget))
        # A probe that was given up has tokens and no reading.
        assert finished.usage.probe_tokens >= result.early_exit.probes
        assert sign == PROBE or result.early_exit.probes == 0
        assert finished.effective_settings.early_exit == (pb.EARLY_EXIT_OFF if budget == 0 else sign)


async def test_probes_are_made_and_end_thoughts(eager: grpc.aio.Channel) -> None:
    # Any answer is certain enough at this threshold.
    events = await think(eager, LONG, -1, 0.0, early_exit=PROBE, early_exit_probability=1e-9)
    result = events[-1].finished.results[0]
    assert result.early_exit.probes > 0
    assert result.thinking_outcome == pb.THINKING_OUTCOME_CONVERGED


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_mixed_batches(engine: Engine, eager: grpc.aio.Channel, temperature: float) -> None:
    signs = (pb.EARLY_EXIT_OFF, MARKER, PROBE)
    for question in QUESTIONS:
        calls = [(budget, sign) for budget in (-1, 0, 1, 7, 20) for sign in signs]
        streams = await asyncio.gather(
            *(think(eager, question, budget, temperature, early_exit=sign) for budget, sign in calls)
        )
        for (budget, sign), events in zip(calls, streams, strict=True):
            check_thought(engine, events, budget)
            outcome = events[-1].finished.results[0].thinking_outcome
            assert sign != pb.EARLY_EXIT_OFF or outcome != pb.THINKING_OUTCOME_CONVERGED
    assert engine.load().running_requests == 0
