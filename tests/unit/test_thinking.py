"""The budget that comes out: finite, beside its reserve, and with a reason; contradictions refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.config.schema import Config, ThinkingSettings
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest, FeatureOff
from penstock.generation.thinking import (
    AnswerLengths,
    Situation,
    choose_mode,
    defaults_for,
    needs_thought,
    plan_budget,
    question_of,
)
from penstock.generation.validation import validate
from penstock.types import (
    Budget,
    EarlyExit,
    EarlyExitAdvice,
    Effort,
    Message,
    ModeChoice,
    Output,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
)

CARD = ScriptedEngine(()).card
DEFAULTS = defaults_for(ThinkingSettings(), CARD)
WORK = "What is 17 + 25 + 8 + 31?"


def budget(config: ThinkingConfig, most: int | None = None, room: int = 1000) -> Budget:
    choice = ModeChoice(ThinkingMode.THINKING, None, "asked")
    return plan_budget(config, Output(max_tokens=most), DEFAULTS, choice, room)


def auto(question: str = WORK, now: Situation = Situation(), **config: int) -> ModeChoice:  # noqa: B008 - frozen
    return choose_mode(ThinkingConfig(ThinkingMode.AUTO, **config), DEFAULTS, CARD, question, now)


@pytest.mark.parametrize(
    ("config", "most", "room", "thought", "reserve"),
    [
        (ThinkingConfig(budget_tokens=-1), None, 1000, 872, 128),
        (ThinkingConfig(budget_tokens=50), None, 1000, 50, 128),
        (ThinkingConfig(budget_tokens=5000), None, 1000, 872, 128),  # clamped: the server chose max_output
        (ThinkingConfig(budget_tokens=60), 64, 1000, 60, 4),  # the server's reserve gives way to the caller's budget
        (ThinkingConfig(budget_tokens=63), 64, 1000, 63, 1),
        (ThinkingConfig(), 64, 1000, 32, 32),
        (ThinkingConfig(answer_reserve_tokens=900), None, 1000, 100, 900),
        (ThinkingConfig(), None, 1, 0, 1),
    ],
)
def test_the_budget_leaves_the_reserve(
    config: ThinkingConfig, most: int | None, room: int, thought: int, reserve: int
) -> None:
    planned = budget(config, most, room)
    assert (planned.thought_tokens, planned.answer_reserve_tokens) == (thought, reserve)


def test_a_planned_budget_always_holds() -> None:
    planned_ones = []

    @given(
        st.none() | st.integers(-1, 3000),
        st.none() | st.integers(1, 3000),
        st.none() | st.integers(1, 3000),
        st.integers(1, 3000),
    )
    def try_one(asked: int | None, reserve: int | None, most: int | None, room: int) -> None:
        try:
            planned = budget(ThinkingConfig(budget_tokens=asked, answer_reserve_tokens=reserve), most, room)
        except BadRequest:
            assert most is not None
            return
        assert planned.thought_tokens >= 0
        assert planned.answer_reserve_tokens >= 1
        assert planned.thought_tokens + planned.answer_reserve_tokens <= planned.max_output_tokens <= room
        if asked not in (None, -1) and planned.thought_tokens < asked:
            assert "clamped" in planned.reason
        planned_ones.append(planned)

    try_one()
    assert len(planned_ones) >= 20


def test_contradictions_are_refused_by_field() -> None:
    with pytest.raises(BadRequest) as refused:
        budget(ThinkingConfig(budget_tokens=60, answer_reserve_tokens=5), most=64)
    assert refused.value.violations[0].field == "spec.thinking.thinking_budget"
    assert refused.value.reason == "BUDGET_DOES_NOT_FIT"


def test_a_model_without_markers_does_not_think() -> None:
    from dataclasses import replace

    card = replace(CARD, markers=None)
    with pytest.raises(FeatureOff):
        choose_mode(ThinkingConfig(ThinkingMode.THINKING), DEFAULTS, card, WORK, Situation())
    assert choose_mode(ThinkingConfig(ThinkingMode.AUTO), DEFAULTS, card, WORK, Situation()).mode is ThinkingMode.FAST


def test_auto_looks_at_the_question() -> None:
    assert auto("Hello there!").mode is ThinkingMode.FAST
    assert auto().mode is ThinkingMode.THINKING
    assert needs_thought("word " * 40)


@pytest.mark.parametrize(
    "question",
    [
        "What is seventeen plus twenty-five minus eight?",
        "2,3,5: what is their sum?",
        "Take the number 11, then double it, then double it.",
        "Three friends share twelve apples. How many does each get?",
        "Prove that the square root of 2 is irrational.",
        "Fix this:\n```\nx = 1\n```",
        "长" * 301,
    ],
)
def test_what_looks_like_work_needs_thought(question: str) -> None:
    assert needs_thought(question)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "What is the capital of France?",
        "Is 1,000,000 more than 999,999?",
        "Round 3.14159 to 2.5",
        "Thanks, see you after lunch!",
        "Set a timer for 10 minutes.",
        "Γειά σου 你好",
    ],
)
def test_what_does_not_look_like_work_needs_none(question: str) -> None:
    assert not needs_thought(question)


def test_auto_plans_inside_the_deadline() -> None:
    slow = Situation(seconds_to_deadline=4.0, seconds_per_token=0.01, first_token_seconds=0.1)
    choice = auto(now=slow)
    # (4 s - 0.15 s margin - 0.1 s first token) / (10 ms x 1.25) = 300 tokens, less the reserve of 128.
    assert choice.auto_budget_tokens == 172
    assert "4.0 s to the deadline at 10.0 ms per token" in choice.reason
    late = Situation(seconds_to_deadline=0.5, seconds_per_token=0.01)
    assert auto(now=late).mode is ThinkingMode.FAST
    assert auto(now=Situation(seconds_to_deadline=4.0)).auto_budget_tokens == DEFAULTS.auto_budget_tokens


def test_auto_keeps_time_for_answers_as_they_have_been_lately() -> None:
    lengths = AnswerLengths()
    for tokens in [8] * 15:
        lengths.saw(tokens)
    assert lengths.likely_tokens() is None
    for tokens in [12] * 4 + [100]:
        lengths.saw(tokens)
    assert lengths.likely_tokens() == 18, "12 covers 95 of 100; half as much again"
    slow = Situation(4.0, 0.01, 0.1, lengths.likely_tokens())
    assert auto(now=slow).auto_budget_tokens == 300 - 18
    assert auto(now=slow, answer_reserve_tokens=50).auto_budget_tokens == 300 - 50, "what the caller said goes first"
    assert auto(now=Situation(4.0, 0.01, 0.1, 999)).auto_budget_tokens == 300 - DEFAULTS.answer_reserve_tokens


def test_autos_upper_bound_is_the_callers_budget() -> None:
    assert auto(budget_tokens=9).auto_budget_tokens == 9
    assert auto(budget_tokens=2).mode is ThinkingMode.FAST


@pytest.mark.parametrize(
    ("window", "advised", "auto_budget", "reserve"),
    [
        (4096, None, 4096, 128),
        (32_768, None, 4096, 128),
        (262_144, None, 32_768, 1024),
        (1_010_000, None, 81_920, 3945),
        (262_144, 2048, 1024, 1024),
        (262_144, 100, 0, 1024),
    ],
)
def test_defaults_follow_window_and_checkpoint(
    window: int, advised: int | None, auto_budget: int, reserve: int
) -> None:
    card = replace(CARD, context_window_tokens=window, advised_output_tokens=advised)
    found = defaults_for(ThinkingSettings(), card)
    assert (found.auto_budget_tokens, found.answer_reserve_tokens) == (auto_budget, reserve)


@pytest.mark.parametrize(
    ("set_here", "advised", "expected"),
    [
        ({}, None, ("off", 0.3)),
        ({}, EarlyExitAdvice(EarlyExit.MARKER, 0.05), ("marker", 0.05)),
        ({}, EarlyExitAdvice(EarlyExit.PROBE), ("probe", 0.3)),
        ({"early_exit": "off"}, EarlyExitAdvice(EarlyExit.MARKER, 0.05), ("off", 0.05)),
        ({"early_exit_marker_probability": 0.5}, EarlyExitAdvice(EarlyExit.MARKER, 0.05), ("marker", 0.5)),
    ],
)
def test_early_exit_of_auto_is_as_set_or_as_the_checkpoint_advises(
    set_here: dict[str, Any], advised: EarlyExitAdvice | None, expected: tuple[str, float]
) -> None:
    found = defaults_for(ThinkingSettings(**set_here), replace(CARD, advised_early_exit=advised))
    assert (found.early_exit, found.early_exit_marker_probability) == expected


def test_a_follow_up_counts_with_the_turns_before_it() -> None:
    def talk(*texts: str) -> str:
        return question_of(tuple(Message(Role.USER, text) for text in texts), None)

    assert needs_thought(talk("What is 17 + 25?", "And 5 more?"))
    assert needs_thought(talk("What is 17 + 25?", "And 5 more?", "Now double it."))
    assert not needs_thought(talk("Hello", "Who are you?"))
    assert talk("one", "two", "three", "four") == "two three four"


def test_what_is_configured_holds() -> None:
    found = defaults_for(ThinkingSettings(auto_budget_tokens=0, answer_reserve_tokens=7), CARD)
    assert (found.auto_budget_tokens, found.answer_reserve_tokens) == (0, 7)


@pytest.mark.parametrize(
    ("effort", "room", "thought"),
    [
        (Effort.LOW, 1000, 200),
        (Effort.MEDIUM, 1000, 500),
        (Effort.HIGH, 1000, 800),
        (Effort.HIGH, 100, 50),  # the reserve is kept
        (Effort.LOW, 100_000, 2048),
        (Effort.MEDIUM, 100_000, 8192),
        (Effort.HIGH, 100_000, 32_768),
        (Effort.LOW, 4, 0),
    ],
)
def test_an_effort_is_a_budget_by_the_table(effort: Effort, room: int, thought: int) -> None:
    planned = budget(ThinkingConfig(effort=effort), room=room)
    assert planned.thought_tokens == thought
    assert f"effort {effort.value}" in planned.reason


def test_a_number_wins_over_an_effort() -> None:
    assert budget(ThinkingConfig(effort=Effort.HIGH, budget_tokens=7)).thought_tokens == 7
    assert budget(ThinkingConfig(effort=Effort.NONE, budget_tokens=7)).thought_tokens == 7
    zero = choose_mode(ThinkingConfig(effort=Effort.HIGH, budget_tokens=0), DEFAULTS, CARD, WORK, Situation())
    assert zero.mode is ThinkingMode.FAST


@pytest.mark.parametrize("mode", [None, ThinkingMode.AUTO, ThinkingMode.THINKING])
def test_no_effort_is_no_thought_and_any_other_is_one(mode: ThinkingMode | None) -> None:
    def chosen(effort: Effort) -> ThinkingMode:
        return choose_mode(ThinkingConfig(mode, effort=effort), DEFAULTS, CARD, "hello", Situation()).mode

    assert chosen(Effort.NONE) is ThinkingMode.FAST
    # The question is not classified: the caller said how hard to think.
    assert all(chosen(effort) is ThinkingMode.THINKING for effort in (Effort.LOW, Effort.MEDIUM, Effort.HIGH))


def test_a_deadline_still_bounds_an_effort_with_auto() -> None:
    now = Situation(seconds_to_deadline=10.0, seconds_per_token=0.02, first_token_seconds=0.1)
    choice = choose_mode(ThinkingConfig(ThinkingMode.AUTO, effort=Effort.HIGH), DEFAULTS, CARD, WORK, now)
    assert choice.auto_budget_tokens is not None
    assert choice.auto_budget_tokens < 500
    assert plan_budget(ThinkingConfig(effort=Effort.HIGH), Output(), DEFAULTS, choice, 4000).thought_tokens < 500


@pytest.mark.parametrize("place", [{"text": "hello"}, {"messages": (Message(Role.USER, "hello"),)}])
def test_an_effort_beside_fast_contradicts_it(place: dict[str, Any]) -> None:
    def check(effort: Effort) -> None:
        thinking = ThinkingConfig(ThinkingMode.FAST, effort=effort)
        validate(Request(**place, thinking=thinking), CARD, Config().resolved_limits)

    with pytest.raises(BadRequest) as refused:
        check(Effort.LOW)
    assert refused.value.violations[0].field == "spec.thinking.effort"
    check(Effort.NONE)
