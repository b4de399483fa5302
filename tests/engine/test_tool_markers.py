"""Markers of tool calls that are one token, as in Qwen's vocabularies, on the real engine with a thought.

The demo checkpoint's vocabulary may lack the tokens: a copy of it gives them the ids of two others.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, Config, EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.sampling import thought_tokens_in_prompt
from penstock.engine.vllm.start import start
from penstock.errors import ConstraintLost
from penstock.generation.candidate import Candidate
from penstock.generation.control import GenerationRun
from penstock.generation.planner import plan_generation
from penstock.types import (
    CandidateEnd,
    Delta,
    EngineChunk,
    EngineRequest,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    Sampling,
    StructuredKind,
    StructuredOutput,
    ThinkingConfig,
    ThinkingMode,
    ThinkingOutcome,
    Tool,
    ToolCallFinished,
    ToolCallStatus,
    ToolConfig,
    ToolMode,
)

MARKERS = ("<tool_call>", "</tool_call>")
THOUGHT_TOKENS = 4
TOOL = Tool("f", "", json.dumps({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}))


def with_markers(folder: Path) -> Path:
    """A copy of the demo checkpoint in whose vocabulary the markers of tool calls are tokens."""
    shutil.copytree(DEMO_MODEL_DIR, folder)
    place = folder / "tokenizer.json"
    tokenizer = json.loads(place.read_text())
    known = {token["content"] for token in tokenizer["added_tokens"]}
    model = tokenizer["model"]
    for marker in MARKERS:
        if marker in known:
            continue
        merge = model["merges"].pop()
        token_id = model["vocab"].pop("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""))
        options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"].append({"id": token_id, "content": marker, **options})
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    place.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
async def marked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    folder = with_markers(tmp_path_factory.mktemp("marked") / "model")
    engine = await start(EngineSettings(model=str(folder), max_batch_tokens=512))
    yield engine
    await engine.close()


class Allowing:
    """The engine, which writes `<tool_call>` and ends alone in runs that begin in a thought."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        allowed = {*engine.tokenizer.encode("<tool_call>"), *engine.card.eos_ids}
        self._banned = tuple(sorted(set(range(engine.card.vocab_size)) - allowed))
        self.requests: list[EngineRequest] = []
        self.lost_constraints = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        markers = self._engine.card.markers
        assert markers is not None
        if thought_tokens_in_prompt(request.prompt_token_ids, markers) is not None:
            # Below the minimum the end is not drawn either.
            request = replace(request, banned_token_ids=self._banned, min_tokens=THOUGHT_TOKENS + 1)
        try:
            async for chunk in self._engine.stream(request):
                yield chunk
        except ConstraintLost:
            self.lost_constraints += 1
            raise


async def events_of(engine: Any, **fields: Any) -> list[Any]:
    request = Request(
        messages=(Message(Role.USER, "What is 17 + 25?"),),
        thinking=ThinkingConfig(ThinkingMode.THINKING, budget_tokens=THOUGHT_TOKENS),
        sampling=Sampling(temperature=0.0),
        **fields,
    )
    candidate = Candidate(engine, plan_generation(request, engine, Config()), 0, GenerationRun("g", 0.0))
    return [event async for event in candidate.events()]


def text_of(events: list[Any], *, is_thought: bool) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.is_thought is is_thought)


def test_the_markers_are_tokens_with_text(tmp_path: Path) -> None:
    from penstock.engine.tokenizer import HfTokenizer
    from transformers import AutoTokenizer

    tokenizer = HfTokenizer(AutoTokenizer.from_pretrained(str(with_markers(tmp_path / "model"))), 512)
    for marker in MARKERS:
        (token_id,) = tokenizer.encode(marker)
        assert tokenizer.token_bytes(token_id) == marker.encode()


async def test_a_constraint_holds_behind_a_thought_about_calls(marked: Engine) -> None:
    engine = Allowing(marked)
    structured = StructuredOutput(StructuredKind.REGEX, "(<tool_call>){3}1?")
    events = await events_of(engine, output=Output(max_tokens=60, structured=structured))
    assert text_of(events, is_thought=True) == "<tool_call>" * THOUGHT_TOKENS
    assert re.fullmatch("(<tool_call>){3}1?", text_of(events, is_thought=False))
    end = events[-1]
    assert isinstance(end, CandidateEnd)
    assert (end.finish_reason, end.outcome) == (FinishReason.STOP, ThinkingOutcome.BUDGET_REACHED)
    assert engine.lost_constraints == 0


async def test_a_call_in_a_thought_ends_it_and_is_held_by_the_grammar(marked: Engine) -> None:
    engine = Allowing(marked)
    tools = ToolConfig((TOOL,), ToolMode.REQUIRED, max_calls=1)
    events = await events_of(engine, tools=tools, output=Output(max_tokens=300))
    end = events[-1]
    assert isinstance(end, CandidateEnd)
    assert (end.finish_reason, end.outcome) == (FinishReason.TOOL_CALLS, ThinkingOutcome.NATURAL_END)
    assert text_of(events, is_thought=True) == text_of(events, is_thought=False) == ""
    (finished,) = [event for event in events if isinstance(event, ToolCallFinished)]
    assert finished.call.status is ToolCallStatus.COMPLETE
    assert json.loads(finished.call.arguments_json)["a"] in ("x", "y")
    assert (len(engine.requests), engine.lost_constraints) == (2, 0)


async def test_a_call_in_a_thought_stops_at_its_token(marked: Engine) -> None:
    engine = Allowing(marked)
    (call_id,) = marked.tokenizer.encode("<tool_call>")
    output = Output(max_tokens=300, stop_token_ids=(call_id,))
    events = await events_of(engine, tools=ToolConfig((TOOL,)), output=output)
    end = events[-1]
    assert isinstance(end, CandidateEnd)
    assert (end.finish_reason, end.usage.tool_tokens, end.usage.answer_tokens) == (FinishReason.STOP_TOKEN, 0, 1)
    assert len(engine.requests) == 1
