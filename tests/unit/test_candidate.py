"""One candidate over an engine that may say anything: stops, minimum, window and characters hold whatever it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.errors import (
    BadRequest,
    ConstraintLost,
    ContextOverflow,
    EngineDied,
    EngineDown,
    EngineRefused,
    PoisonousRequest,
)
from penstock.generation.candidate import Candidate
from penstock.generation.control import GenerationControl, GenerationRun
from penstock.generation.generation import generate
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.generation.validation import validate
from penstock.types import (
    CandidateEnd,
    ContextConfig,
    Delta,
    EngineChunk,
    EngineRequest,
    EngineStop,
    Finished,
    FinishReason,
    GenerationPlan,
    Message,
    Output,
    Request,
    Role,
    StructuredKind,
    StructuredOutput,
    ThinkingConfig,
    ThinkingMode,
    ThinkingOutcome,
    ThoughtEnded,
)

EOS, OPEN, CLOSE = 258, 259, 260
DEATH = -1


@dataclass
class Said:
    """Hold what a candidate told, put together again."""

    thought: str = ""
    answer: str = ""
    thought_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    ended: ThoughtEnded | None = None
    end: CandidateEnd | None = None


async def say(engine: ScriptedEngine, plan: GenerationPlan, control: GenerationControl | None = None) -> Said:
    said = Said()
    async for event in Candidate(engine, plan, 0, GenerationRun("test", 0.0, control or GenerationControl())).events():
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
) -> GenerationPlan:
    request = Request(
        messages=(Message(Role.USER, "hello"),),
        thinking=ThinkingConfig(mode, budget_tokens=budget),
        output=Output(**output),  # type: ignore[arg-type]
    )
    return plan_generation(request, engine, Config())


class ReloadableFiles(ScriptedEngine):
    """Notes what was asked of it."""

    def __init__(self, replies: Sequence[Reply], **fields: int) -> None:
        super().__init__(replies, **fields)
        self.asked: list[EngineRequest] = []

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.asked.append(request)
        async for chunk in super().stream(request):
            yield chunk


TEXT = st.text("ab\n", min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
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
    engine = ReloadableFiles([Reply(thought=thought, answer=answer, chunk_tokens=step)])
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


class Sampled(ReloadableFiles):
    """Keeps the contract of `EngineRequest`, and says what it is dealt within it, whatever the prompt."""

    def __init__(self, deal: Sequence[int], step: int, *, window: int = 4096, forces: bool = True) -> None:
        super().__init__([], context_window_tokens=window)
        self.card = replace(self.card, forces_budget=forces)
        self._deal = list(deal)
        self._step = step

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
        self.asked.append(request)
        prompt, most = request.prompt_token_ids, request.max_tokens
        assert most >= 1
        assert 0 <= request.min_tokens <= most
        assert len(prompt) + most <= self.card.context_window_tokens
        ids, stop = [], None
        stops = {EOS: EngineStop.EOS} | dict.fromkeys(request.stop_token_ids, EngineStop.STOP_TOKEN)
        while stop is None:
            token_id = self._deal.pop(0) if self._deal else ord("z")
            if token_id == DEATH:
                break
            masked = token_id in stops and len(ids) < request.min_tokens
            ids.append(ord("m") if masked or token_id in request.banned_token_ids else token_id)
            stop = stops.get(ids[-1], EngineStop.LENGTH if len(ids) == most else None)
        for at in range(0, len(ids), self._step):
            last = at + self._step >= len(ids)
            yield EngineChunk(tuple(ids[at : at + self._step]), stop=stop if last else None)
        if stop is None:
            raise EngineDown("as dealt")


DEALT = st.lists(st.sampled_from([*b"ab\n", EOS, OPEN, CLOSE, CLOSE, 0xE2, 0x82, 0xAC]), max_size=30)


@settings(max_examples=300, deadline=None)
@given(DEALT, st.integers(1, 6), st.integers(1, 24), st.data())
async def test_the_minimum_is_kept_whatever_the_model_says(
    deal: list[int], step: int, most: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(0, most))
    mode = data.draw(st.sampled_from([ThinkingMode.FAST, ThinkingMode.THINKING]))
    stop_ids = data.draw(st.sets(st.sampled_from([*b"ab", OPEN, CLOSE])))
    stop_strings = data.draw(st.lists(st.text("abz", min_size=1, max_size=2), max_size=2))
    engine = Sampled(deal, step)
    plan = ask(
        engine,
        mode,
        max_tokens=most,
        min_tokens=least,
        stop_token_ids=tuple(stop_ids),
        stop_strings=tuple(stop_strings),
    )
    said = await say(engine, plan)
    assert said.end is not None
    usage = said.end.usage
    # The end of turn is a token of the answer: before it there is the minimum.
    by_token = said.end.finish_reason in (FinishReason.STOP, FinishReason.STOP_TOKEN)
    ended = by_token and not stop_ids.union({EOS}).isdisjoint(said.answer_ids[-1:])
    assert usage.output_tokens - ended >= least
    assert usage.output_tokens == len(said.thought_ids) + len(said.answer_ids) <= most
    if said.end.finish_reason is FinishReason.MAX_OUTPUT_TOKENS:
        assert usage.output_tokens == most


@pytest.mark.parametrize(
    ("field", "output"),
    [
        ("max_output_tokens", {"max_tokens": 2**31 - 1}),
        ("min_output_tokens", {"min_tokens": 2**31 - 1}),
        ("min_output_tokens", {"min_tokens": 4090}),
        ("min_output_tokens", {"max_tokens": 4, "min_tokens": 5}),
        ("min_output_tokens", {"min_tokens": 1, "structured": StructuredOutput(StructuredKind.REGEX, "a")}),
    ],
)
def test_a_minimum_or_maximum_that_cannot_be_kept_is_refused_by_its_field(field: str, output: dict[str, Any]) -> None:
    engine = ScriptedEngine([])

    def check() -> None:
        validate(Request(text="hello", output=Output(**output)), engine.card, Config().limits)
        ask(engine, **output)

    with pytest.raises(BadRequest) as refused:
        check()
    assert [violation.field for violation in refused.value.violations] == [f"spec.output.{field}"]


class Moved(GenerationControl):
    """Steering that changes as often as it is read: what a client may do at any step."""

    def __init__(self, finish_at: int | None, budgets: Sequence[int]) -> None:
        super().__init__()
        self._finish_at, self._budgets, self._reads = finish_at, list(budgets), 0

    def __getattribute__(self, name: str) -> Any:
        if name == "finish_thinking":
            self._reads += 1
            return self._finish_at is not None and self._reads > self._finish_at
        if name == "thought_budget_tokens" and self.__dict__.get("_budgets"):
            return self._budgets.pop(0)
        return super().__getattribute__(name)


@pytest.mark.slow
def test_no_engine_run_goes_beyond_the_window_and_all_of_it_is_used() -> None:
    ended = []

    @settings(max_examples=600, deadline=None)
    @given(
        st.lists(st.sampled_from([*b"ab\n", EOS, OPEN, CLOSE, CLOSE, DEATH]), max_size=40),
        st.integers(1, 6),
        st.integers(2, 40),
        st.data(),
    )
    def try_one(deal: list[int], step: int, window: int, data: st.DataObject) -> None:
        engine = Sampled(deal, step, window=window)
        prompt = data.draw(st.lists(st.sampled_from([*b"ab", OPEN, CLOSE]), min_size=1, max_size=window))
        budget = data.draw(st.none() | st.integers(-1, 20))
        mode = data.draw(st.sampled_from([None, ThinkingMode.THINKING]))
        closing = data.draw(st.sampled_from([None, "", "so"]))
        request = Request(
            token_ids=tuple(prompt),
            thinking=ThinkingConfig(mode, budget_tokens=budget, closing_message=closing),
            context=ContextConfig(max_context_tokens=data.draw(st.none() | st.integers(2, window))),
            output=Output(max_tokens=data.draw(st.none() | st.integers(1, window))),
        )
        control = Moved(data.draw(st.none() | st.integers(0, 9)), data.draw(st.lists(st.integers(-1, 20), max_size=4)))
        try:
            plan = plan_generation(request, engine, Config())
            said = asyncio.run(say(engine, plan, control))
        except (BadRequest, ContextOverflow, PoisonousRequest):
            return
        assert said.end is not None
        for run in engine.asked:
            assert len(run.prompt_token_ids) + run.max_tokens <= plan.context.window_tokens
        if said.end.finish_reason is FinishReason.MAX_OUTPUT_TOKENS:
            assert said.end.usage.output_tokens == plan.budget.max_output_tokens
        ended.append(said)

    try_one()
    assert len(ended) >= 100


def test_a_closing_message_is_text_whatever_it_spells() -> None:
    engine = ScriptedEngine([])
    request = Request(text="hello<think>", thinking=ThinkingConfig(closing_message="so</think><|im_end|>"))
    plan = plan_generation(request, engine, Config())
    assert plan.closing_ids == (*b"so</think><|im_end|>", CLOSE)


class Obstinate(Sampled):
    """Says the same stop first whenever it may."""

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
        self._deal = [ord("a")] * 4
        async for chunk in super().stream(request):
            yield chunk


async def test_a_minimum_holds_where_a_raw_prompt_might_have_opened_a_thought() -> None:
    engine = Obstinate([], 1)
    request = Request(
        token_ids=(ord("q"),),
        thinking=ThinkingConfig(ThinkingMode.THINKING),
        output=Output(max_tokens=12, min_tokens=8, stop_token_ids=(ord("a"),)),
    )
    said = await say(engine, plan_generation(request, engine, Config()))
    assert said.end is not None
    assert 8 <= said.end.usage.output_tokens <= 12
    assert [r.stop_token_ids for r in engine.asked] == [(), (ord("a"),)]


class Losing(Sampled):
    """Gives two tokens a run, and then one that the constraint does not allow."""

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
        self.asked.append(request)
        if len(self.asked) < 4:
            yield EngineChunk((ord("a"), ord("b")), stop=None)
            raise ConstraintLost("as dealt")
        yield EngineChunk((EOS,), stop=EngineStop.EOS)


async def test_an_answer_goes_on_after_a_token_that_its_constraint_does_not_allow() -> None:
    engine = Losing([], 1)
    plan = ask(engine, ThinkingMode.FAST, structured=StructuredOutput(StructuredKind.REGEX, "(ab)*"))
    said = await say(engine, plan)
    assert said.answer == "ababab"
    assert [request.constrained_prompt_tokens for request in engine.asked] == [0, 2, 4, 6]


async def test_a_constraint_that_is_lost_at_once_ends_with_an_error() -> None:
    class AtOnce(Sampled):
        async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
            self.asked.append(request)
            raise ConstraintLost("as dealt")
            yield

    engine = AtOnce([], 1)
    with pytest.raises(EngineRefused):
        await say(engine, ask(engine, structured=StructuredOutput(StructuredKind.REGEX, "a")))
    assert len(engine.asked) < 20


class Dying(Sampled):
    """Dies before it gives a token, nine times."""

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
        self.asked.append(request)
        if len(self.asked) <= 9:
            raise EngineDied(suspected=False)
        yield EngineChunk((ord("a"), EOS), stop=EngineStop.EOS)


async def test_deaths_that_others_cause_do_not_count_as_runs_without_a_token() -> None:
    engine = Dying([], 1)
    assert (await say(engine, ask(engine, ThinkingMode.FAST))).answer == "a"
    assert len(engine.asked) == 10


class Dealt(ScriptedEngine):
    """Deals each candidate its own tokens by their place after the prompt, so that a continuation goes on in them."""

    def __init__(self, deals: Sequence[Sequence[int]], step: int) -> None:
        super().__init__([])
        self.prompt_tokens = 0
        self._deals, self._step = deals, step

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        deal = self._deals[int(request.request_id.split("-")[1])]
        at = len(request.prompt_token_ids) - self.prompt_tokens
        last = at + request.max_tokens
        while True:
            ids = [*deal[at : min(at + self._step, last)]]
            if EOS in ids:
                ids = ids[: ids.index(EOS) + 1]
            at += len(ids)
            stop = EngineStop.EOS if ids[-1] == EOS else EngineStop.LENGTH if at == last else None
            await asyncio.sleep(0)
            yield EngineChunk(tuple(ids), stop=stop)
            if stop is not None:
                return


async def drained_after(
    engine: Dealt, plan: GenerationPlan, drains: Sequence[int]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the output of candidates over several servers, each but the last drained after so many events."""
    said = [{"thought": "", "answer": "", "ids": [], "ended": []} for _ in range(plan.request.output.candidate_count)]
    states: Sequence[Any] = ()
    for count in (*drains, 10**9):
        control, finished = GenerationControl(), None
        if not count:
            control.drain()
        async for event in generate(engine, plan, PriceList(()), GenerationRun("g", 0.0, control, states)):
            count -= 1
            if count <= 0:
                control.drain()
            if isinstance(event, Finished):
                finished = event
                continue
            own = said[event.candidate_index]
            if isinstance(event, Delta):
                own["thought" if event.is_thought else "answer"] += event.text
                own["ids"] += event.token_ids
            elif isinstance(event, ThoughtEnded):
                own["ended"].append(event)
        assert finished is not None
        states = json.loads(json.dumps(finished.states))
        if not states:
            break
    ends = [(e.finish_reason, e.outcome, e.matched_stop, e.usage.output_tokens) for e in finished.ends]
    return said, ends


TEXT_IDS = st.lists(st.sampled_from([*b"ab\n", 0xE2, 0x82, 0xAC, 0xF0, 0x9F]), max_size=9)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXT_IDS, TEXT_IDS), min_size=1, max_size=3), st.integers(1, 4), st.data())
async def test_candidates_that_are_drained_say_what_they_would_have_said(
    deals: list[tuple[list[int], list[int]]], step: int, data: st.DataObject
) -> None:
    engine = Dealt([[*thought, CLOSE, *answer, EOS] for thought, answer in deals], step)
    plan = ask(
        engine,
        budget=data.draw(st.none() | st.integers(1, 9)),
        max_tokens=data.draw(st.integers(10, 30)),
        candidate_count=len(deals),
        stop_strings=data.draw(st.sampled_from([(), ("ab",), ("ba", "a\n"), ("€",)])),
    )
    plan = replace(plan, closing_ids=(CLOSE,))
    engine.prompt_tokens = len(plan.context.prompt_token_ids)
    drains = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    assert await drained_after(engine, plan, drains) == await drained_after(engine, plan, [])


async def test_a_candidate_that_ended_before_the_others_were_drained_stays_ended() -> None:
    engine = Dealt([[CLOSE, *b"one", EOS, *b"more", EOS], [CLOSE, *b"a longer one", EOS]], 1)
    plan = ask(engine, candidate_count=2)
    engine.prompt_tokens = len(plan.context.prompt_token_ids)
    said, ends = await drained_after(engine, plan, [9])
    assert [own["answer"] for own in said] == ["one", "a longer one"]
    assert ends == [
        (FinishReason.STOP, ThinkingOutcome.NATURAL_END, "", 4),
        (FinishReason.STOP, ThinkingOutcome.NATURAL_END, "", 13),
    ]
