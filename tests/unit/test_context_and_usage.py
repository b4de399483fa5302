"""Fitting prompts into windows, and money."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from penstock.config.schema import Config, PriceTier, PricingSettings
from penstock.errors import BadRequest, ContextOverflow
from penstock.generation.context_window import fit_messages, fit_tokens
from penstock.generation.thinking import question_of
from penstock.generation.usage import PriceList, total
from penstock.types import Message, Overflow, Role, ToolCall, ToolResult, Usage
from pydantic import ValidationError


def render(messages: Sequence[Message]) -> list[int]:
    """One token per character, two per message for its frame."""
    return [0] * sum(len(m.content) + 2 for m in messages)


TALK = [
    Message(Role.SYSTEM, "sys"),
    *[Message(role, "x" * 8) for _ in range(3) for role in (Role.USER, Role.ASSISTANT)],
    Message(Role.USER, "last"),
]


def test_oldest_turns_go_first_and_whole() -> None:
    plan = fit_messages(TALK, render, Overflow.DROP_OLDEST_TURNS, window=60, output_tokens_needed=5)
    # 71 tokens; a turn is 20: one must go, system (5) and last (6) stay.
    assert (plan.dropped_messages, plan.dropped_tokens, len(plan.prompt_token_ids)) == (2, 20, 51)


def test_nothing_but_system_and_last_may_remain() -> None:
    plan = fit_messages(TALK, render, Overflow.DROP_OLDEST_TURNS, window=16, output_tokens_needed=5)
    assert (plan.dropped_messages, len(plan.prompt_token_ids)) == (6, 11)
    with pytest.raises(ContextOverflow) as over:
        fit_messages(TALK, render, Overflow.DROP_OLDEST_TURNS, window=15, output_tokens_needed=5)
    assert over.value.metadata["overflow_tokens"] == "1"


def test_late_system_messages_stay_where_they_are_and_come_once() -> None:
    talk = [*TALK[:3], Message(Role.SYSTEM, "late"), *TALK[3:]]
    seen: list[list[str]] = []

    def watched(messages: Sequence[Message]) -> list[int]:
        seen.append([m.content for m in messages if m.role is Role.SYSTEM])
        return render(messages)

    plan = fit_messages(talk, watched, Overflow.DROP_OLDEST_TURNS, window=66, output_tokens_needed=5)
    assert plan.dropped_messages == 2
    assert all(said == ["sys", "late"] for said in seen)


def test_a_tool_result_stays_with_its_call_and_the_question_is_found() -> None:
    call, answered = ToolCall("c", "look", "{}"), ToolResult("c", "20")
    turn = [
        Message(Role.USER, "x" * 8),
        Message(Role.ASSISTANT, "", tool_calls=(call,)),
        Message(Role.TOOL, "", tool_results=(answered,)),
        Message(Role.ASSISTANT, "y" * 8),
    ]
    talk = (Message(Role.SYSTEM, "sys"), *turn, *turn, Message(Role.USER, "last"), *turn[1:3])
    seen: list[Sequence[Message]] = []

    def watched(messages: Sequence[Message]) -> list[int]:
        seen.append(messages)
        return render(messages)

    for window in range(20, 75):
        fit_messages(talk, watched, Overflow.DROP_OLDEST_TURNS, window, output_tokens_needed=5)
    assert len({len(messages) for messages in seen}) == 3
    for messages in seen:
        assert next(m for m in messages if m.role is not Role.SYSTEM).role is Role.USER
        assert sum(len(m.tool_calls) for m in messages) == sum(len(m.tool_results) for m in messages)
        assert question_of(tuple(messages), None).endswith("last")


def test_error_is_the_default_and_has_the_numbers() -> None:
    with pytest.raises(ContextOverflow) as over:
        fit_messages(TALK, render, Overflow.ERROR, window=60, output_tokens_needed=5)
    assert over.value.metadata == {
        "prompt_tokens": "71",
        "window_tokens": "60",
        "output_tokens_needed": "5",
        "overflow_tokens": "16",
    }


def test_policies_that_do_not_suit_are_refused() -> None:
    with pytest.raises(BadRequest):
        fit_messages(TALK, render, Overflow.TRUNCATE_LEFT, 60, 5)
    with pytest.raises(BadRequest):
        fit_tokens([1, 2], Overflow.DROP_OLDEST_TURNS, 60, 5)


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [(Overflow.TRUNCATE_LEFT, (6, 7, 8, 9, 10)), (Overflow.TRUNCATE_MIDDLE, (1, 2, 3, 9, 10))],
)
def test_raw_prompts_are_cut(overflow: Overflow, kept: tuple[int, ...]) -> None:
    plan = fit_tokens(range(1, 11), overflow, window=8, output_tokens_needed=3)
    assert (plan.prompt_token_ids, plan.dropped_tokens) == (kept, 5)
    with pytest.raises(ContextOverflow):
        fit_tokens(range(1, 11), overflow, window=3, output_tokens_needed=3)


def tier(**fields: object) -> PriceTier:
    return PriceTier.model_validate({"input_usd_per_million": "0.40", "output_usd_per_million": "2.40"} | fields)


def test_cost_is_exact_in_ticks() -> None:
    prices = PriceList([tier(up_to_prompt_tokens=1000, cached_usd_per_million="0.0401"), tier()])
    cost = prices.cost(Usage(prompt_tokens=1000, cached_tokens=400, thought_tokens=7, answer_tokens=3))
    assert cost is not None
    assert (cost.input_usd_ticks, cost.cached_usd_ticks, cost.output_usd_ticks) == (600 * 4000, 400 * 401, 10 * 24000)
    assert Decimal(cost.total_usd_ticks) / 10**10 == Decimal("0.00028004") + Decimal("0")
    assert PriceList(()).cost(Usage(prompt_tokens=5)) is None


def test_tiers_go_by_prompt_length_inclusive() -> None:
    prices = PriceList([tier(up_to_prompt_tokens=10), tier(input_usd_per_million="1")])
    assert prices.cost(Usage(prompt_tokens=10)).input_usd_ticks == 10 * 4000  # type: ignore[union-attr]
    assert prices.cost(Usage(prompt_tokens=11)).input_usd_ticks == 11 * 10000  # type: ignore[union-attr]


def test_prices_finer_than_a_tick_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"0\.0001"):
        tier(input_usd_per_million="0.00001")
    with pytest.raises(ValidationError, match="must be ordered"):
        PricingSettings(tiers=(tier(up_to_prompt_tokens=5), tier(up_to_prompt_tokens=5)))


def test_the_demo_model_has_a_price_and_others_have_none() -> None:
    assert Config().price_tiers
    assert Config.model_validate({"engine": {"model": "some/model"}}).price_tiers == ()


def test_candidates_share_one_prompt() -> None:
    one = Usage(prompt_tokens=10, cached_tokens=4, thought_tokens=2, answer_tokens=3)
    both = total([one, one])
    assert (both.prompt_tokens, both.cached_tokens, both.output_tokens, both.drafted_tokens) == (10, 4, 10, None)
