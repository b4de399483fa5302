"""Test what a plan makes of tools, histories and begun answers."""

from __future__ import annotations

import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest
from penstock.generation.planner import plan_generation
from penstock.types import (
    GenerationPlan,
    Message,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
    ThoughtHistory,
    Tool,
    ToolConfig,
    ToolMode,
)

USER, ASSISTANT = Role.USER, Role.ASSISTANT
TALK = (Message(USER, "a"), Message(ASSISTANT, "b", thought="old"), Message(USER, "c"))
NO_TOOLS = ToolConfig()
TOOLS = (Tool("one"), Tool("two"))


def plan(messages: tuple[Message, ...] = TALK, tools: ToolConfig = NO_TOOLS, **thinking: object) -> GenerationPlan:
    config = ThinkingConfig(**thinking)  # type: ignore[arg-type]
    return plan_generation(Request(messages=messages, tools=tools, thinking=config), ScriptedEngine([]), Config())


def test_the_prompt_has_the_requests_tools_and_history() -> None:
    engine = ScriptedEngine([])
    for history in ThoughtHistory:
        planned = plan(tools=ToolConfig(TOOLS), history=history, mode=ThinkingMode.FAST)
        expected = engine.tokenizer.render(TALK, thinking=False, tools=TOOLS, history=history)
        assert planned.context.prompt_token_ids == tuple(expected)


def test_all_tools_are_shown_whatever_may_be_called() -> None:
    prompts = {
        plan(tools=ToolConfig(TOOLS, mode, names)).context.prompt_token_ids
        for mode in ToolMode
        for names in ((), ("one",))
    }
    assert len(prompts) == 1


@pytest.mark.parametrize("mode", [None, ThinkingMode.FAST, ThinkingMode.AUTO])
def test_a_begun_answer_is_continued_without_a_thought(mode: ThinkingMode | None) -> None:
    talk = (Message(USER, "Solve 1 + 2 + 3 + 4, then prove it step by step."), Message(ASSISTANT, "It is "))
    planned = plan(talk, mode=mode)
    assert planned.choice.mode is ThinkingMode.FAST
    assert not planned.in_thought
    assert planned.budget.thought_tokens == 0


def test_a_begun_answer_cannot_be_thought_about() -> None:
    talk = (Message(USER, "a"), Message(ASSISTANT, "It is "))
    for thinking in ({"mode": ThinkingMode.THINKING}, {"budget_tokens": 5}, {"budget_tokens": -1}):
        with pytest.raises(BadRequest) as refused:
            plan(talk, **thinking)
        assert refused.value.reason == "CONFLICTING_FIELDS"
        assert refused.value.violations[0].field == "spec.thinking.mode"


def test_a_begun_thought_is_continued() -> None:
    planned = plan((Message(USER, "a"), Message(ASSISTANT, "", "I think")), mode=ThinkingMode.THINKING)
    assert planned.in_thought
    assert planned.budget.thought_tokens > 0
