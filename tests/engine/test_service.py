"""The service on the real engine: what a call gets beside its budget; the engine stops when the caller does."""

from __future__ import annotations

import asyncio
import json
import re

import grpc
import pytest
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from tests.bad_requests import hello, turns

QUESTION = "What is 17 + 25 + 8 + 31?"
GREEDY = pb.SamplingConfig(temperature=0.0)
THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
FAST = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)


# Its thought has 74 tokens: some steps are left in which to steer it.
LONG = f"What is {' + '.join(map(str, range(7, 127, 3)))}?"


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> generation_pb2_grpc.GenerationServiceStub:
    return generation_pb2_grpc.GenerationServiceStub(channel)


async def stream(stub: generation_pb2_grpc.GenerationServiceStub, spec: pb.GenerationSpec) -> list[pb.GenerationEvent]:
    return [reply.event async for reply in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec))]


def endless(**fields: object) -> pb.GenerationSpec:
    """A request that would run for thousands of tokens."""
    output = pb.OutputConfig(max_output_tokens=20_000, min_output_tokens=20_000)
    return hello(QUESTION, output=output, thinking=FAST, **fields)


async def until_running(engine: Engine, requests: int) -> None:
    """Return when the engine itself says that so many run, and none waits."""
    async with asyncio.timeout(60):
        while (load := engine.load()).running_requests != requests or load.waiting_requests:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_stream_and_unary_say_the_same(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    spec = hello(QUESTION, thinking=THINKING, sampling=GREEDY, output=pb.OutputConfig(max_output_tokens=120))
    events = await stream(stub, spec)
    unary = await stub.Generate(pb.GenerateRequest(spec=spec))
    assert "".join(e.thought.text for e in events) == unary.candidates[0].thought
    assert "".join(e.answer.text for e in events) == unary.candidates[0].answer
    assert events[-1].finished.usage.output_tokens == unary.usage.output_tokens
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("rpc", ["stream", "unary"])
async def test_cancelling_stops_the_engine(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub, rpc: str
) -> None:
    if rpc == "stream":
        call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=endless()))
        for _ in range(5):
            await call.read()
    else:
        call = stub.Generate(pb.GenerateRequest(spec=endless()))
    await until_running(engine, 1)
    before = engine.load().steps
    call.cancel()
    await until_running(engine, 0)
    # The cancellation's way to the server and to the engine's process may each take the step that is under way.
    assert engine.load().steps - before <= 4


async def test_the_deadline_stops_the_engine(engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await stub.Generate(pb.GenerateRequest(spec=endless()), timeout=0.7)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_running(engine, 0)


async def test_auto_answers_before_the_deadline(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO, answer_reserve=16)
    spec = hello(QUESTION, thinking=thinking, output=pb.OutputConfig(max_output_tokens=4000))
    replies = [await stub.Generate(pb.GenerateRequest(spec=spec), timeout=30.0) for _ in range(3)]
    for reply in replies:
        assert reply.effective_settings.thinking_mode in (pb.THINKING_MODE_FAST, pb.THINKING_MODE_THINKING)
        assert reply.effective_settings.thinking_reason.startswith("auto")


async def test_one_token_prompts_and_chunks_that_leave_one_token(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    an_id = engine.tokenizer.encode("a")[0]
    for length in (1, 2, 512, 513, 1025):  # The engine under test prefills 512 tokens at a time.
        ids = pb.TokenIds(ids=[an_id] * length)
        spec = pb.GenerationSpec(token_ids=ids, output=pb.OutputConfig(max_output_tokens=3, min_output_tokens=3))
        reply = await stub.Generate(pb.GenerateRequest(spec=spec))
        assert (reply.usage.prompt_tokens, reply.usage.output_tokens) == (length, 3)


async def test_a_prompt_that_leaves_room_for_one_token(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    window = 600
    ids = pb.TokenIds(ids=[engine.tokenizer.encode("a")[0]] * (window - 1))
    spec = pb.GenerationSpec(token_ids=ids, context=pb.ContextConfig(max_context_tokens=window))
    reply = await stub.Generate(pb.GenerateRequest(spec=spec))
    assert reply.usage.total_tokens == window
    assert reply.effective_settings.max_output_tokens == 1


@pytest.mark.parametrize("overflow", [pb.OVERFLOW_POLICY_TRUNCATE_LEFT, pb.OVERFLOW_POLICY_TRUNCATE_MIDDLE])
async def test_counting_foretells_what_generating_drops(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub, overflow: pb.OverflowPolicy
) -> None:
    ids = pb.TokenIds(ids=engine.tokenizer.encode("a b c d e f g ") * 20)
    context = pb.ContextConfig(max_context_tokens=64, overflow=overflow)
    spec = pb.GenerationSpec(token_ids=ids, context=context, output=pb.OutputConfig(max_output_tokens=8))
    counted = await stub.CountTokens(pb.CountTokensRequest(spec=spec))
    reply = await stub.Generate(pb.GenerateRequest(spec=spec))
    assert counted.dropped.tokens == len(ids.ids) - 56 == reply.effective_settings.dropped.tokens
    assert counted.effective_prompt_tokens == 56 == reply.usage.prompt_tokens
    assert counted.cost_estimate.min_usd_ticks <= reply.cost.total_usd_ticks <= counted.cost_estimate.max_usd_ticks


async def test_the_oldest_turns_go_first(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    history = [("system", "Be brief."), *[("user", "What is 1 + 1?"), ("assistant", "2")] * 12, ("user", QUESTION)]
    context = pb.ContextConfig(max_context_tokens=160, overflow=pb.OVERFLOW_POLICY_DROP_OLDEST_TURNS)
    spec = pb.GenerationSpec(messages=turns(*history), context=context, thinking=FAST)
    counted = await stub.CountTokens(pb.CountTokensRequest(spec=spec))
    reply = await stub.Generate(pb.GenerateRequest(spec=spec))
    dropped = reply.effective_settings.dropped
    assert dropped == counted.dropped
    assert dropped.messages > 0
    assert dropped.messages % 2 == 0
    assert reply.usage.total_tokens <= 160
    assert counted.prompt_tokens == counted.effective_prompt_tokens + dropped.tokens


async def test_candidates_differ_by_seed_and_one_seed_repeats(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    sampling = pb.SamplingConfig(temperature=1.5, seed=7)
    output = pb.OutputConfig(candidate_count=4, max_output_tokens=24, min_output_tokens=24)
    reply = await stub.Generate(
        pb.GenerateRequest(spec=hello(QUESTION, thinking=FAST, sampling=sampling, output=output))
    )
    assert [c.result.candidate_index for c in reply.candidates] == [0, 1, 2, 3]
    assert len({c.answer for c in reply.candidates}) > 1
    assert reply.usage.output_tokens == sum(c.result.usage.output_tokens for c in reply.candidates)


async def test_logprobs_are_those_of_the_tokens(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    output = pb.OutputConfig(top_logprobs=3, return_token_ids=True, max_output_tokens=20)
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=6)
    spec = hello(QUESTION, thinking=thinking, sampling=GREEDY, output=output)
    candidate = (await stub.Generate(pb.GenerateRequest(spec=spec))).candidates[0]
    for ids, logprobs in (
        (candidate.thought_token_ids, candidate.thought_logprobs),
        (candidate.answer_token_ids, candidate.answer_logprobs),
    ):
        assert [entry.sampled.token_id for entry in logprobs] == list(ids)
        for entry in logprobs:
            assert len(entry.top) == 3
            assert entry.sampled.logprob <= 0
            # Greedy: nothing is more likely than what was taken.
            assert entry.sampled.logprob == pytest.approx(entry.top[0].logprob, abs=1e-4)
            assert entry.sampled.token_bytes == engine.tokenizer.token_bytes(entry.sampled.token_id)


@pytest.mark.parametrize("thinking", [FAST, pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=12)])
async def test_structure_holds_in_the_answer(
    stub: generation_pb2_grpc.GenerationServiceStub, thinking: pb.ThinkingConfig
) -> None:
    async def answer(**constraint: object) -> str:
        output = pb.OutputConfig(max_output_tokens=200, **constraint)
        reply = await stub.Generate(pb.GenerateRequest(spec=hello(QUESTION, thinking=thinking, output=output)))
        return reply.candidates[0].answer

    schema = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}}, "required": ["sum"]}
    schema["additionalProperties"] = False
    assert set(json.loads(await answer(json_schema=json.dumps(schema)))) == {"sum"}
    assert re.fullmatch(r"[0-9]{2}", await answer(regex="[0-9]{2}"))
    assert await answer(choices=pb.Choices(choices=["yes", "no"])) in ("yes", "no")
    assert await answer(grammar='root ::= "a" | "b"') in ("a", "b")


async def test_what_is_served_is_told(engine: Engine, channel: grpc.aio.Channel) -> None:
    model = await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())
    assert model.architecture == "Qwen3_5MoeForConditionalGeneration"
    assert model.vocab_size == engine.card.vocab_size
    assert all(feature.reason for feature in model.profile)
    features = {feature.name: feature.value for feature in model.profile}
    assert features.keys() >= {"mtp", "fp8_kv_cache", "prefix_caching", "fp8_weights"}
    assert features["tool_calls"] == "xml"
    assert model.price_tiers[0].input_usd_ticks_per_token == 4_000
    assert "vllm" in model.engine_version


async def test_answer_now_takes_effect_within_two_steps_and_a_prefill(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    # Two steps, one prefill, and one for the message on its way to the server, which takes more on a busy machine.
    assert min([await steps_to_an_answer(engine, stub) for _ in range(5)]) <= 4


async def steps_to_an_answer(engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub) -> int:
    """Return after how many engine steps an answer begins that is asked for in the middle of a thought."""
    spec = hello(LONG, thinking=THINKING, sampling=GREEDY)
    call = stub.Interact()
    await call.write(pb.InteractRequest(start=spec))
    events = [(await call.read()).event for _ in range(4)]
    asked_at = engine.load().steps
    await call.write(pb.InteractRequest(finish_thinking=pb.FinishThinking()))
    answered_at = 0
    while (reply := await call.read()) is not grpc.aio.EOF:
        events.append(reply.event)
        if reply.event.WhichOneof("event") == "answer" and not answered_at:
            answered_at = engine.load().steps
    assert events[-1].finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT
    assert events[-1].finished.usage.answer_tokens > 0
    return answered_at - asked_at


@pytest.mark.parametrize("action", ["finish_thinking", "change_budget", "cancel"])
async def test_a_resumable_stream_is_steered_by_its_id_and_token(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub, action: str
) -> None:
    spec = hello(LONG, thinking=THINKING, sampling=GREEDY)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec, resumable=True))
    events = [(await call.read()).event for _ in range(4)]
    started = events[0].started
    place = {"generation_id": started.generation_id, "resume_token": started.resume_token}
    # To ask for no limit changes nothing, and tells how far the thought is.
    before = await stub.Steer(pb.SteerRequest(change_budget=pb.ChangeBudget(thinking_budget=-1), **place))
    assert (before.applied, before.phase) == (True, pb.GENERATION_PHASE_THINKING)
    effective = started.effective_settings
    assert before.thinking_budget == effective.max_output_tokens - effective.answer_reserve
    budget = before.reasoning_tokens + 12
    actions = {
        "finish_thinking": pb.SteerRequest(finish_thinking=pb.FinishThinking(), **place),
        "change_budget": pb.SteerRequest(change_budget=pb.ChangeBudget(thinking_budget=budget), **place),
        "cancel": pb.SteerRequest(cancel=pb.Cancel(), **place),
    }
    reply = await stub.Steer(actions[action])
    assert reply.applied
    assert reply.reasoning_tokens <= budget
    while (read := await call.read()) is not grpc.aio.EOF:
        events.append(read.event)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    result, usage = events[-1].finished.results[0], events[-1].finished.usage
    assert sum(event.thought.token_count for event in events) == usage.reasoning_tokens
    match action:
        case "finish_thinking":
            assert result.thinking_outcome == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT
            # The steps that are under way, of a few tokens each where the engine drafts.
            assert usage.reasoning_tokens <= reply.reasoning_tokens + 8
            assert usage.answer_tokens > 0
        case "change_budget":
            assert reply.thinking_budget == usage.reasoning_tokens == budget
            assert result.thinking_outcome == pb.THINKING_OUTCOME_BUDGET_REACHED
            assert usage.answer_tokens > 0
        case _:
            assert result.finish_reason == pb.FINISH_REASON_CANCELLED
            assert (usage.answer_tokens, result.thinking_outcome) == (0, pb.THINKING_OUTCOME_CANCELLED)
    await until_running(engine, 0)


async def test_a_cancelled_call_is_gone_within_a_step_or_two(
    engine: Engine, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    other = stub.StreamGenerate(pb.StreamGenerateRequest(spec=endless()))
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=endless()))
    for stream_call in (other, call):
        for _ in range(3):
            await stream_call.read()
    assert engine.load().running_requests == 2
    before = engine.load().steps
    call.cancel()
    await until_running(engine, 1)
    # The cancellation's way to the server and to the engine's process may each take the step that is under way.
    assert engine.load().steps - before <= 4
    other.cancel()
    await until_running(engine, 0)
