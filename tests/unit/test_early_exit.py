"""Early exit: signs end a thought, budgets stay exact beside probes, and probes stay within their own bounds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.config.schema import Config
from penstock.engine.base import EngineLoad
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.errors import EngineDied, EngineRefused, FeatureOff, PenstockError
from penstock.generation.candidate import Candidate
from penstock.generation.control import GenerationControl, GenerationRun
from penstock.generation.early_exit import ProbeConditions, ThoughtLengths, logprobs_needed
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.types import (
    CandidateEnd,
    Delta,
    EarlyExit,
    EngineChunk,
    EngineRequest,
    EngineStop,
    GenerationPlan,
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
    ThoughtEnded,
    TokenLogprob,
    TokenLogprobs,
    Tool,
    ToolConfig,
    ToolMode,
    Usage,
)

LINE = "some work\n"
SETTINGS = {"early_exit_interval_tokens": 10, "early_exit_answer_tokens": 8, "early_exit_share": 8.0}


class Recording(ScriptedEngine):
    """Keeps probes apart from the runs of the thought, and lets a test change what becomes of them."""

    def __init__(self, reply: Reply, *, on_probe: Callable[[int], object] = lambda number: None) -> None:
        super().__init__([reply])
        self.probes: list[EngineRequest] = []
        self.runs = 0
        self.running_probes = 0
        self.waiting_requests = 0
        self._on_probe = on_probe

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        if "-probe" not in request.request_id:
            self.runs += 1
            async for chunk in super().stream(request):
                yield chunk
            return
        self.probes.append(request)
        self.running_probes += 1
        try:
            result = self._on_probe(len(self.probes))
            if isinstance(result, PenstockError):
                raise result
            if isinstance(result, asyncio.Event):
                await result.wait()
            async for chunk in super().stream(request):
                yield replace_ids(chunk, result) if isinstance(result, int) else chunk
        finally:
            self.running_probes -= 1

    def load(self) -> EngineLoad:
        return EngineLoad(1, self.waiting_requests, 0.0, None, None)


def replace_ids(chunk: EngineChunk, number: int) -> EngineChunk:
    """The same chunk with other tokens: a probe that reads another answer."""
    return EngineChunk(tuple(ord("0") + number % 10 for _ in chunk.token_ids), chunk.logprobs, stop=chunk.stop)


def plan_of(engine: ScriptedEngine, sign: EarlyExit | None = EarlyExit.PROBE, **change: object) -> GenerationPlan:
    thinking = ThinkingConfig(ThinkingMode.THINKING, budget_tokens=change.pop("budget", None), early_exit=sign)  # type: ignore[arg-type]
    request = Request(messages=(Message(Role.USER, "hello"),), thinking=replace(thinking, **change.pop("thinking", {})))  # type: ignore[arg-type]
    config = Config.model_validate({"thinking": SETTINGS | change.pop("settings", {})})  # type: ignore[operator]
    return plan_generation(replace(request, **change), engine, config)  # type: ignore[arg-type]


async def said(
    engine: ScriptedEngine,
    plan: GenerationPlan,
    conditions: ProbeConditions | None = None,
    control: GenerationControl | None = None,
) -> tuple[str, str, ThoughtEnded | None, CandidateEnd]:
    run = GenerationRun("t", 0.0, control or GenerationControl(), conditions=conditions or ProbeConditions())
    thought = answer = ""
    ended = end = None
    async for event in Candidate(engine, plan, 0, run).events():
        match event:
            case Delta(is_thought=True):
                thought += event.text
            case Delta():
                answer += event.text
            case ThoughtEnded():
                ended = event
            case CandidateEnd():
                end = event
    assert end is not None
    return thought, answer, ended, end


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_certain_answer_ends_the_thought_where_it_was_probed(temperature: float) -> None:
    engine = Recording(Reply(thought=LINE * 9, answer="done"))
    plan = plan_of(engine, sampling=Sampling(temperature=temperature))
    thought, answer, ended, end = await said(engine, plan)
    assert ended is not None
    assert ended.outcome is end.outcome is ThinkingOutcome.CONVERGED
    assert (thought, answer) == (LINE, "done")
    assert end.early_exit is not None
    assert end.early_exit.probes == len(engine.probes) == 1
    assert (end.usage.answer_tokens, end.usage.output_tokens) == (5, 5 + len(thought))
    prompt_tokens = len(engine.probes[0].prompt_token_ids)
    # The answer behind the closed thought is computed once more; what the engine thought on meanwhile is the server's.
    assert end.usage.recomputed_tokens == prompt_tokens
    forgotten = end.usage.probe_tokens - (0 if temperature == 0.0 else prompt_tokens + 5)
    assert 0 < forgotten < 20
    # A greedy probe goes on as the answer.
    assert engine.runs == (1 if temperature == 0.0 else 2)


@pytest.mark.parametrize("answer", ["d", "done", "a long answer, of far more letters than a probe reads"])
@pytest.mark.parametrize("most", [None, 22, 40])
async def test_a_probe_that_goes_on_as_the_answer_keeps_the_limits(answer: str, most: int | None) -> None:
    engine = Recording(Reply(thought=LINE * 9, answer=answer))
    output = Output(max_tokens=most, stop_strings=("far",), top_logprobs=1, return_token_ids=True)
    plan = plan_of(engine, sampling=Sampling(temperature=0.0), output=output, thinking={"answer_reserve_tokens": 1})
    thought, told, ended, end = await said(engine, plan)
    assert ended is not None
    assert (thought, ended.outcome, engine.runs) == (LINE, ThinkingOutcome.CONVERGED, 1)
    kept = answer.partition("far")[0]
    assert told == (kept if most is None else kept[: most - len(LINE)])
    assert most is None or end.usage.output_tokens <= most


async def test_an_uncertain_answer_does_not_and_the_share_bounds_the_probes() -> None:
    engine = Recording(Reply(thought=LINE * 30, answer="done", probability=0.5))
    for share in (0.0, 3.0, 8.0):
        engine.probes.clear()
        thought, _, _, end = await said(engine, plan_of(engine, settings={"early_exit_share": share}))
        assert thought == LINE * 30
        assert end.outcome is ThinkingOutcome.NATURAL_END
        assert end.usage.probe_tokens <= share * (end.usage.prompt_tokens + end.usage.thought_tokens)
        assert bool(engine.probes) == bool(share)


@pytest.mark.parametrize(("agreements", "converges"), [(0, False), (2, True), (3, True)])
async def test_the_same_answer_several_times_in_a_row_ends_the_thought(agreements: int, converges: bool) -> None:
    engine = Recording(Reply(thought=LINE * 60, answer="done", probability=0.5))
    plan = plan_of(engine, settings={"early_exit_agreements": agreements, "early_exit_share": 64.0})
    _, _, _, end = await said(engine, plan)
    assert (end.outcome is ThinkingOutcome.CONVERGED) is converges
    assert end.early_exit is not None
    assert not converges or end.early_exit.probes == agreements


async def test_answers_that_change_never_agree() -> None:
    engine = Recording(Reply(thought=LINE * 60, answer="done", probability=0.5), on_probe=lambda number: number)
    plan = plan_of(engine, settings={"early_exit_agreements": 2, "early_exit_share": 64.0})
    _, _, _, end = await said(engine, plan)
    assert len(engine.probes) > 3
    assert end.outcome is ThinkingOutcome.NATURAL_END


@pytest.mark.parametrize("failure", [EngineRefused("no"), EngineDied(suspected=True), EngineDied(suspected=False)])
async def test_a_probe_that_fails_changes_nothing_and_is_the_last(failure: PenstockError) -> None:
    engine, conditions = (
        Recording(Reply(thought=LINE * 20, answer="done"), on_probe=lambda _: failure),
        ProbeConditions(),
    )
    thought, answer, _, end = await said(engine, plan_of(engine), conditions)
    assert (thought, answer, end.outcome) == (LINE * 20, "done", ThinkingOutcome.NATURAL_END)
    assert len(engine.probes) == 1
    # One that may have killed the engine is the last for a while, of all calls.
    paused = isinstance(failure, EngineDied) and failure.suspected
    assert conditions.allow(engine, running=False) is not paused


async def test_probes_stop_while_others_wait() -> None:
    waiting = 1
    conditions = ProbeConditions(lambda: waiting)
    engine = Recording(Reply(thought=LINE * 20, answer="done"))
    thought, _, _, _ = await said(engine, plan_of(engine), conditions)
    assert (thought, engine.probes) == (LINE * 20, [])
    waiting = 0
    engine.waiting_requests = 1
    assert (await said(engine, plan_of(engine), conditions))[0] == LINE * 20
    assert engine.probes == []


async def test_a_probe_under_way_is_given_up_when_a_call_begins_to_wait() -> None:
    waiting = [0]
    never = asyncio.Event()

    def on_probe(number: int) -> asyncio.Event:
        waiting[0] = 1
        return never

    engine = Recording(Reply(thought=LINE * 20, answer="done"), on_probe=on_probe)
    thought, answer, _, end = await said(engine, plan_of(engine), ProbeConditions(lambda: waiting[0]))
    assert (thought, answer, len(engine.probes), engine.running_probes) == (LINE * 20, "done", 1, 0)
    assert end.outcome is ThinkingOutcome.NATURAL_END


@pytest.mark.parametrize("how", ["closed", "cancelled", "drained", "answered now"])
async def test_no_probe_outlives_its_thought(how: str) -> None:
    engine = Recording(Reply(thought=LINE * 50, answer="done"), on_probe=lambda _: asyncio.Event())
    control = GenerationControl()
    events = Candidate(engine, plan_of(engine), 0, GenerationRun("t", 0.0, control)).events()
    text = ""
    async for event in events:
        if isinstance(event, Delta):
            text += event.text
        if engine.running_probes and how == "closed":
            break
        if engine.running_probes:
            {"cancelled": control.cancel, "drained": control.drain}.get(
                how, lambda: setattr(control, "finish_thinking", True)
            )()
    await events.aclose()
    assert engine.running_probes == 0
    assert text.endswith("done") is (how == "answered now")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["ab\n", "c", "de\nf\n", "ghi"]), max_size=20).map("".join),
    st.integers(0, 40) | st.none(),
    st.integers(1, 7),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.0, 0.2, 0.4]),
    st.sampled_from(list(EarlyExit)),
    st.sampled_from([0.0, 1.0]),
)
async def test_budgets_stay_exact_and_no_probe_is_heard(
    thought: str,
    budget: int | None,
    step: int,
    probability: float,
    marker: float,
    sign: EarlyExit,
    temperature: float,
) -> None:
    reply = Reply(thought=thought, answer="done", chunk_tokens=step, probability=probability, marker_probability=marker)
    engine = Recording(reply)
    own = {"early_exit_interval_tokens": 2, "early_exit_share": 64.0, "early_exit_agreements": 3}
    plan = plan_of(engine, sign, budget=budget, settings=own, sampling=Sampling(temperature=temperature))
    heard, answer, ended, end = await said(engine, plan)
    assert engine.running_probes == 0
    assert answer == "done"
    assert thought.startswith(heard)
    assert end.usage.thought_tokens == len(heard) <= (len(thought) if budget is None else budget)
    assert end.usage.answer_tokens == 5
    if end.outcome is ThinkingOutcome.BUDGET_REACHED:
        assert len(heard) == budget
    elif end.outcome is ThinkingOutcome.NATURAL_END:
        assert heard == thought
    else:
        assert end.outcome is (ThinkingOutcome.DISABLED if ended is None else ThinkingOutcome.CONVERGED)
    if sign is not EarlyExit.PROBE:
        assert engine.probes == []
    if sign is EarlyExit.OFF:
        assert end.early_exit is None
    if sign is EarlyExit.MARKER and end.outcome is ThinkingOutcome.CONVERGED:
        assert marker == 0.4
        assert heard.endswith("\n")


@pytest.mark.parametrize("asked", [None, 0, 1, 5])
async def test_the_caller_gets_the_log_probabilities_that_it_asked_for(asked: int | None) -> None:
    engine = Recording(Reply(thought=LINE * 2, answer="done", marker_probability=0.2))
    plan = plan_of(engine, EarlyExit.MARKER, output=Output(top_logprobs=asked))
    deltas = [
        event
        async for event in Candidate(engine, plan, 0, GenerationRun("t", 0.0)).events()
        if isinstance(event, Delta)
    ]
    told = [one for delta in deltas for one in delta.logprobs]
    assert len(told) == (0 if asked is None else 2 * len(LINE) + 5)
    assert {len(one.top) for one in told} <= {0 if asked is None else min(asked, 2)}


def test_a_form_or_a_tool_leaves_the_marker_only() -> None:
    engine = ScriptedEngine([Reply()])
    form = StructuredOutput(StructuredKind.REGEX, "a+")
    beside = plan_of(engine, output=Output(structured=form))
    assert beside.early_exit is not None
    assert beside.early_exit.mode is EarlyExit.MARKER
    for mode, sign in ((ToolMode.AUTO, EarlyExit.MARKER), (ToolMode.NONE, EarlyExit.PROBE)):
        plan = plan_of(engine, tools=ToolConfig((Tool("look"),), mode=mode))
        assert plan.early_exit is not None
        assert plan.early_exit.mode is sign


@pytest.mark.parametrize(
    ("mode", "default", "allowed", "expected"),
    [
        (ThinkingMode.THINKING, "probe", "probe", None),
        (ThinkingMode.AUTO, "probe", "probe", EarlyExit.PROBE),
        (ThinkingMode.AUTO, "probe", "marker", EarlyExit.MARKER),
        (ThinkingMode.AUTO, "marker", "off", None),
        (ThinkingMode.FAST, "probe", "probe", None),
    ],
)
def test_the_server_decides_for_auto(
    mode: ThinkingMode, default: str, allowed: str, expected: EarlyExit | None
) -> None:
    own = {"early_exit": default, "early_exit_allowed": allowed}
    question = (Message(Role.USER, "Solve 17 + 25 + 8, then add 31 twice"),)
    plan = plan_of(ScriptedEngine([Reply()]), None, thinking={"mode": mode}, settings=own, messages=question)
    assert (plan.early_exit.mode if plan.early_exit else None) is expected


def test_what_the_server_does_not_allow_is_refused() -> None:
    engine = ScriptedEngine([Reply()])
    with pytest.raises(FeatureOff, match="allows early exit up to 'marker', got 'probe'"):
        plan_of(engine, EarlyExit.PROBE, settings={"early_exit_allowed": "marker"})
    engine.card = replace(engine.card, unsupported_fields={"spec.output.top_logprobs": "it tells none"})
    with pytest.raises(FeatureOff, match="it tells none"):
        plan_of(engine, EarlyExit.MARKER)
    assert (
        plan_of(engine, None, thinking={"mode": ThinkingMode.AUTO}, settings={"early_exit": "marker"}).early_exit
        is None
    )


@given(st.floats(0.05, 1.0))
def test_a_marker_at_its_threshold_is_among_the_tokens_that_are_told(probability: float) -> None:
    plan = plan_of(ScriptedEngine([Reply()]), EarlyExit.MARKER, thinking={"early_exit_probability": probability})
    assert plan.early_exit is not None
    told = logprobs_needed(plan.early_exit)
    # So many others that are at least as likely leave no room for it.
    assert 1 <= told <= 20
    assert (told + 1) * probability > 1 - 1e-6


def test_what_was_saved_is_an_estimate_from_longer_thoughts() -> None:
    lengths = ThoughtLengths()
    for length in range(15):
        lengths.saw(length)
    assert lengths.saved_tokens(5, 100) is None
    lengths.saw(105)
    assert lengths.saved_tokens(14, 1000) == 91
    assert lengths.saved_tokens(14, 50) == 36
    assert lengths.saved_tokens(105, 1000) == 0


def test_probes_cost_the_caller_nothing() -> None:
    tier = {"input_usd_per_million": "1", "output_usd_per_million": "1"}
    prices = PriceList(Config.model_validate({"pricing": {"tiers": [tier]}}).price_tiers)
    usage = Usage(prompt_tokens=10, thought_tokens=5)
    assert prices.cost(usage) == prices.cost(replace(usage, probe_tokens=1000))
    assert usage.total_tokens == replace(usage, probe_tokens=1000).total_tokens


class Forces(ScriptedEngine):
    """Writes a thought, the closing marker with a probability and a rank, and an answer, a token at a time."""

    def __init__(self, thought: str, probability: float, rank: int, *, forces: bool = True) -> None:
        super().__init__([])
        self.card = replace(self.card, forces_budget=forces, forces_exit=forces)
        self.asked: list[EngineRequest] = []
        assert self.card.markers is not None
        self._close_id = self.card.markers.close_id
        self._ids = (*thought.encode(), self._close_id, *b"done", *self.card.eos_ids)
        self._marker = TokenLogprob(self._close_id, math.log(probability), rank)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:  # type: ignore[override]
        self.asked.append(request)
        for number, token_id in enumerate(self._ids, 1):
            sampled = self._marker if token_id == self._close_id else TokenLogprob(token_id, -0.1, 1)
            stop = EngineStop.EOS if number == len(self._ids) else None
            yield EngineChunk((token_id,), (TokenLogprobs(sampled, ()),), stop=stop)


@pytest.mark.parametrize(
    ("thought", "probability", "rank", "outcome"),
    [
        (LINE, 0.3, 2, ThinkingOutcome.CONVERGED),
        (LINE, 0.9, 1, ThinkingOutcome.NATURAL_END),  # the model ends it
        (LINE, 0.02, 3, ThinkingOutcome.NATURAL_END),  # it was drawn below the threshold
        (LINE + "so", 0.3, 2, ThinkingOutcome.NATURAL_END),  # not behind a line
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_an_engine_that_ends_thoughts_is_asked_to(
    thought: str, probability: float, rank: int, outcome: ThinkingOutcome, temperature: float
) -> None:
    engine = Forces(thought, probability, rank)
    change = {"thinking": {"early_exit_probability": 0.05}, "sampling": Sampling(temperature=temperature)}
    plan = plan_of(engine, EarlyExit.MARKER, **change)
    if temperature and rank == 1:  # drawn at random, most of such thoughts would have gone on
        outcome = ThinkingOutcome.CONVERGED
    text, answer, ended, end = await said(engine, plan)
    assert (text, answer) == (thought, "done")
    assert ended is not None
    assert ended.outcome is end.outcome is outcome
    assert end.usage.recomputed_tokens == 0
    [asked] = engine.asked
    assert (asked.exit_probability, asked.top_logprobs) == (0.05, 0)
    assert asked.thought_start == len(asked.prompt_token_ids)


@pytest.mark.parametrize(
    ("forces", "change"),
    [
        (True, {"sign": EarlyExit.OFF}),
        (False, {}),
        (True, {"thinking": {"closing_message": "That is enough."}}),
        # The engine would read a probability that these have changed.
        (True, {"sampling": Sampling(temperature=0.0, presence_penalty=1.5)}),
        (True, {"sampling": Sampling(temperature=0.0, frequency_penalty=0.1)}),
        (True, {"sampling": Sampling(temperature=0.0, repetition_penalty=1.1)}),
        (True, {"sampling": Sampling(temperature=0.0, logit_bias={97: 1.0})}),
        (True, {"output": Output(min_tokens=2)}),
    ],
)
async def test_no_engine_is_asked_to_end_a_thought_that_it_cannot_end_as_it_should(
    forces: bool, change: dict[str, object]
) -> None:
    engine = Forces(LINE, 0.3, 2, forces=forces)
    plan = plan_of(engine, change.pop("sign", EarlyExit.MARKER), **change)  # type: ignore[arg-type]
    _, _, ended, _ = await said(engine, plan)
    asked = engine.asked[0]
    assert asked.exit_probability is None
    assert asked.top_logprobs == (logprobs_needed(plan.early_exit) if plan.early_exit else None)
    assert ended is not None
    assert ended.outcome is ThinkingOutcome.NATURAL_END
