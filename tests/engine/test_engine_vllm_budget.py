"""The engine closes a thought after exactly as many tokens as it was told, however it is asked."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from penstock.types import Sampling

from .conftest import GREEDY, run

BUDGETS = (0, 1, 2, 7, 64)
DRAWN = {"greedy": GREEDY, "sampled": Sampling(temperature=1.0, seed=7), "unseeded": Sampling(temperature=1.5)}


def thought_length(tokens, close_id):
    return tokens.index(close_id) if close_id in tokens else len(tokens)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("drawing", DRAWN)
async def test_a_thought_that_would_not_end_has_exactly_the_budget(
    engine, thinking_prompt, request_for, budget, drawing
):
    close = engine.card.markers.close_id
    request = request_for(
        thinking_prompt,
        budget + 9,
        sampling=DRAWN[drawing],
        thought_budget_tokens=budget,
        # A thought that is opened again in the answer has a budget of its own: that is not what is tried here.
        banned_token_ids=(engine.card.markers.open_id, close, *engine.card.eos_ids),
    )
    tokens, _ = await run(engine, request)
    assert thought_length(tokens, close) == budget
    assert tokens.count(close) == 1, "the budget fired again in the answer"


@pytest.mark.parametrize("budget", BUDGETS)
async def test_a_thought_that_ends_by_itself_is_left_alone(engine, thinking_prompt, request_for, budget):
    close = engine.card.markers.close_id
    natural, _ = await run(engine, request_for(thinking_prompt, 200))
    tokens, _ = await run(engine, request_for(thinking_prompt, 200, thought_budget_tokens=budget))
    expected = min(budget, thought_length(natural, close))
    assert thought_length(tokens, close) == expected
    assert tokens[:expected] == natural[:expected]


async def test_mixed_budgets_in_one_batch(engine, thinking_prompt, request_for):
    close = engine.card.markers.close_id
    budgets = (0, 1, 2, 7, 64, 5, 0, 1)
    drawings = [DRAWN["greedy"], DRAWN["unseeded"]]
    runs = await asyncio.gather(
        *(
            run(
                engine,
                request_for(
                    thinking_prompt,
                    80,
                    sampling=drawings[place % 2],
                    thought_budget_tokens=budget,
                    banned_token_ids=(close, *engine.card.eos_ids),
                ),
            )
            for place, budget in enumerate(budgets)
        )
    )
    assert tuple(thought_length(tokens, close) for tokens, _ in runs) == budgets


@pytest.mark.parametrize("already", [1, 5])
@pytest.mark.parametrize("budget", [0, 1, 2, 7])
async def test_a_continuation_counts_only_what_it_generates(engine, thinking_prompt, request_for, already, budget):
    close = engine.card.markers.close_id
    before, _ = await run(engine, request_for(thinking_prompt, already, banned_token_ids=(close, *engine.card.eos_ids)))
    request = request_for(
        (*thinking_prompt, *before),
        budget + 5,
        thought_budget_tokens=budget,
        banned_token_ids=(close, *engine.card.eos_ids),
    )
    tokens, _ = await run(engine, request)
    assert thought_length(tokens, close) == budget


async def test_a_closed_prompt_has_no_thought_to_close(engine, fast_prompt, request_for):
    close = engine.card.markers.close_id
    markers = (engine.card.markers.open_id, close)  # a thought that is opened again would have a budget of its own
    request = request_for(fast_prompt, 20, min_tokens=20, thought_budget_tokens=3, banned_token_ids=markers)
    tokens, _ = await run(engine, request)
    assert close not in tokens


async def test_a_thought_that_is_given_up_leaves_its_budget_to_no_other_request(
    engine, thinking_prompt, fast_prompt, request_for
):
    """The request beside it moves into its place in the batch."""
    close, budget = engine.card.markers.close_id, 64
    banned = (engine.card.markers.open_id, close, *engine.card.eos_ids)
    thought = request_for(thinking_prompt, 200, thought_budget_tokens=budget, banned_token_ids=banned)
    answer = request_for(fast_prompt, 2 * budget, banned_token_ids=banned)
    tokens = []
    async with aclosing(engine.stream(thought)) as first, aclosing(engine.stream(answer)) as second:
        await anext(first)
        tokens += (await anext(second)).token_ids
        await first.aclose()
        async for chunk in second:
            tokens += chunk.token_ids
    assert len(tokens) == 2 * budget
    assert close not in tokens
