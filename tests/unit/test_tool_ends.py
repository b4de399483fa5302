"""Where outputs with tools end: stop strings and stop tokens around calls, the minimum length, and cuts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import ByteTokenizer, Reply, ScriptedEngine
from penstock.generation.control import GenerationRun
from penstock.generation.generation import generate
from penstock.generation.output_parser import OutputParser, ParserSettings, StepAction
from penstock.generation.planner import plan_generation
from penstock.generation.tool_calls import ToolCallParser
from penstock.generation.usage import PriceList
from penstock.types import (
    CandidateEnd,
    Delta,
    EngineRequest,
    Finished,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
    ThinkingOutcome,
    ThoughtEnded,
    Tool,
    ToolCall,
    ToolCallFinished,
    ToolCallFormat,
    ToolCallStatus,
    ToolConfig,
)

TOKENIZER = ByteTokenizer()
CALL_ID = TOKENIZER.encode("<tool_call>")[0]
CALL = "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
F = Tool("f", "", json.dumps({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}}))


class Noting(ScriptedEngine):
    """Note what was asked of it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__([reply], context_window_tokens=100_000)
        self.asked: list[EngineRequest] = []

    def stream(self, request: EngineRequest) -> Any:
        self.asked.append(request)
        return super().stream(request)


class Said:
    """Hold what an output told."""

    def __init__(self, events: list[Any]) -> None:
        deltas = [event for event in events if isinstance(event, Delta)]
        self.thought = "".join(event.text for event in deltas if event.is_thought)
        self.answer = "".join(event.text for event in deltas if not event.is_thought)
        self.calls: list[ToolCall] = [event.call for event in events if isinstance(event, ToolCallFinished)]
        self.outcomes = [event.outcome for event in events if isinstance(event, ThoughtEnded)]
        finished = events[-1]
        assert isinstance(finished, Finished)
        self.end: CandidateEnd = finished.ends[0]
        self.usage = finished.usage
        assert sum(event.token_count for event in events if not isinstance(event, ThoughtEnded | Finished)) == (
            self.usage.output_tokens
        )


def say(engine: ScriptedEngine, thinking: ThinkingConfig | None = None, **output: Any) -> Said:
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=thinking or ThinkingConfig(ThinkingMode.FAST),
        tools=ToolConfig((F,)),
        output=Output(**output),
    )

    async def run() -> list[Any]:
        plan = plan_generation(request, engine, Config())
        return [event async for event in generate(engine, plan, PriceList(()), GenerationRun("g", 0.0))]

    return Said(asyncio.run(run()))


STEPS = [1, 3, 1000]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", ["", "x", CALL, "<tool", "\n"])
@pytest.mark.parametrize(
    ("stop", "before", "kept"),
    [
        ("\n\n", "Hi\n\n", "Hi"),
        ("\n", "Hi\n", "Hi"),
        ("i\n", "Hi\n", "H"),
        ("\n\n\n", "Hi\nHo\n\n\n", "Hi\nHo"),
        ("o\n\n", "Ho\no\n\n", "Ho\n"),
    ],
)
def test_stop_strings_of_line_breaks_are_found_at_once(
    stop: str, before: str, kept: str, after: str, step: int
) -> None:
    said = say(Noting(Reply(answer=before + after, chunk_tokens=step)), stop_strings=(stop,))
    assert (said.answer, said.calls) == (kept, [])
    assert (said.end.finish_reason, said.end.matched_stop) == (FinishReason.STOP_STRING, stop)
    # Not a token is read behind the stop string: as if there were no tools.
    assert said.usage.output_tokens == len(before)


@pytest.mark.parametrize("step", STEPS)
def test_a_stop_string_must_be_whole_in_front_of_a_call(step: int) -> None:
    said = say(Noting(Reply(answer=f"Hi\n{CALL}", chunk_tokens=step)), stop_strings=("\n\n", "\n<", "i\nx"))
    assert (said.answer, [call.arguments_json for call in said.calls]) == ("Hi", ['{"a": "x"}'])
    assert said.end.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("step", STEPS)
def test_white_space_between_calls_and_behind_them_is_no_stop_string(step: int) -> None:
    said = say(Noting(Reply(answer=f"{CALL}\n\n{CALL}\n\n", chunk_tokens=step)), stop_strings=("\n", "\n\n"))
    assert len(said.calls) == 2
    assert said.end.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("tools", [True, False])
@pytest.mark.parametrize("least", range(9))
@pytest.mark.parametrize("step", STEPS)
def test_line_breaks_within_the_minimum_are_no_stop_strings(step: int, least: int, tools: bool) -> None:
    answer = "a\n\nb\n\nc\n\nd"

    def parsed(parser: ToolCallParser | None) -> tuple[str, str, int]:
        settings = ParserSettings(None, frozenset({258}), 0, 100, ("\n\n",), min_output_tokens=least)
        output = OutputParser(settings, TOKENIZER.token_bytes, in_thought=False, tools=parser)
        ids = [*answer.encode(), 258]
        text = ""
        for at in range(0, len(ids), step):
            ends = output.push(ids[at : at + step]) is not StepAction.GO_ON
            text += "".join(event.text for event in output.pop_events(final=ends) if isinstance(event, Delta))
            if ends:
                break
        return text, output.matched_stop, output.output_tokens

    assert parsed(ToolCallParser(ToolCallFormat.XML, [F])) == parsed(None)


@pytest.mark.parametrize("at", range(len("ab\n\n\nc")))
@pytest.mark.parametrize("least", [0, 3, 4])
def test_a_stop_string_is_found_by_the_next_server(at: int, least: int) -> None:
    settings = ParserSettings(None, frozenset({258}), 0, 100, ("b\n\n\n", "\n\n\nc"), min_output_tokens=least)

    def parser() -> OutputParser:
        tools = ToolCallParser(ToolCallFormat.XML, [F])
        return OutputParser(settings, TOKENIZER.token_bytes, in_thought=False, tools=tools)

    def told(parts: list[bytes]) -> tuple[str, str, int]:
        text, output = "", parser()
        for part in parts:
            state = json.loads(json.dumps(output.state()))
            output = parser()
            output.restore(state)
            ends = output.push([*part]) is not StepAction.GO_ON
            text += "".join(event.text for event in output.pop_events(final=ends) if isinstance(event, Delta))
            if ends:
                break
        return text, output.matched_stop, output.output_tokens

    whole = b"ab\n\n\nc"
    assert told([whole[:at], whole[at:]]) == told([whole])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("thinks", [True, False])
def test_the_token_that_begins_a_call_may_be_a_stop(thinks: bool, step: int) -> None:
    thinking = ThinkingConfig(ThinkingMode.THINKING if thinks else ThinkingMode.FAST)
    reply = Reply(thought=f"hm {CALL}", answer="never", chunk_tokens=step)
    reply = reply if thinks else replace(reply, answer=CALL)
    engine = Noting(reply)
    said = say(engine, thinking, stop_token_ids=(CALL_ID,))
    assert (said.thought, said.answer, said.calls) == ("hm " if thinks else "", "", [])
    assert said.end.finish_reason is FinishReason.STOP_TOKEN
    assert said.end.outcome is (ThinkingOutcome.NATURAL_END if thinks else ThinkingOutcome.DISABLED)
    assert said.usage.answer_tokens == 1
    assert len(engine.asked) == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_call_that_a_full_thought_begins_does_not_pass_the_limit(step: int) -> None:
    thinking = ThinkingConfig(ThinkingMode.THINKING, budget_tokens=4, answer_reserve_tokens=1)
    said = say(Noting(Reply(thought=f"1234{CALL}", chunk_tokens=step)), thinking, max_tokens=5)
    assert (said.thought, said.usage.output_tokens) == ("1234", 5)
    assert [(call.name, call.status) for call in said.calls] == [("", ToolCallStatus.INCOMPLETE)]
    assert said.end.finish_reason is FinishReason.MAX_OUTPUT_TOKENS


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("thinks", [True, False])
def test_a_stop_token_below_the_minimum_is_not_written_where_tools_may_be_called(thinks: bool, step: int) -> None:
    thinking = ThinkingConfig(ThinkingMode.THINKING if thinks else ThinkingMode.FAST)
    engine = Noting(Reply(thought="t", answer="abcdefgh", chunk_tokens=step))
    least = 5 + thinks
    said = say(engine, thinking, min_tokens=least, stop_token_ids=(ord("b"), ord("g")))
    assert (said.answer, said.end.finish_reason) == ("a.cdef", FinishReason.STOP_TOKEN)
    assert len(engine.asked) <= 3


@pytest.mark.parametrize("step", STEPS)
def test_a_stop_token_of_the_minimum_does_not_end_a_call(step: int) -> None:
    engine = Noting(Reply(answer=f"ab {CALL} and b", chunk_tokens=step))
    said = say(engine, min_tokens=3, stop_token_ids=(ord("b"), ord("x")))
    assert [call.arguments_json for call in said.calls] == ['{"a": "x"}']
    # The engine stops inside the call, whose text the stop tokens may be part of; the next run goes on with it.
    assert said.end.finish_reason is FinishReason.TOOL_CALLS
    assert said.usage.answer_tokens > len("a. ")


VALUES = [
    "x</function>\n</tool_call>y",
    "x</function></tool_call></function>y",
    "x</parameter>y",
    "x</parameter>\ny",
    "x</tool_call>y",
    "x</tool_call>\n</tool_call>y",
    "x\n<parameter=c>y",
    "x<function=g><parameter=a>1</parameter></function>y",
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("value", VALUES)
def test_no_half_call_is_complete_wherever_the_output_is_cut(value: str, as_json: bool) -> None:
    key, value = ("b", json.dumps(["é", value], ensure_ascii=False)) if as_json else ("a", value)
    text = f"<tool_call>\n<function=f>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"

    def parsed(part: str) -> list[Any]:
        parser = ToolCallParser(ToolCallFormat.XML, [F])
        pieces = [*parser.push(part), *parser.end(was_cut=True)]
        return [piece for piece in pieces if hasattr(piece, "status")]

    (whole,) = parsed(text)
    wanted = json.loads(value) if as_json else value
    assert (whole.status, json.loads(whole.arguments_json)) == (ToolCallStatus.COMPLETE, {key: wanted})
    for at in range(len("<tool_call>"), len(text)):
        for call in parsed(text[:at]):
            assert whole.arguments_json.startswith(call.arguments_json), text[:at]
            if call.status is ToolCallStatus.COMPLETE:
                assert call.arguments_json == whole.arguments_json


def test_a_call_that_the_model_ended_is_repaired() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=a>\nx\n</function>\n</tool_call>"
    said = say(Noting(Reply(answer=text)))
    assert [(call.status, call.arguments_json) for call in said.calls] == [(ToolCallStatus.COMPLETE, '{"a": "x"}')]
    cut = say(Noting(Reply(answer=text)), max_tokens=len(text) - len("<tool_call>" + "</tool_call>") + 2)
    assert cut.end.finish_reason is FinishReason.MAX_OUTPUT_TOKENS
    assert [(call.status, call.arguments_json) for call in cut.calls] == [(ToolCallStatus.INCOMPLETE, '{"a": "x')]
