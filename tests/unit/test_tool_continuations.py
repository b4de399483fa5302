"""Outputs with tool calls are the same over an engine death at any token, and over a drain at any event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.generation.control import GenerationControl, GenerationRun
from penstock.generation.generation import generate
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.types import (
    Delta,
    Finished,
    Message,
    Output,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
    ThoughtEnded,
    Tool,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallFormat,
    ToolCallStarted,
    ToolConfig,
)

SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}})
TOOLS = (Tool("f", "", SCHEMA), Tool("g", "", SCHEMA))
TEXTS = {
    ToolCallFormat.XML: (
        "Hé.\n\n<tool_call>\n<function=f>\n<parameter=a>\nx</parameter>é\n</parameter>\n<parameter=b>\n"
        '[1, {"k": "</tool_call>"}]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=g>\n</function>\n</tool_call>\n\nand <tool_ b"
    ),
    ToolCallFormat.JSON: (
        'Hé.\n\n<tool_call>\n{"name": "f", "arguments": {"a": "x</tool_call>é", "b": [1]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n\nand <tool_ b'
    ),
}
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop string behind the calls": {"stop_strings": ("and",)},
    "stop string before the calls": {"stop_strings": ("\n\n",)},
    "one call": {"max_calls": 1},
    "cut": {"max_tokens": 60},
    "least": {"min_tokens": 30, "stop_token_ids": (ord("x"),)},
    "two candidates": {"candidate_count": 2},
}


@dataclass(frozen=True)
class Told:
    """Hold what an output told, neighbouring pieces of a kind as one, and how it ended."""

    pieces: list[tuple[Any, ...]]
    ends: list[tuple[Any, ...]]


def told(events: Sequence[Any], finished: Finished) -> Told:
    pieces: list[tuple[Any, ...]] = []
    tokens = 0
    for event in sorted(events, key=lambda event: event.candidate_index):
        index = event.candidate_index
        match event:
            case Delta():
                kind, text = ("thought" if event.is_thought else "answer", index), event.text
            case ToolCallArguments():
                kind, text = ("arguments", index, event.call_index), event.json_fragment
            case ToolCallStarted():
                kind, text = ("started", index, event.call_index, event.id), event.name
            case ToolCallFinished():
                kind, text = ("finished", index, event.call), ""
            case ThoughtEnded():
                kind, text = ("thought ended", index, event.outcome), ""
            case _:
                continue
        tokens += getattr(event, "token_count", 0)
        if pieces and pieces[-1][0] == kind:
            text = pieces.pop()[1] + text
        if text or kind[0] not in ("thought", "answer"):
            pieces.append((kind, text))
    assert tokens == finished.usage.output_tokens
    ends = [(end.finish_reason, end.matched_stop, end.usage.output_tokens) for end in finished.ends]
    return Told(pieces, ends)


def run(
    call_format: ToolCallFormat, step: int, *, dies: int = 0, drains: Sequence[int] = (), **asked: Any
) -> tuple[Told, int]:
    """Return what was told, and the number of events."""
    reply = Reply(thought="hm", answer=TEXTS[call_format], chunk_tokens=step, dies_after_tokens=dies)
    engine = ScriptedEngine([reply], context_window_tokens=100_000)
    engine.card = replace(engine.card, tool_call_format=call_format)
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=ThinkingConfig(ThinkingMode.THINKING),
        tools=ToolConfig(TOOLS, max_calls=asked.pop("max_calls", None)),
        output=Output(**asked),
    )

    async def play() -> tuple[Told, int]:
        plan = plan_generation(request, engine, Config())
        events: list[Any] = []
        states: Sequence[Any] = ()
        for count in (*drains, 1 << 30):
            control = GenerationControl()
            if not count:
                control.drain()
            async for event in generate(engine, plan, PriceList(()), GenerationRun("g", 0.0, control, states)):
                events.append(event)
                count -= 1
                if count <= 0:
                    control.drain()
            finished = events.pop()
            assert isinstance(finished, Finished)
            states = json.loads(json.dumps(finished.states))
            if not states:
                return told(events, finished), len(events)
        raise AssertionError("it never ended")

    return asyncio.run(play())


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("call_format", ToolCallFormat)
def test_a_death_at_any_token_changes_nothing(call_format: ToolCallFormat, asked: str) -> None:
    whole, _ = run(call_format, 1, **ASKED[asked])
    for dies in range(1, len(TEXTS[call_format].encode()) + 4):
        assert run(call_format, 1 + dies % 3, dies=dies, **ASKED[asked])[0] == whole, dies


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("call_format", ToolCallFormat)
def test_a_drain_at_any_event_changes_nothing(call_format: ToolCallFormat, asked: str) -> None:
    whole, events = run(call_format, 1, **ASKED[asked])
    for drain in range(events + 1):
        assert run(call_format, 1, drains=(drain, drain % 5), **ASKED[asked])[0] == whole, drain
