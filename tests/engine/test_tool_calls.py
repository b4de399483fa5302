"""Tool calls of the real engine, through the whole service: required ones under any budget, and generated schemas."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import grpc
import jsonschema
import pytest
from penstock.config.schema import Config, EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.start import start
from penstock.generation.candidate import Candidate
from penstock.generation.control import GenerationRun
from penstock.generation.planner import plan_generation
from penstock.types import (
    CandidateEnd,
    FinishReason,
    Message,
    Output,
    Request,
    Role,
    Sampling,
    ThinkingConfig,
    ThinkingMode,
    Tool,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
    ToolCallStatus,
    ToolConfig,
    ToolMode,
)
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.engine.test_constrained_answers import DiesTwice
from tests.rpc.conftest import serving
from tests.rpc.test_tool_calls import calls_of, check_counts

WORDS = ["Oslo", "Zürich", "東京", 'say "hi"', "a</parameter>b", "x\\y", "", "null", "12"]


def schema_of(choose: random.Random) -> dict[str, Any]:
    """An object whose values end by themselves: the small model would ramble in free text."""

    def value(depth: int) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {"type": "string", "enum": choose.sample(WORDS[:4], 2)},
            {"type": "string", "maxLength": 3},
            {"type": "integer", "minimum": -9, "maximum": 99},
            {"type": "boolean"},
            {"type": "null"},
        ]
        if depth:
            kinds += [
                {"type": "array", "items": value(depth - 1), "minItems": 0, "maxItems": 2},
                {
                    "type": "object",
                    "properties": {"inner": value(depth - 1)},
                    "required": ["inner"],
                    "additionalProperties": False,
                },
            ]
        return choose.choice(kinds)

    names = choose.sample(["city", "Days_1", "x-y", "deep.er"], choose.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: value(2) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def asked(number: int, mode: pb.ToolMode.ValueType, budget: int | None) -> tuple[pb.GenerationSpec, dict[str, Any]]:
    choose = random.Random(number)
    schemas = {name: schema_of(choose) for name in ("weather", "now", "save")[: choose.randint(1, 3)]}
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget)
    return pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="What is 17 + 25 + 3?")]),
        tools=[pb.Tool(name=name, parameters_json_schema=json.dumps(schema)) for name, schema in schemas.items()],
        tool_config=pb.ToolConfig(mode=mode, max_calls=choose.choice([1, 2])),
        thinking=thinking,
        sampling=pb.SamplingConfig(temperature=1.2, seed=number),
        output=pb.OutputConfig(max_output_tokens=700),
    ), schemas


async def run(
    channel: grpc.aio.Channel, number: int, mode: pb.ToolMode.ValueType, budget: int | None, room: asyncio.Semaphore
) -> list[pb.ToolCall]:
    spec, schemas = asked(number, mode, budget)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    async with room:
        request = pb.StreamGenerateRequest(spec=spec)
        events = [reply.event async for reply in stub.StreamGenerate(request)]
    check_counts(events)
    calls = calls_of(events)
    result = events[-1].finished.results[0]
    for call in calls:
        if call.status == pb.TOOL_CALL_STATUS_COMPLETE:
            jsonschema.validate(json.loads(call.arguments_json), schemas[call.name])
        else:
            assert result.finish_reason == pb.FINISH_REASON_MAX_OUTPUT_TOKENS
    if budget is not None:
        assert result.usage.reasoning_tokens <= budget
    return calls


@pytest.mark.parametrize("budget", [0, 1, 7, 64])
async def test_pitfalls_5_and_9_a_required_call_comes_under_any_budget(channel: grpc.aio.Channel, budget: int) -> None:
    room = asyncio.Semaphore(8)
    numbers = range(budget * 100, budget * 100 + 6)
    for calls in await asyncio.gather(*[run(channel, n, pb.TOOL_MODE_REQUIRED, budget, room) for n in numbers]):
        assert calls
        assert calls[0].status == pb.TOOL_CALL_STATUS_COMPLETE


async def test_pitfalls_7_and_8_a_validated_output_has_no_bad_call(channel: grpc.aio.Channel) -> None:
    room = asyncio.Semaphore(8)
    await asyncio.gather(*[run(channel, n, pb.TOOL_MODE_VALIDATED, 16, room) for n in range(8)])


async def test_candidates_of_a_begun_answer_call_each_for_itself(channel: grpc.aio.Channel) -> None:
    spec, schemas = asked(7, pb.TOOL_MODE_REQUIRED, None)
    spec.messages.messages.add(role=pb.ROLE_ASSISTANT, content="I look it up.")
    spec.thinking.CopyFrom(pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST))
    spec.output.candidate_count = 3
    spec.tool_config.max_calls = 1
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = pb.StreamGenerateRequest(spec=spec)
    events = [reply.event async for reply in stub.StreamGenerate(request)]
    check_counts(events)
    calls = [call for index in range(3) for call in calls_of(events, index)]
    assert [call.status for call in calls] == [pb.TOOL_CALL_STATUS_COMPLETE] * 3
    assert len({call.id for call in calls}) == 3
    for call in calls:
        jsonschema.validate(json.loads(call.arguments_json), schemas[call.name])
    assert {result.finish_reason for result in events[-1].finished.results} == {pb.FINISH_REASON_TOOL_CALLS}


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("drafts", [1, 2, 3, 4])
async def test_pitfalls_14_to_16_two_hundred_generated_calls_with_any_number_of_drafts(drafts: int) -> None:
    engine = await start(EngineSettings(max_batch_tokens=512, mtp_draft_tokens=drafts))
    try:
        async with serving(engine) as (_, channel):
            room = asyncio.Semaphore(8)
            numbers = range(drafts * 1000, drafts * 1000 + 50)
            found = await asyncio.gather(
                *[run(channel, n, pb.TOOL_MODE_REQUIRED, (0, 1, 7, 64)[n % 4], room) for n in numbers]
            )
            assert all(calls and calls[0].status == pb.TOOL_CALL_STATUS_COMPLETE for calls in found)
    finally:
        await engine.close()


async def test_a_call_goes_on_over_deaths_and_each_event_comes_once(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo in Norway", "Rome in Italy"]},
            "days": {"type": "integer", "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    request = Request(
        messages=(Message(Role.USER, "What is 17 + 25?"),),
        thinking=ThinkingConfig(ThinkingMode.FAST),
        sampling=Sampling(temperature=0.0),
        output=Output(max_tokens=200),
        tools=ToolConfig((Tool("weather", "", json.dumps(schema)),), ToolMode.REQUIRED, max_calls=1),
    )

    async def events_of(on: Any) -> list[Any]:
        candidate = Candidate(on, plan_generation(request, on, Config()), 0, GenerationRun("g", 0.0))
        return [event async for event in candidate.events()]

    dies = DiesTwice(engine)
    for events in (await events_of(engine), await events_of(dies)):
        end = events[-1]
        assert isinstance(end, CandidateEnd)
        assert end.finish_reason is FinishReason.TOOL_CALLS
        assert sum(isinstance(event, ToolCallStarted) for event in events) == 1
        (finished,) = [event for event in events if isinstance(event, ToolCallFinished)]
        assert finished.call.status is ToolCallStatus.COMPLETE
        fragments = [event.json_fragment for event in events if isinstance(event, ToolCallArguments)]
        assert "".join(fragments) == finished.call.arguments_json
        jsonschema.validate(json.loads(finished.call.arguments_json), schema)
    assert len(dies.requests) == 3
