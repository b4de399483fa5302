"""The scripted engine's steps: what a stream gets that is read late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from penstock.engine.scripted import ByteTokenizer, Reply, ScriptedEngine
from penstock.errors import BadRequest
from penstock.types import EngineRequest, Message, Role, Sampling, ThoughtHistory, Tool, ToolCall, ToolResult

_STEP_SECONDS = 0.02
_LATE_SECONDS = 0.1


@pytest.mark.slow
@pytest.mark.parametrize("keeps_schedule", [True, False])
async def test_steps_that_were_missed_come_at_once_or_are_put_off(keeps_schedule: bool) -> None:
    reply = Reply(answer="x" * 101, chunk_tokens=2, step_seconds=_STEP_SECONDS, keeps_schedule=keeps_schedule)
    engine = ScriptedEngine([reply])
    prompt = tuple(engine.tokenizer.encode("go"))
    stream = engine.stream(EngineRequest("1", prompt, 100, 0, Sampling()))
    chunks = []
    async for chunk in stream:
        chunks.append(len(chunk.token_ids))
        if len(chunks) == 2:
            await asyncio.sleep(_LATE_SECONDS)
    assert sum(chunks) == 100, "neither lost nor told twice, and no more than was asked for"
    if keeps_schedule:
        assert chunks[2] >= 2 * int(_LATE_SECONDS / _STEP_SECONDS - 1)
        assert {tokens % 2 for tokens in chunks} == {0}
    else:
        assert set(chunks) == {2}


async def test_streams_of_one_pace_step_together_whoever_leaves() -> None:
    engine = ScriptedEngine([Reply(answer="x" * 20, step_seconds=_STEP_SECONDS)])
    prompt = tuple(engine.tokenizer.encode("go"))

    async def read(name: str) -> list[int]:
        """Return the number of the step in which each token came."""
        stream = engine.stream(EngineRequest(name, prompt, 10, 0, Sampling()))
        return [int(time.monotonic() / _STEP_SECONDS) async for _ in stream]

    leaving, *staying = [asyncio.create_task(read(name)) for name in "abc"]
    await asyncio.sleep(_STEP_SECONDS / 2)
    leaving.cancel()
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(*staying)
    assert len(first) == len(second) == 10
    assert first == sorted(first)


def test_an_engine_outlives_the_loop_in_which_a_stream_was_left() -> None:
    engine = ScriptedEngine([Reply(answer="x" * 4, step_seconds=_STEP_SECONDS)])
    prompt = tuple(engine.tokenizer.encode("go"))

    async def read(seconds: float) -> int:
        async with asyncio.timeout(seconds):
            return len([one async for one in engine.stream(EngineRequest("1", prompt, 4, 0, Sampling()))])

    with pytest.raises(TimeoutError):
        asyncio.run(read(_STEP_SECONDS / 10))
    assert asyncio.run(read(60)) == 4


def message(role: Role, content: str = "", **parts: Any) -> Message:
    return Message(role, content, **parts)


CALL = ToolCall("c1", "look", '{"city": "Zürich", "n": 12345678901234567890, "deep": {"a": true}}')
LOOP = (
    message(Role.USER, "find it"),
    message(Role.ASSISTANT, "I look.", thought="Look it up.", tool_calls=(CALL,)),
    message(Role.TOOL, tool_results=(ToolResult("c1", "</think> 20 degrees"),)),
)


def text_of(ids: Sequence[int]) -> str:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|continue|>")
    return b"".join(bytes([i]) if i < 256 else names[i - 256].encode() for i in ids).decode()


def test_a_tool_loop_is_written_in_qwens_layout() -> None:
    tool = Tool("look", "Looks.", '{"type": "object"}')
    prompt = text_of(ByteTokenizer().render(LOOP, thinking=True, tools=[tool]))
    assert prompt == (
        '<|im_start|>system\n<tools>\n{"name": "look", "description": "Looks.", "parameters": {"type": "object"}}\n'
        "</tools><|im_end|>\n<|im_start|>user\nfind it<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nLook it up.\n</think>\n\nI look.\n\n<tool_call>\n<function=look>\n"
        "<parameter=city>\nZürich\n</parameter>\n<parameter=n>\n12345678901234567890\n</parameter>\n"
        '<parameter=deep>\n{"a": true}\n</parameter>\n</function>\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n</think> 20 degrees\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("history", ThoughtHistory)
def test_a_prompt_has_the_thoughts_of_its_history(history: ThoughtHistory) -> None:
    talk = (message(Role.USER, "a"), message(Role.ASSISTANT, "b", thought="old"), *LOOP)
    prompt = text_of(ByteTokenizer().render(talk, thinking=False, history=history))
    assert ("old" in prompt) == (history is ThoughtHistory.ALL_TURNS)
    assert ("Look it up." in prompt) == (history is not ThoughtHistory.NONE)


WITHOUT_THOUGHT = (LOOP[0], message(Role.ASSISTANT, tool_calls=(CALL,)), LOOP[2])
CONTINUED = {
    "after a tool loop": (LOOP, True, "a thought", "an answer"),
    "after a turn without thought": (WITHOUT_THOUGHT, True, "a thought", "an answer"),
    "an answer": ((*LOOP, message(Role.ASSISTANT, "Begun: ")), False, "", "an answer"),
    "an answer after its thought": ((*LOOP, message(Role.ASSISTANT, "Begun: ", thought="t")), False, "", "an answer"),
    "a thought": ((*LOOP, message(Role.ASSISTANT, thought="Begun: ")), True, "a thought", "an answer"),
    "nothing": ((*LOOP, message(Role.ASSISTANT)), True, "a thought", "an answer"),
}  # fmt: skip


@pytest.mark.parametrize(("talk", "thinking", "thought", "answer"), CONTINUED.values(), ids=CONTINUED)
async def test_a_run_and_its_continuations_replay_the_reply_after_the_prompt(
    talk: tuple[Message, ...], thinking: bool, thought: str, answer: str
) -> None:
    replies = [Reply(match="find it", thought="a thought", answer="an answer")]
    prompt = tuple(ByteTokenizer().render(talk, thinking=thinking))
    whole = f"{thought}</think>{answer}<|im_end|>" if thinking else f"{answer}<|im_end|>"
    played: tuple[int, ...] = ()
    while not text_of(played).endswith("<|im_end|>"):
        # A new engine each time: nothing is remembered of the runs before.
        run = EngineRequest("x-0", (*prompt, *played), 4, 0, Sampling())
        async for chunk in ScriptedEngine(replies).stream(run):
            played += chunk.token_ids
    assert text_of(played) == whole


def test_what_cannot_be_continued_is_refused() -> None:
    with pytest.raises(BadRequest):
        ByteTokenizer().render(LOOP[:2], thinking=False)
    with pytest.raises(BadRequest):
        ByteTokenizer().render([LOOP[0], message(Role.ASSISTANT, "begun")], thinking=True)
