"""Tool calls over a real channel with the scripted engine: events, counts, cuts, deaths, drains and steering."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.conftest import Serve
from tests.rpc.killable import ward
from tests.rpc.test_stream import stream
from tests.rpc.test_survival import carried

OSLO = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
ROME = "<tool_call>\n<function=weather>\n<parameter=city>\nRome</tool_call>\n</parameter>\n</function>\n</tool_call>"
ARGUMENTS = {"city": "Oslo", "days": 3}
SCHEMA = json.dumps(
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
)
THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
STEPS = [1, 2, 3, 7, 1000]


def spec(text: str = "hello", **fields: object) -> pb.GenerationSpec:
    fields = {"tools": [pb.Tool(name="weather", parameters_json_schema=SCHEMA)]} | fields
    messages = pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)])
    return pb.GenerationSpec(messages=messages, **fields)  # type: ignore[arg-type]


def answer_of(events: Sequence[pb.GenerationEvent], index: int = 0) -> str:
    return "".join(e.answer.text for e in events if e.answer.candidate_index == index)


def calls_of(events: Sequence[pb.GenerationEvent], index: int = 0) -> list[pb.ToolCall]:
    """The calls of a candidate; checks that started, arguments and finished agree and come in order."""
    calls: list[pb.ToolCall] = []
    fragments = ""
    begun = None
    for event in events:
        match event.WhichOneof("event"):
            case "tool_call_started" if event.tool_call_started.candidate_index == index:
                begun, fragments = event.tool_call_started, ""
                assert begun.call_index == len(calls)
            case "tool_call_arguments" if event.tool_call_arguments.candidate_index == index:
                assert begun is not None
                assert event.tool_call_arguments.call_index == begun.call_index
                fragments += event.tool_call_arguments.json_fragment
            case "tool_call_finished" if event.tool_call_finished.candidate_index == index:
                call = event.tool_call_finished.call
                assert begun is not None
                assert (call.id, call.name, call.arguments_json) == (begun.id, begun.name, fragments)
                assert len(call.id) <= 64
                if call.status == pb.TOOL_CALL_STATUS_COMPLETE:
                    assert isinstance(json.loads(call.arguments_json), dict)
                calls.append(call)
                begun = None
    assert begun is None, "a call that never ends"
    assert len({call.id for call in calls}) == len(calls)
    return calls


def arguments_of(events: Sequence[pb.GenerationEvent], index: int = 0) -> list[object]:
    return [json.loads(call.arguments_json) for call in calls_of(events, index)]


def check_counts(events: Sequence[pb.GenerationEvent]) -> None:
    """The counts of the events sum to the usage; sequence numbers have no gaps."""
    usage = events[-1].finished.usage
    told = sum(
        e.tool_call_started.token_count + e.tool_call_arguments.token_count + e.tool_call_finished.token_count
        for e in events
    )
    assert told == usage.tool_tokens
    assert sum(e.answer.token_count for e in events) == usage.answer_tokens
    assert sum(e.thought.token_count for e in events) == usage.reasoning_tokens
    assert usage.output_tokens == usage.reasoning_tokens + usage.answer_tokens + usage.tool_tokens
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))


def finish(events: Sequence[pb.GenerationEvent], index: int = 0) -> pb.FinishReason.ValueType:
    return events[-1].finished.results[index].finish_reason


@pytest.mark.parametrize("chunk_tokens", STEPS)
async def test_a_call_is_told_as_it_comes(serve: Serve, chunk_tokens: int) -> None:
    channel = await serve(Reply(thought="hm", answer=f"\n\nI look.\n{OSLO}", chunk_tokens=chunk_tokens))
    events = await stream(channel, spec(thinking=THINKING))
    assert answer_of(events) == "I look."
    assert arguments_of(events) == [ARGUMENTS]
    assert finish(events) == pb.FINISH_REASON_TOOL_CALLS
    check_counts(events)
    # The line break before the call, its marker, and the rest up to what shows that it is over; each byte is a token.
    usage = events[-1].finished.usage
    least = 2 + len(OSLO.removeprefix("<tool_call>").removesuffix("\n</tool_call>"))
    assert least <= usage.tool_tokens <= least + len("\n<")
    assert usage.tool_tokens + usage.answer_tokens == least + len("\n\nI look.") + len("\n<") + 1
    if chunk_tokens == 1:
        # Arguments are streamed: more than one fragment.
        assert sum(e.HasField("tool_call_arguments") for e in events) > 3


@pytest.mark.parametrize("chunk_tokens", STEPS)
async def test_pitfall_28_stream_and_unary_agree(serve: Serve, chunk_tokens: int) -> None:
    channel = await serve(Reply(answer=f"One.\n{OSLO}\n{ROME}", chunk_tokens=chunk_tokens))
    events = await stream(channel, spec())
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    whole = (await stub.Generate(pb.GenerateRequest(spec=spec()))).candidates[0]
    assert whole.answer == answer_of(events)
    assert [(c.name, c.arguments_json, c.status) for c in whole.tool_calls] == [
        (c.name, c.arguments_json, c.status) for c in calls_of(events)
    ]
    assert whole.result.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert whole.result.usage.tool_tokens == events[-1].finished.usage.tool_tokens


@pytest.mark.parametrize("chunk_tokens", STEPS)
async def test_pitfall_1_a_call_inside_a_thought_ends_it(serve: Serve, chunk_tokens: int) -> None:
    channel = await serve(Reply(thought=f"I look. {OSLO}", answer=OSLO, chunk_tokens=chunk_tokens))
    events = await stream(channel, spec(thinking=THINKING))
    assert "".join(e.thought.text for e in events) == "I look. "
    assert (answer_of(events), arguments_of(events)) == ("", [ARGUMENTS])
    assert events[-1].finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_NATURAL_END
    check_counts(events)


@pytest.mark.parametrize("budget", [0, 1, 7, 64])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
async def test_pitfall_4_the_budget_never_cuts_into_arguments(serve: Serve, budget: int, chunk_tokens: int) -> None:
    thought = "a thought of more than sixty-four tokens, because each byte of it is a token of this engine"
    channel = await serve(Reply(thought=thought, answer=OSLO, chunk_tokens=chunk_tokens))
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget)
    events = await stream(channel, spec(thinking=thinking))
    assert arguments_of(events) == [ARGUMENTS]
    assert events[-1].finished.usage.reasoning_tokens == budget
    assert finish(events) == pb.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize("chunk_tokens", STEPS)
async def test_pitfall_6_one_step_spans_the_end_of_the_thought_and_a_call(serve: Serve, chunk_tokens: int) -> None:
    channel = await serve(Reply(thought="hm", answer=OSLO, chunk_tokens=chunk_tokens))
    events = await stream(channel, spec(thinking=THINKING))
    assert arguments_of(events) == [ARGUMENTS]
    assert answer_of(events) == ""


@pytest.mark.parametrize("most", [1, 5, 30, 60, 75])
async def test_pitfall_17_a_call_that_is_cut_is_incomplete_and_told(serve: Serve, most: int) -> None:
    channel = await serve(Reply(answer=OSLO, chunk_tokens=3))
    events = await stream(channel, spec(output=pb.OutputConfig(max_output_tokens=most)))
    assert finish(events) == pb.FINISH_REASON_MAX_OUTPUT_TOKENS
    assert all(call.status == pb.TOOL_CALL_STATUS_INCOMPLETE for call in calls_of(events))
    assert events[-1].finished.usage.output_tokens == most
    check_counts(events)
    if most >= 30:
        assert len(calls_of(events)) == 1
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        whole = await stub.Generate(pb.GenerateRequest(spec=spec(output=pb.OutputConfig(max_output_tokens=most))))
        assert whole.candidates[0].tool_calls[0].status == pb.TOOL_CALL_STATUS_INCOMPLETE


async def test_pitfall_18_markers_inside_a_value_are_its_text(serve: Serve) -> None:
    channel = await serve(Reply(answer=ROME))
    assert arguments_of(await stream(channel, spec())) == [{"city": "Rome</tool_call>"}]


async def test_pitfall_22_without_parallel_calls_there_is_one(serve: Serve) -> None:
    channel = await serve(Reply(answer=f"{OSLO}\n{ROME}\nand more text", chunk_tokens=9))
    for config in (pb.ToolConfig(parallel=False), pb.ToolConfig(max_calls=1)):
        events = await stream(channel, spec(tool_config=config))
        assert arguments_of(events) == [ARGUMENTS]
        assert answer_of(events) == ""
        assert finish(events) == pb.FINISH_REASON_TOOL_CALLS
        assert events[-1].finished.effective_settings.max_tool_calls == 1


async def test_pitfall_23_all_parallel_calls_survive_in_order(serve: Serve) -> None:
    channel = await serve(Reply(answer=f"{OSLO}\n{ROME}\n{OSLO}", chunk_tokens=50))
    events = await stream(channel, spec())
    assert arguments_of(events) == [ARGUMENTS, {"city": "Rome</tool_call>"}, ARGUMENTS]
    check_counts(events)


@pytest.mark.parametrize("chunk_tokens", STEPS)
async def test_pitfall_24_stops_do_not_act_inside_calls(serve: Serve, chunk_tokens: int) -> None:
    channel = await serve(Reply(answer=f"a\n{OSLO}\nthe Oslo end", chunk_tokens=chunk_tokens))
    output = pb.OutputConfig(stop_strings=["Oslo"], stop_token_ids=[ord("3")])
    events = await stream(channel, spec(output=output))
    assert arguments_of(events) == [ARGUMENTS]
    assert answer_of(events).endswith("the ")
    assert events[-1].finished.results[0].matched_stop == "Oslo"


async def test_pitfall_27_a_narrated_call_is_text(serve: Serve) -> None:
    said = "Write <tool_call> and then <function=...>, like so."
    channel = await serve(Reply(answer=said))
    events = await stream(channel, spec())
    assert (answer_of(events), calls_of(events)) == (said, [])
    assert finish(events) == pb.FINISH_REASON_STOP
    assert events[-1].finished.usage.tool_tokens == 0
    check_counts(events)


async def test_pitfall_3_examples_in_the_prompt_are_not_taken_for_output(serve: Serve) -> None:
    channel = await serve(Reply(answer="Nothing to call."))
    events = await stream(channel, spec(f"Explain {OSLO}"))
    assert (answer_of(events), calls_of(events)) == ("Nothing to call.", [])


@pytest.mark.parametrize("mode", ["no tools", "NONE"])
async def test_without_tools_the_markup_is_text(serve: Serve, mode: str) -> None:
    channel = await serve(Reply(thought=f"hm {OSLO}", answer=OSLO))
    fields = {"tools": []} if mode == "no tools" else {"tool_config": pb.ToolConfig(mode=pb.TOOL_MODE_NONE)}
    events = await stream(channel, spec(thinking=THINKING, **fields))
    assert (answer_of(events), calls_of(events)) == (OSLO, [])
    assert "".join(e.thought.text for e in events) == f"hm {OSLO}"


async def test_two_candidates_have_calls_of_their_own(serve: Serve) -> None:
    channel = await serve(Reply(answer=f"x\n{OSLO}"))
    events = await stream(channel, spec(output=pb.OutputConfig(candidate_count=2)))
    calls = [calls_of(events, index) for index in (0, 1)]
    assert [json.loads(one.arguments_json) for (one,) in calls] == [ARGUMENTS, ARGUMENTS]
    assert calls[0][0].id != calls[1][0].id


@pytest.mark.slow
@pytest.mark.parametrize("after", [*range(1, len(OSLO.encode()) - 18, 6)])
async def test_an_engine_that_dies_inside_a_call_changes_nothing(serve: Serve, after: int) -> None:
    channel = await serve(Reply(answer=f"{OSLO}\n{ROME}", dies_after_tokens=after))
    events = await stream(channel, spec())
    assert arguments_of(events) == [ARGUMENTS, {"city": "Rome</tool_call>"}]
    check_counts(events)


@pytest.mark.slow
async def test_a_drain_inside_a_call_goes_on_at_another_replica(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    reply = Reply(answer=f"I look.\n{OSLO}\n{ROME}", step_seconds=0.01)
    async with ward(reply, key_file=key) as here, ward(reply, key_file=key) as there:
        whole = await stream(there.channel, spec())
        for chunks in (3, 12, 25, 60, 85):
            async with ward(reply, key_file=key) as drained:
                running = asyncio.create_task(stream(drained.channel, spec()))
                while drained.engine.chunks < chunks:  # noqa: ASYNC110 - the engine's own count
                    await asyncio.sleep(0.002)
                await drained.server.drain(0.01)
                first = await running
            assert finish(first) == pb.FINISH_REASON_DRAINED
            rest = await carried(here, first[-1], first[0].started)
            events = [*first[:-1], *rest]
            assert arguments_of(events) == arguments_of(whole)
            assert answer_of(events) == answer_of(whole)
            usage = rest[-1].finished.usage
            assert usage.tool_tokens == whole[-1].finished.usage.tool_tokens
            assert [e.sequence for e in [*first, *rest]] == list(range(1, len(first) + len(rest) + 1))


async def test_a_dropped_connection_inside_a_call_is_resumed(serve: Serve) -> None:
    channel = await serve(Reply(answer=f"{OSLO}\n{ROME}", step_seconds=0.002))
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(), resumable=True))
    first: list[pb.GenerationEvent] = []
    async for reply in call:
        first.append(reply.event)
        if reply.event.HasField("tool_call_arguments"):
            break
    call.cancel()
    started = first[0].started
    request = pb.ResumeRequest(
        generation_id=started.generation_id, resume_token=started.resume_token, last_sequence=first[-1].sequence
    )
    events = [*first, *[reply.event async for reply in stub.Resume(request)]]
    assert arguments_of(events) == [ARGUMENTS, {"city": "Rome</tool_call>"}]
    check_counts(events)


async def test_cancel_inside_a_call_leaves_it_incomplete(serve: Serve) -> None:
    channel = await serve(Reply(answer=OSLO, step_seconds=0.01))
    call = generation_pb2_grpc.GenerationServiceStub(channel).Interact()
    await call.write(pb.InteractRequest(start=spec()))
    events = []
    async for reply in call:
        events.append(reply.event)
        if reply.event.HasField("tool_call_started"):
            await call.write(pb.InteractRequest(cancel=pb.Cancel()))
    assert finish(events) == pb.FINISH_REASON_CANCELLED
    assert [one.status for one in calls_of(events)] == [pb.TOOL_CALL_STATUS_INCOMPLETE]
    check_counts(events)


async def test_answer_now_leads_to_the_call(serve: Serve) -> None:
    channel = await serve(Reply(thought="hm " * 1000, answer=OSLO, step_seconds=0.001))
    call = generation_pb2_grpc.GenerationServiceStub(channel).Interact()
    await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))
    events = []
    async for reply in call:
        events.append(reply.event)
        if len(events) == 5:
            await call.write(pb.InteractRequest(finish_thinking=pb.FinishThinking()))
    assert arguments_of(events) == [ARGUMENTS]
    assert events[-1].finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT


async def test_held_deltas_hold_arguments_too(serve: Serve) -> None:
    channel = await serve(Reply(answer=OSLO, step_seconds=0.002))
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = pb.StreamGenerateRequest(spec=spec())
    request.flush_interval.FromMilliseconds(500)
    events = [reply.event async for reply in stub.StreamGenerate(request)]
    assert arguments_of(events) == [ARGUMENTS]
    check_counts(events)
    one_by_one = await stream(channel, spec())
    assert len(events) < len(one_by_one)


LOOP = (
    Reply(match="<tool_response>\nsun", answer="Sun in Oslo, and in Rome too."),
    Reply(match="<tool_response>\nrain", thought="one more", answer=ROME, step_seconds=0.005),
    Reply(match="hello", thought="I look", answer=OSLO, step_seconds=0.005),
)


def extend(request: pb.GenerationSpec, events: Sequence[pb.GenerationEvent], text: str) -> None:
    """Add a turn to a conversation: thought and calls, and a result for each call."""
    calls = calls_of(events)
    parts = [pb.Part(thought="".join(e.thought.text for e in events))]
    parts += [pb.Part(tool_call=call) for call in calls]
    request.messages.messages.append(pb.Message(role=pb.ROLE_ASSISTANT, parts=parts))
    results = [pb.Part(tool_result=pb.ToolResult(call_id=call.id, content=[pb.Part(text=text)])) for call in calls]
    request.messages.messages.append(pb.Message(role=pb.ROLE_TOOL, parts=results))


@pytest.mark.slow
@pytest.mark.parametrize("dies_after_tokens", [0, 30, 60])
async def test_a_loop_of_three_turns_over_deaths_inside_arguments(serve: Serve, dies_after_tokens: int) -> None:
    channel = await serve(*[replace(reply, dies_after_tokens=dies_after_tokens) for reply in LOOP])
    request = spec(thinking=THINKING)
    for text, arguments in (("rain", ARGUMENTS), ("sun", {"city": "Rome</tool_call>"})):
        events = await stream(channel, request)
        assert arguments_of(events) == [arguments]
        check_counts(events)
        extend(request, events, text)
    last = await stream(channel, request)
    assert (answer_of(last), calls_of(last)) == ("Sun in Oslo, and in Rome too.", [])


@pytest.mark.slow
async def test_a_loop_of_three_turns_over_drains_inside_arguments(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    request = spec(thinking=THINKING)
    async with ward(*LOOP, key_file=key) as there:
        for text, arguments in (("rain", ARGUMENTS), ("sun", {"city": "Rome</tool_call>"})):
            async with ward(*LOOP, key_file=key) as here:
                running = asyncio.create_task(stream(here.channel, request))
                while here.engine.chunks < 60:  # noqa: ASYNC110 - the engine's own count
                    await asyncio.sleep(0.002)
                await here.server.drain(0.01)
                first = await running
            assert finish(first) == pb.FINISH_REASON_DRAINED
            events = [*first[:-1], *await carried(there, first[-1], first[0].started)]
            assert arguments_of(events) == [arguments]
            extend(request, events, text)
        last = await stream(there.channel, request)
        assert (answer_of(last), calls_of(last)) == ("Sun in Oslo, and in Rome too.", [])


async def test_count_tokens_counts_tools(serve: Serve) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(await serve(Reply()))
    bare = await stub.CountTokens(pb.CountTokensRequest(spec=spec(tools=[])))
    tools = await stub.CountTokens(pb.CountTokensRequest(spec=spec()))
    assert tools.prompt_tokens >= bare.prompt_tokens + len(SCHEMA) // 2
    assert tools.effective_settings.tool_mode == pb.TOOL_MODE_AUTO


async def test_required_is_off_where_nothing_can_hold_it(serve: Serve) -> None:
    channel = await serve(Reply(answer=OSLO))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream(channel, spec(tool_config=pb.ToolConfig(mode=pb.TOOL_MODE_REQUIRED)))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
