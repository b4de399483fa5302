"""Calls with images and tool loops: what is drawn, what is sent, and how it is read from a trace; no service."""

from __future__ import annotations

import io
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from penstock_bench.load import trace
from penstock_bench.load.arrivals import ScheduledCall
from penstock_bench.load.pictures import png
from penstock_bench.load.prompts import _WORDS, Prompts
from penstock_bench.load.run import LoadOptions, Run
from penstock_bench.load.workload import Lengths, Pictures, Thinking, ToolLoop, Work, Workload, options_of
from penstock_client import ImagePart, Message, ToolCall, ToolCallStatus
from PIL import Image


@pytest.mark.parametrize(("width", "height"), [(1, 1), (33, 7), (1024, 768)])
def test_pictures_have_their_size_and_differ(width: int, height: int) -> None:
    rng = random.Random(1)
    first, second = png(width, height, rng), png(width, height, rng)
    read = Image.open(io.BytesIO(first))
    read.verify()
    assert (read.format, read.size) == ("PNG", (width, height))
    shown = [Image.open(io.BytesIO(one)).convert("RGB").tobytes() for one in (first, second)]
    assert shown[0] != shown[1]
    assert len(first) < 200 + width * height / 8


def test_a_picture_costs_a_thousandth_of_its_pixels() -> None:
    assert len(png(4096, 4096, random.Random(1))) < 4096 * 4096 / 1000


def test_images_and_tool_calls_are_drawn() -> None:
    rng = random.Random(3)
    workload = Workload(
        Lengths.parse("10"),
        None,
        Thinking.parse("fast"),
        pictures=Pictures(Lengths.parse("0,2", 0), 64, 32),
        tool_loop=ToolLoop(Lengths.parse("1-3", 0), Lengths.parse("20")),
    )
    drawn = [workload.draw(rng) for _ in range(50)]
    assert {work.images for work in drawn} == {0, 2}
    assert {work.tool_calls for work in drawn} == {1, 2, 3}
    assert all(work.calls == 1 + work.tool_calls for work in drawn)


def test_images_come_before_the_text_and_no_two_are_the_same() -> None:
    prompts = Prompts(dict.fromkeys(_WORDS, 1.0), 5.0, 2.0)
    work = Work(50, images=2, image_width=16, image_height=16, prefix="p", prefix_tokens=10)
    system, user = prompts.messages(work, random.Random(1))
    assert isinstance(system, tuple)
    assert isinstance(user, Message)
    first, second, _ = user.parts
    assert isinstance(first, ImagePart)
    assert isinstance(second, ImagePart)
    assert first.data != second.data
    assert user.text


def test_a_tool_call_is_required_until_it_is_time_to_answer() -> None:
    work = Work(10, output_tokens=8, tool_calls=2)
    first, second, last = [options_of(work, turn, exact=True, temperature=None) for turn in range(3)]
    assert first["tool_mode"] == second["tool_mode"] == "required"
    assert first["max_output_tokens"] is None
    assert last["tool_mode"] == "none"
    assert (last["max_output_tokens"], last["min_output_tokens"]) == (8, 8)
    assert first["tools"] == last["tools"]
    assert "tools" not in options_of(Work(10), exact=True, temperature=None)


class Script:
    """A client whose streams end at once with the replies of a script, and that keeps what it was asked."""

    def __init__(self, *replies: Any) -> None:
        self.asked: list[tuple[list[Any], dict[str, Any]]] = []
        self._replies = list(replies)

    def stream(self, messages: list[Any], **options: Any) -> Any:
        self.asked.append((messages, options))
        return Ended(self._replies[len(self.asked) - 1])


class Ended:
    def __init__(self, response: Any) -> None:
        self.response = response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in ():
            yield event


def reply(*calls: ToolCall, answer: str = "") -> Any:
    told = SimpleNamespace(reasoning_tokens=0, answer_tokens=1, tool_calls=calls)
    return SimpleNamespace(
        candidate=lambda index: told, tool_calls=calls, answer=answer, thought="", thinking_outcome=None,
        effective_settings=None, usage=None, timing=None, cost=None,
    )  # fmt: skip


async def played(work: Work, *replies: Any) -> tuple[Script, Run]:
    """Play one conversation."""
    script = Script(*replies)
    run = Run([script], Prompts(dict.fromkeys(_WORDS, 1.0), 5.0, 2.0), LoadOptions(seconds=60.0, warm_up_seconds=0.0))  # type: ignore[list-item]
    await run._conversation(work, 0.0, [("user", "What is a mill?")])
    return script, run


WHOLE = ToolCall("1", "look_up", '{"query": "mill"}')


async def test_a_tool_loop_sends_each_result_and_then_hears_the_answer() -> None:
    work = Work(10, output_tokens=8, turns=2, turn_tokens=5, tool_calls=2, tool_result_tokens=40)
    script, run = await played(work, reply(WHOLE), reply(WHOLE), reply(answer="It grinds."), reply(answer="Yes."))
    assert [options["tool_mode"] for _, options in script.asked] == ["required", "required", "none", "none"]
    last, _ = script.asked[-1]
    assert [_role(message) for message in last] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant", "user"
    ]  # fmt: skip
    (result,) = last[2].parts
    assert result.call_id == "1"
    assert len(result.content.split()) == pytest.approx(40, abs=2)
    assert last[5] == ("assistant", "It grinds.")
    assert [record.turn for record in run.records] == [0, 1, 2, 3]
    assert [record.tool_calls for record in run.records] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "first", [reply(answer="No."), reply(ToolCall("1", "look_up", "{", ToolCallStatus.INCOMPLETE))]
)
async def test_a_tool_loop_ends_without_a_whole_call(first: Any) -> None:
    script, _ = await played(Work(10, tool_calls=3), first)
    assert len(script.asked) == 1


def _role(message: Any) -> str:
    return message[0] if isinstance(message, tuple) else message.role


def test_a_trace_keeps_images_and_tool_calls(tmp_path: Path) -> None:
    work = Work(10, images=1, image_width=64, image_height=48, tool_calls=2, tool_result_tokens=30)
    file = tmp_path / "trace.jsonl"
    trace.write(file, [ScheduledCall(0.5, work)])
    assert trace.read(file) == [ScheduledCall(0.5, work)]
    file.write_text('{"at_seconds": 0, "prompt_tokens": 5, "images": 1}\n')
    with pytest.raises(ValueError, match="images needs image_width and image_height"):
        trace.read(file)
