"""Constrained answers that are continued, stopped by a token, or spelled like control tokens, on the real engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import grpc
import pytest
from penstock.config.schema import Config, EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.sampling import thought_tokens_in_prompt
from penstock.engine.vllm.start import start
from penstock.errors import EngineDown
from penstock.generation.control import GenerationControl, GenerationRun
from penstock.generation.generation import generate as generation
from penstock.generation.planner import plan_generation
from penstock.generation.usage import PriceList
from penstock.types import (
    CandidateEnd,
    Delta,
    EngineChunk,
    EngineRequest,
    Finished,
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
from tests.engine.kept import is_valid, keeps_constraint
from tests.engine.test_bad_requests import details, refusal
from tests.rpc.conftest import serving
from tests.unit.test_json_schema import written_by_tools

SCHEMA = {
    "type": "object",
    "properties": {"fine": {"type": "boolean"}, "sum": {"type": "integer", "minimum": 100, "maximum": 9999}},
    "required": ["fine", "sum"],
    "additionalProperties": False,
}
ENDS = (b'"', b",", b"]", b"}")
CHOICES = ("abcdefgh", "abcxyz", "bcdefghi")
CASES: dict[str, tuple[StructuredOutput, Callable[[str], object]]] = {
    "json": (
        StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        lambda text: is_valid(json.dumps(SCHEMA), text),
    ),
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
THOUGHTS = {
    "fast": ThinkingConfig(mode=ThinkingMode.FAST),
    "thought": ThinkingConfig(mode=ThinkingMode.THINKING),
    "cut thought": ThinkingConfig(mode=ThinkingMode.THINKING, budget_tokens=5),
}
DRAWS = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=1.5),
    "seeded": Sampling(temperature=1.5, seed=7),
}


class OneByOne:
    """The engine, which gives each token by itself, so that a count of events is a place in the answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests: list[EngineRequest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        async with aclosing(self._engine.stream(request)) as chunks:
            async for chunk in chunks:
                for token_id in chunk.token_ids[:-1]:
                    yield EngineChunk((token_id,), cached_tokens=chunk.cached_tokens)
                yield EngineChunk(chunk.token_ids[-1:], cached_tokens=chunk.cached_tokens, stop=chunk.stop)

    def interruption(self) -> None:
        return

    async def wait_until_available(self) -> None:
        return


class DiesTwice(OneByOne):
    """The engine, of which two runs end as by its death once they gave a token of the answer."""

    deaths = 0

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        markers = self._engine.card.markers
        in_thought = thought_tokens_in_prompt(request.prompt_token_ids, markers) is not None
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk
                if self.deaths < 2 and not in_thought:
                    self.deaths += 1
                    raise EngineDown("the engine is dead")
                in_thought &= markers.close_id not in chunk.token_ids


async def answer(engine: Any, request: Request, drains: Sequence[int] = ()) -> tuple[str, CandidateEnd]:
    """Return the answer over several servers, each but the last drained after so many events of the answer."""
    plan, text, states, finished = plan_generation(request, engine, Config()), "", (), None
    for count in (*drains, 10**9):
        control = GenerationControl()
        async for event in generation(engine, plan, PriceList(()), GenerationRun("g", 0.0, control, states)):
            if isinstance(event, Delta) and not event.is_thought:
                text += event.text
                count -= 1
                if not count:
                    control.drain()
            if isinstance(event, Finished):
                finished = event
        assert finished is not None
        states = json.loads(json.dumps(finished.states))
        if not states:
            break
    return text, finished.ends[0]


QUESTIONS = {
    "json": "What is 48 + 27 + 36?",
    "regex": "Repeat: cabcab",
    "grammar": "Repeat: (cabcdefgh)",
    "choices": "What is 17 + 25?",
}
"""Questions of a kind that the model was trained on. At others, the best two tokens that a form allows can be so near
that the same text, computed in other pieces after a death, has another best one."""


def request_of(kind: str, draw: str, thought: str) -> Request:
    return Request(
        messages=(Message(Role.USER, QUESTIONS[kind]),),
        thinking=THOUGHTS[thought],
        sampling=DRAWS[draw],
        output=Output(structured=CASES[kind][0], max_tokens=200),
    )


def assert_goes_on(engine: OneByOne, *, runs: int, thinks: bool) -> None:
    """Each run goes on from the tokens that were sent, and the constraint from those of the answer.

    `runs` are those that have to do with the answer. A thought in which the model drew the end of its message (at this
    temperature, two in a hundred) is closed, and has a run of its own before.
    """
    prompts = [request.prompt_token_ids for request in engine.requests]
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before
        assert len(after) > len(before)
    covered = [request.constrained_prompt_tokens for request in engine.requests]
    markers = engine.card.markers
    begins = [p[::-1].index(markers.close_id) if thinks else len(p) - len(prompts[0]) for p in prompts[1:]]
    assert covered == [0, *begins]
    grown = [count for count in covered if count]
    assert len(grown) >= runs - 1
    assert all(before < after for before, after in pairwise(grown))


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", CASES)
async def test_a_constrained_answer_goes_on_after_engine_deaths(
    engine: Engine, kind: str, draw: str, thought: str
) -> None:
    request, dies = request_of(kind, draw, thought), DiesTwice(engine)
    text, end = await answer(dies, request)
    assert_keeps(kind, text, end)
    assert_goes_on(dies, runs=3, thinks=thought != "fast")
    if draw == "greedy":
        assert text == (await answer(engine, request))[0]


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", CASES)
async def test_a_constrained_answer_goes_on_on_other_servers(
    engine: Engine, kind: str, draw: str, thought: str
) -> None:
    request, servers = request_of(kind, draw, thought), OneByOne(engine)
    text, end = await answer(servers, request, drains=(1, 1))
    assert_keeps(kind, text, end)
    assert_goes_on(servers, runs=2, thinks=thought != "fast")
    if draw == "greedy":
        assert text == (await answer(engine, request))[0]


def assert_keeps(kind: str, text: str, end: CandidateEnd) -> None:
    assert end.finish_reason in (FinishReason.STOP, FinishReason.MAX_OUTPUT_TOKENS)
    if end.finish_reason is FinishReason.STOP:
        assert CASES[kind][1](text), text


async def generate(channel: grpc.aio.Channel, *, fast: bool = True, **output: Any) -> pb.GenerateResponse:
    mode = pb.THINKING_MODE_FAST if fast else pb.THINKING_MODE_THINKING
    output = {"max_output_tokens": 300, **output}
    spec = hello(thinking=pb.ThinkingConfig(mode=mode), output=pb.OutputConfig(**output))
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return await stub.Generate(pb.GenerateRequest(spec=spec))


async def whole_of_forty(channel: grpc.aio.Channel, **sampling: Any) -> int:
    """Count the answers to forty schemas that ended. Each keeps its schema, a cut one as the start of a document."""
    schemas = list(written_by_tools())[:40]
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    room = asyncio.Semaphore(8)

    async def ended(name: str, schema: Any) -> bool:
        output = pb.OutputConfig(json_schema=json.dumps(schema), max_output_tokens=250)
        drawn = pb.SamplingConfig(temperature=1.3, seed=1, **sampling)
        thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
        async with room:
            spec = hello(thinking=thinking, output=output, sampling=drawn)
            candidate = (await stub.Generate(pb.GenerateRequest(spec=spec))).candidates[0]
        assert keeps_constraint(output, candidate), f"{name}: {candidate.answer}"
        return candidate.result.finish_reason == pb.FINISH_REASON_STOP

    return sum(await asyncio.gather(*(ended(*case) for case in schemas)))


async def test_answers_keep_forty_schemas_as_tools_write_them(channel: grpc.aio.Channel) -> None:
    # The small model hardly ever closes a free text.
    assert await whole_of_forty(channel) >= 10


@pytest.mark.full
async def test_answers_that_are_led_to_their_end_keep_forty_schemas() -> None:
    engine = await start(EngineSettings(mtp="off", kv_cache_gib=0.5))  # biases are not for drafts
    try:
        ends = {place: 12.0 for place in range(engine.card.vocab_size) if engine.tokenizer.token_bytes(place) in ENDS}
        async with serving(engine) as (_, channel):
            assert await whole_of_forty(channel, logit_bias=ends) >= 35
    finally:
        await engine.close()


@pytest.mark.parametrize("rest", [True, {}, {"type": "integer"}])
async def test_an_open_object_beside_its_properties_is_answered(channel: grpc.aio.Channel, rest: Any) -> None:
    named = {"fine": {"type": "boolean"}}
    schema = {"type": "object", "properties": named, "required": ["fine"], "additionalProperties": rest}
    output = {"json_schema": json.dumps(schema), "max_output_tokens": 40}
    candidate = (await generate(channel, **output)).candidates[0]
    assert keeps_constraint(pb.OutputConfig(**output), candidate), candidate.answer


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
