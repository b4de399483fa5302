"""One candidate over an engine that may say anything: stops, minimum, window and characters hold whatever it says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.candidate import Candidate, Steering
from penstock.config import Config
from penstock.engine_scripted import Reply, ScriptedEngine
from penstock.planning import Plan, plan_generation
from penstock.types import (
    CandidateEnd,
    Delta,
    EngineRequest,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    ThinkingConfig,
    ThinkingMode,
    ThoughtEnded,
)

EOS, OPEN, CLOSE = 258, 259, 260


@dataclass
class Said:
    """What a candidate told, put together again."""

    thought: str = ""
    answer: str = ""
    thought_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    ended: ThoughtEnded | None = None
    end: CandidateEnd | None = None


async def say(engine: ScriptedEngine, plan: Plan, steering: Steering | None = None) -> Said:
    said = Said()
    async for event in Candidate(engine, plan, "test", 0, steering or Steering()).events():
        if isinstance(event, Delta) and event.is_thought:
            said.thought += event.text
            said.thought_ids += event.token_ids
        elif isinstance(event, Delta):
            said.answer += event.text
            said.answer_ids += event.token_ids
        elif isinstance(event, ThoughtEnded):
            said.ended = event
        else:
            said.end = event
    return said


def ask(
    engine: ScriptedEngine, mode: ThinkingMode = ThinkingMode.THINKING, budget: int | None = None, **output: object
) -> Plan:
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=ThinkingConfig(mode, budget_tokens=budget),
        output=Output(**output),  # type: ignore[arg-type]
    )
    return plan_generation(request, engine, Config(), None)


class Watched(ScriptedEngine):
    """Notes what was asked of it."""

    def __init__(self, replies: Sequence[Reply], **fields: int) -> None:
        super().__init__(replies, **fields)
        self.asked: list[EngineRequest] = []

    async def stream(self, request: EngineRequest) -> AsyncGenerator[object, None]:  # type: ignore[override]
        self.asked.append(request)
        async for chunk in super().stream(request):
            yield chunk


TEXT = st.text("ab\n", min_size=1, max_size=12)


@settings(max_examples=200)
@given(
    TEXT,
    TEXT,
    st.sets(st.sampled_from([*b"ab\n", EOS, OPEN, CLOSE])),
    st.integers(1, 12),
    st.none() | st.integers(1, 14),
)
async def test_stop_token_ids_end_the_answer_and_leave_the_thought_as_it_is(
    thought: str, answer: str, stops: set[int], step: int, budget: int | None
) -> None:
    engine = Watched([Reply(thought=thought, answer=answer, chunk_tokens=step)])
    plain = await say(engine, ask(engine, budget=budget))
    stopped = await say(engine, ask(engine, budget=budget, stop_token_ids=tuple(stops)))
    assert plain.end is not None
    assert stopped.end is not None
    assert (stopped.thought_ids, stopped.ended) == (plain.thought_ids, plain.ended)
    at = next((n for n, token_id in enumerate(plain.answer_ids) if token_id in stops), None)
    expected = plain.answer_ids if at is None else plain.answer_ids[: at + 1]
    assert stopped.answer_ids == expected
    assert stopped.end.usage.answer_tokens == len(expected)
    ends_with_eos = expected[-1] == EOS
    assert stopped.end.finish_reason is (FinishReason.STOP if ends_with_eos else FinishReason.STOP_TOKEN)
    assert not any(request.stop_token_ids for request in engine.asked if request.prompt_token_ids[-2:] == (OPEN, 10))


async def test_a_marker_that_is_a_stop_token_ends_the_answer() -> None:
    engine = ScriptedEngine([Reply(thought="a", answer="one</think>two")])
    said = await say(engine, ask(engine, stop_token_ids=(CLOSE,)))
    assert said.end is not None
    assert (said.thought, said.answer, said.end.finish_reason) == ("a", "one", FinishReason.STOP_TOKEN)
