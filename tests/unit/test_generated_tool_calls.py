"""Generated tool calls in both formats, whole and cut, at every pace: what is streamed is what was called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.generation.control import GenerationRun
from penstock.generation.generation import generate
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.types import (
    Delta,
    EngineChunk,
    EngineRequest,
    Event,
    Finished,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
    Tool,
    ToolCall,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallFormat,
    ToolCallStarted,
    ToolCallStatus,
    ToolConfig,
)

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
# A tag has no way to write these; a name that ends with = is read without it.
PARAMETERS = NAMES | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>"), min_size=1, max_size=10
).filter(lambda name: name == name.strip() and not name.endswith("="))
# Names of control tokens have no text in the scripted engine's vocabulary. `</parameter` in front of other markup ends
# a value (docs/concepts/tool-calls.md): it comes from MARKERS, where what follows does not go on with the markup.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(
    lambda text: not any(name in text for name in ("<think>", "</think>", "<|", "</parameter"))
)
# Markers in the middle of a value, where what follows does not go on with the markup.
MARKERS = st.sampled_from(
    [
        *("</parameter>", "</function>", "</tool_call>", "<parameter=x>", "<tool_call>", '"', "\\", "{"),
        *("</function></tool_call>", "</function>\n</tool_call>\n"),
    ]
)
STRINGS = st.builds(lambda a, m, b: f"a{a}{m}b{b}c", TEXT, MARKERS | st.just(""), TEXT) | TEXT.map(lambda t: f"x{t}x")
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.just(2**64 + 1)
SCALARS = STRINGS | NUMBERS | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True)
class Written:
    """A call, the schema that it obeys, and how the model writes it."""

    tool: Tool
    arguments: dict[str, Any]

    def text(self, call_format: ToolCallFormat) -> str:
        if call_format is ToolCallFormat.JSON:
            body = json.dumps({"name": self.tool.name, "arguments": self.arguments}, ensure_ascii=False)
        else:
            values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.arguments.items()}
            parameters = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
            body = f"<function={self.tool.name}>\n{parameters}</function>"
        return f"<tool_call>\n{body}\n</tool_call>"


@st.composite
def written(draw: st.DrawFn) -> Written:
    arguments = draw(st.dictionaries(PARAMETERS, VALUES, max_size=4))
    properties = {name: {"type": TYPES.get(type(value), "null")} for name, value in arguments.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Written(Tool(draw(NAMES), "", json.dumps(schema)), arguments)


CALLS = st.lists(written(), min_size=1, max_size=3, unique_by=lambda one: one.tool.name)
FORMATS = st.sampled_from(ToolCallFormat)
STEPS = [1, 2, 3, 7, 50, 10_000]
GARBAGE = MARKERS | TEXT | st.sampled_from(["<function=a>", "\n", '{"name": "a", "arguments": {', "}", ">"])


def events_of(text: str, calls: list[Written], call_format: ToolCallFormat, step: int, **output: Any) -> list[Event]:
    engine = ScriptedEngine([Reply(thought="hm", answer=text, chunk_tokens=step)], context_window_tokens=100_000)
    engine.card = replace(engine.card, tool_call_format=call_format)
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=ThinkingConfig(ThinkingMode.THINKING),
        tools=ToolConfig(tuple(call.tool for call in calls)),
        output=Output(**output),
    )

    async def run() -> list[Event]:
        plan = plan_generation(request, engine, Config())
        return [event async for event in generate(engine, plan, PriceList(()), GenerationRun("g", 0.0))]

    return asyncio.run(run())


def calls_in(events: list[Event]) -> list[ToolCall]:
    """The finished calls; their fragments concatenate to their arguments, and each began once, in order."""
    finished = [event.call for event in events if isinstance(event, ToolCallFinished)]
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(one.call_index, one.id, one.name) for one in started] == [
        (n, call.id, call.name) for n, call in enumerate(finished)
    ]
    for number, call in enumerate(finished):
        own = [e for e in events if isinstance(e, ToolCallArguments) and e.call_index == number]
        assert "".join(event.json_fragment for event in own) == call.arguments_json
        if call.status is ToolCallStatus.COMPLETE:
            assert isinstance(json.loads(call.arguments_json), dict)
    return finished


def check_counts(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    told = [e.token_count for e in events if isinstance(e, ToolCallStarted | ToolCallArguments | ToolCallFinished)]
    assert sum(told) == last.usage.tool_tokens
    answers = [e.token_count for e in events if isinstance(e, Delta) and not e.is_thought]
    assert sum(answers) == last.usage.answer_tokens
    return last


def check_what_was_called_is_what_is_streamed(
    calls: list[Written], call_format: ToolCallFormat, step: int, before: str
) -> None:
    before = f"x{before}x".replace("<", "(")
    text = f"{before}\n" + "\n".join(call.text(call_format) for call in calls)
    events = events_of(text, calls, call_format, step)
    found = calls_in(events)
    assert [call.name for call in found] == [call.tool.name for call in calls]
    assert all(call.status is ToolCallStatus.COMPLETE for call in found)
    for call, asked in zip(found, calls, strict=True):
        arguments = json.loads(call.arguments_json)
        assert arguments == asked.arguments
        assert list(arguments) == list(asked.arguments)
        jsonschema.validate(arguments, json.loads(asked.tool.parameters_json_schema))
    assert "".join(e.text for e in events if isinstance(e, Delta) and not e.is_thought) == before
    assert check_counts(events).ends[0].finish_reason is FinishReason.TOOL_CALLS


def check_wherever_it_is_cut_no_half_call_is_complete(
    calls: list[Written], call_format: ToolCallFormat, step: int, most: int
) -> None:
    text = "\n".join(call.text(call_format) for call in calls)
    whole = calls_in(events_of(text, calls, call_format, step))
    events = events_of(text, calls, call_format, step, max_tokens=most)
    found = calls_in(events)
    last = check_counts(events)
    assert last.usage.output_tokens <= most
    for call, other in zip(found, whole, strict=False):
        # A call that was cut inside its header has the name so far.
        assert other.name.startswith(call.name)
        if call.status is ToolCallStatus.COMPLETE:
            assert call.arguments_json == other.arguments_json
        else:
            assert other.arguments_json.startswith(call.arguments_json)
            assert call is found[-1]
    if len(found) < len(whole):
        assert last.ends[0].finish_reason is FinishReason.MAX_OUTPUT_TOKENS


def check_garbage_is_text_or_calls_and_nothing_is_lost(
    pieces: list[str], call_format: ToolCallFormat, step: int
) -> None:
    text = "".join(pieces)
    tool = Written(Tool("a"), {})
    at_once, events = (events_of(text, [tool], call_format, n) for n in (10_000, step))
    assert [(c.name, c.arguments_json, c.status) for c in calls_in(events)] == [
        (c.name, c.arguments_json, c.status) for c in calls_in(at_once)
    ]
    check_counts(events)
    if not calls_in(events):
        said = "".join(e.text for e in events if isinstance(e, Delta) and not e.is_thought)
        assert said.strip() == text.strip()


CHECKS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...], int]] = {
    "whole": (check_what_was_called_is_what_is_streamed, (CALLS, FORMATS, st.sampled_from(STEPS), TEXT), 1000),
    "cut": (
        check_wherever_it_is_cut_no_half_call_is_complete,
        (CALLS, FORMATS, st.sampled_from([1, 3, 10_000]), st.integers(1, 300)),
        700,
    ),
    "garbage": (
        check_garbage_is_text_or_calls_and_nothing_is_lost,
        (st.lists(GARBAGE), FORMATS, st.sampled_from([1, 5, 10_000])),
        300,
    ),
}


def run_generated(kind: str, share: float) -> None:
    check, strategies, cases = CHECKS[kind]
    bounds = settings(max_examples=int(cases * share), deadline=None, suppress_health_check=list(HealthCheck))
    bounds(given(*strategies)(check))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_a_tenth_of_the_generated_calls(kind: str) -> None:
    run_generated(kind, 0.1)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", CHECKS)
def test_two_thousand_generated_calls(kind: str) -> None:
    run_generated(kind, 1.0)


async def test_think_markers_in_arguments_cost_one_continuation() -> None:
    runs: list[EngineRequest] = []

    class Counting(ScriptedEngine):
        def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
            runs.append(request)
            return super().stream(request)

    markers = "<think>" * 50
    engine = Counting(
        [Reply(answer=f"<tool_call><function=f><parameter=a>{markers}x</parameter></function></tool_call>")]
    )
    engine.card = replace(engine.card, tool_call_format=ToolCallFormat.XML)
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=ThinkingConfig(ThinkingMode.FAST),
        tools=ToolConfig((Tool("f"),)),
    )
    plan = plan_generation(request, engine, Config())
    events = [event async for event in generate(engine, plan, PriceList(()), GenerationRun("g", 0.0))]
    assert [call.arguments_json for call in calls_in(events)] == ['{"a": "x"}']
    assert len(runs) == 2
