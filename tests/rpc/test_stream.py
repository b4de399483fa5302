"""One call over a real channel, end to end, with the scripted engine: budgets, deltas, events, usage and cost."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, routing_pb2, routing_pb2_grpc

from tests.rpc.conftest import Serve, serving


def spec(text: str = "hello", **fields: object) -> pb.GenerationSpec:
    messages = pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)])
    return pb.GenerationSpec(messages=messages, **fields)


async def stream(channel: grpc.aio.Channel, request: pb.GenerationSpec) -> list[pb.GenerationEvent]:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return [reply.event async for reply in stub.StreamGenerate(pb.StreamGenerateRequest(spec=request))]


def texts(events: list[pb.GenerationEvent]) -> tuple[str, str]:
    return "".join(e.thought.text for e in events), "".join(e.answer.text for e in events)


async def test_thought_and_answer_come_apart(serve: Serve) -> None:
    channel = await serve(Reply(thought="1 + 2 = 3", answer="\n\nIt is 3."))
    events = await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)))
    assert texts(events) == ("1 + 2 = 3", "It is 3.")
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert events[0].WhichOneof("event") == "started"
    kinds = [e.WhichOneof("event") for e in events]
    assert kinds.index("thinking_finished") == kinds.index("answer") - 1
    finished = events[-1].finished
    assert finished.results[0].finish_reason == pb.FINISH_REASON_STOP
    assert finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_NATURAL_END
    assert finished.usage.reasoning_tokens == len("1 + 2 = 3")
    assert finished.usage.answer_tokens == len("\n\nIt is 3.") + 1  # and the end of turn
    assert finished.usage.marker_tokens == 1
    assert finished.cost.output_usd_ticks == finished.usage.output_tokens * 24_000
    assert finished.cost.total_usd_ticks == finished.usage.prompt_tokens * 4_000 + finished.cost.output_usd_ticks


@pytest.mark.parametrize("budget", [-1, 0, 1, 2, 7, 8, 9, 64])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 5])
async def test_the_budget_holds_exactly(serve: Serve, budget: int, chunk_tokens: int) -> None:
    channel = await serve(Reply(thought="abcdefgh", answer="done", chunk_tokens=chunk_tokens))
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget)
    events = await stream(channel, spec(thinking=thinking))
    natural = 8
    expected = natural if budget == -1 else min(budget, natural)
    finished = events[-1].finished
    assert finished.usage.reasoning_tokens == expected
    assert sum(e.thought.token_count for e in events) == expected
    assert texts(events) == ("abcdefgh"[:expected], "done")
    outcome = finished.results[0].thinking_outcome
    if budget == 0:
        assert outcome == pb.THINKING_OUTCOME_DISABLED
    elif 0 < budget < natural:
        assert outcome == pb.THINKING_OUTCOME_BUDGET_REACHED


async def test_an_end_of_turn_inside_the_thought_still_brings_an_answer(serve: Serve) -> None:
    channel = await serve(Reply(thought="ab<|im_end|>cd", answer="done"))
    events = await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)))
    assert texts(events) == ("ab", "done")
    assert events[-1].finished.usage.recomputed_tokens > 0


async def test_a_reopened_think_section_is_left_out(serve: Serve) -> None:
    channel = await serve(Reply(thought="ab", answer="do<think>ne"))
    events = await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)))
    assert texts(events) == ("ab", "done")
    assert events[-1].finished.usage.reasoning_tokens == 2


async def test_hidden_thoughts_are_counted_and_not_sent(serve: Serve) -> None:
    channel = await serve(Reply(thought="secret", answer="done"))
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, include_thoughts=False)
    events = await stream(channel, spec(thinking=thinking))
    assert texts(events) == ("", "done")
    assert events[-1].finished.usage.reasoning_tokens == 6


async def test_candidates_come_side_by_side(serve: Serve) -> None:
    channel = await serve(Reply(thought="ab", answer="done"))
    output = pb.OutputConfig(candidate_count=3)
    events = await stream(channel, spec(output=output, thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)))
    for index in range(3):
        assert "".join(e.answer.text for e in events if e.answer.candidate_index == index) == "done"
    finished = events[-1].finished
    assert [r.candidate_index for r in finished.results] == [0, 1, 2]
    assert finished.usage.reasoning_tokens == 6
    assert finished.usage.prompt_tokens == finished.results[0].usage.prompt_tokens


async def test_stop_strings_end_the_answer_and_not_the_thought(serve: Serve) -> None:
    channel = await serve(Reply(thought="a STOP b", answer="one STOP two"))
    output = pb.OutputConfig(stop_strings=["STOP"])
    events = await stream(channel, spec(output=output, thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)))
    assert texts(events) == ("a STOP b", "one ")
    assert events[-1].finished.results[0].matched_stop == "STOP"
    assert events[-1].finished.results[0].finish_reason == pb.FINISH_REASON_STOP_STRING


async def test_max_output_tokens_holds_exactly(serve: Serve) -> None:
    channel = await serve(Reply(thought="abcdefgh", answer="a long answer", chunk_tokens=4))
    events = await stream(channel, spec(output=pb.OutputConfig(max_output_tokens=10)))
    finished = events[-1].finished
    assert finished.usage.output_tokens == 10
    assert finished.results[0].finish_reason == pb.FINISH_REASON_MAX_OUTPUT_TOKENS


async def test_stray_markers_in_the_answer_do_not_eat_the_callers_tokens(serve: Serve) -> None:
    channel = await serve(Reply(thought="", answer="ab</think>cd</think>ef"))
    events = await stream(channel, spec(output=pb.OutputConfig(max_output_tokens=5)))
    assert texts(events)[1] == "abcde"
    assert events[-1].finished.usage.output_tokens == 5


async def test_what_this_engine_has_not_says_so(serve: Serve) -> None:
    channel = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await routing_pb2_grpc.RoutingServiceStub(channel).GetExpertLoad(routing_pb2.GetExpertLoadRequest())
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# Without "<", so that no text spells one of the template's markers.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=12)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    thought=TEXT,
    answer=TEXT,
    chunk_tokens=st.integers(1, 5),
)
async def test_deltas_join_to_the_unary_reply(thought: str, answer: str, chunk_tokens: int) -> None:
    """200 generated cases: multi-byte text cut at byte boundaries; nothing lost, doubled or replaced."""
    engine = ScriptedEngine([Reply(thought=thought, answer=answer, chunk_tokens=chunk_tokens)])
    request = spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING))
    async with serving(engine) as (_, channel):
        events = await stream(channel, request)
        unary = await generation_pb2_grpc.GenerationServiceStub(channel).Generate(pb.GenerateRequest(spec=request))
    assert texts(events) == (unary.candidates[0].thought, unary.candidates[0].answer)
    assert texts(events) == (thought, answer.lstrip("\n"))
    assert events[-1].finished.usage == unary.usage
