"""Constrained answers that are continued, stopped by a token, or spelled like control tokens, on the real engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import jsonschema
import pytest
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock.errors import EngineDown
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
)
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello
from tests.engine.test_bad_requests import details, refusal
from tests.unit.test_json_schema import written_by_tools

SCHEMA = {
    "type": "object",
    "properties": {"fine": {"type": "boolean"}, "sum": {"type": "integer", "minimum": 100, "maximum": 9999}},
    "required": ["fine", "sum"],
    "additionalProperties": False,
}
CHOICES = ("abcdefgh", "abcxyz", "bcdefghi")
CASES: dict[str, tuple[StructuredOutput, Callable[[str], object]]] = {
    "json": (StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(SCHEMA)), json.loads),
    "regex": (
        StructuredOutput(StructuredKind.REGEX, "[a-c]{12}(x|yz){4}"),
        lambda text: re.fullmatch("[a-c]{12}(x|yz){4}", text),
    ),
    "grammar": (
        StructuredOutput(StructuredKind.GRAMMAR, 'root ::= "(" root ")" | "abcdefgh" | "c" root'),
        lambda text: text.count("(") == text.count(")") and "abcdefgh" in text,
    ),
    "choices": (StructuredOutput(StructuredKind.CHOICE, choices=CHOICES), lambda text: text in CHOICES),
}
DRAWS = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=1.5),
    "seeded": Sampling(temperature=1.5, seed=7),
}


class DiesTwice:
    """The engine, whose first two runs end as by its death once they gave one token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests: list[EngineRequest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        dies = len(self.requests) < 3
        async for chunk in self._engine.stream(request):
            # With drafts one step may hold a whole short answer: its first token alone is sent.
            yield EngineChunk(chunk.token_ids[:1], cached_tokens=chunk.cached_tokens) if dies else chunk
            if dies:
                raise EngineDown("the engine is dead")

    def interruption(self) -> None:
        return

    async def wait_until_available(self) -> None:
        return


async def answer(engine: Any, structured: StructuredOutput, draw: Sampling) -> tuple[str, CandidateEnd]:
    request = Request(
        messages=(Message(Role.USER, "What is 17 + 25?"),),
        thinking=ThinkingConfig(mode=ThinkingMode.FAST),
        sampling=draw,
        output=Output(structured=structured, max_tokens=200),
    )
    candidate = Candidate(engine, plan_generation(request, engine, Config()), 0, GenerationRun("g", 0.0))
    events = [event async for event in candidate.events()]
    end = events[-1]
    assert isinstance(end, CandidateEnd)
    return "".join(event.text for event in events if isinstance(event, Delta)), end


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", CASES)
async def test_a_constrained_answer_goes_on_after_engine_deaths(engine: Engine, kind: str, draw: str) -> None:
    structured, keeps = CASES[kind]
    dies = DiesTwice(engine)
    text, end = await answer(dies, structured, DRAWS[draw])
    assert end.finish_reason in (FinishReason.STOP, FinishReason.MAX_OUTPUT_TOKENS)
    if end.finish_reason is FinishReason.STOP:
        assert keeps(text), text
    assert len(dies.requests) == 3
    # Each run goes on from the tokens that were sent: none is drawn twice.
    prefixes = [request.constrained_prompt_tokens for request in dies.requests]
    assert prefixes[0] == 0 < prefixes[1] < prefixes[2]
    assert dies.requests[2].prompt_token_ids[: len(dies.requests[1].prompt_token_ids)] == (
        dies.requests[1].prompt_token_ids
    )


async def test_a_greedy_answer_is_the_same_with_deaths_and_without(engine: Engine) -> None:
    structured, _ = CASES["json"]
    alone, _ = await answer(engine, structured, DRAWS["greedy"])
    assert (await answer(DiesTwice(engine), structured, DRAWS["greedy"]))[0] == alone


async def generate(channel: grpc.aio.Channel, *, fast: bool = True, **output: Any) -> pb.GenerateResponse:
    mode = pb.THINKING_MODE_FAST if fast else pb.THINKING_MODE_THINKING
    output = {"max_output_tokens": 300, **output}
    spec = hello(thinking=pb.ThinkingConfig(mode=mode), output=pb.OutputConfig(**output))
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return await stub.Generate(pb.GenerateRequest(spec=spec))


async def test_answers_keep_forty_schemas_as_tools_write_them(channel: grpc.aio.Channel) -> None:
    schemas = list(written_by_tools())[:40]
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    room = asyncio.Semaphore(8)

    async def ended(name: str, schema: Any) -> bool:
        output = pb.OutputConfig(json_schema=json.dumps(schema), max_output_tokens=250)
        sampling = pb.SamplingConfig(temperature=1.3, seed=1)
        thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
        async with room:
            spec = hello(thinking=thinking, output=output, sampling=sampling)
            candidate = (await stub.Generate(pb.GenerateRequest(spec=spec))).candidates[0]
        if candidate.result.finish_reason != pb.FINISH_REASON_STOP:
            return False
        jsonschema.validate(json.loads(candidate.answer), schema)
        return True

    results = await asyncio.gather(*(ended(*case) for case in schemas))
    print(f"{sum(results)} of {len(results)} answers ended")
    assert sum(results) >= 10


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ({"json_schema": '{"type": "object", "not": {}}'}, "not at /not"),
        ({"json_schema": '{"$ref": "https://example.com/s.json"}'}, "$ref at /$ref"),
        ({"json_schema": '{"type": "string", "pattern": "a(?=b)"}'}, "'(?=b' at offset 1"),
        ({"regex": "a$b"}, "'$' at offset 1"),
        ({"regex": "(?i)a"}, "'(?i)' at offset 0"),
    ],
)
async def test_what_cannot_be_kept_is_refused_by_its_part(
    channel: grpc.aio.Channel, output: dict[str, str], part: str
) -> None:
    error = await refusal(channel, hello(output=pb.OutputConfig(**output)))
    violation = details(error)[1].field_violations[0]
    assert (violation.field, violation.reason) == (f"spec.output.{next(iter(output))}", "INVALID_FIELD")
    assert part in violation.description


@pytest.mark.parametrize("regex", [r"\Aab\Z", r"\n[ab]", r"(?:x|\"\\\\){3}"])
@pytest.mark.parametrize("fast", [True, False])
async def test_the_whole_answer_matches_the_regex(channel: grpc.aio.Channel, regex: str, fast: bool) -> None:
    answer = (await generate(channel, fast=fast, regex=regex)).candidates[0].answer
    assert re.fullmatch(regex, answer), answer


async def test_a_stop_token_that_the_schema_needs_stops_there_and_harms_nobody(
    engine: Engine, channel: grpc.aio.Channel
) -> None:
    schema = json.dumps(SCHEMA)
    whole = (await generate(channel, json_schema=schema, return_token_ids=True)).candidates[0]
    brace = whole.answer_token_ids[-2]
    assert engine.tokenizer.token_bytes(brace).endswith(b"}")
    stopped = (await generate(channel, json_schema=schema, stop_token_ids=[brace])).candidates[0]
    assert stopped.result.finish_reason == pb.FINISH_REASON_STOP_TOKEN
    assert whole.answer.startswith(stopped.answer)
    assert (await generate(channel, json_schema=schema)).candidates[0].answer == whole.answer


@pytest.mark.parametrize(
    "choices",
    [
        ["\nx"],
        ["\n\n"],
        ["</think>"],
        ["<|im_end|>", "<|im_start|>x"],
        ['say "a\\b"', "tab\there"],
        ["naïve ☃ 𝄞"],
        ["ab", "abc", "abcd"],
    ],
)
@pytest.mark.parametrize("fast", [True, False])
async def test_an_answer_is_exactly_a_choice(channel: grpc.aio.Channel, choices: list[str], fast: bool) -> None:
    reply = await generate(channel, fast=fast, choices=pb.Choices(choices=choices))
    assert reply.candidates[0].answer in choices
