"""The engine's border on the real vLLM: chunks, stops, aborts, constraints and bans."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import pytest
from penstock.engine.base import Engine
from penstock.engine.vllm.engine import _logprobs
from penstock.errors import BadRequest, EngineRefused
from penstock.types import EngineRequest, EngineStop, Sampling, StructuredKind, StructuredOutput

from .conftest import run


async def until(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 # the engine's counts have no event
            await asyncio.sleep(0.01)


async def test_the_length_limit_ends_a_run(engine, thinking_prompt, request_for):
    eos = tuple(engine.card.eos_ids)
    tokens, chunks = await run(engine, request_for(thinking_prompt, 12, banned_token_ids=eos))
    assert len(tokens) == 12
    assert [chunk.stop for chunk in chunks] == [None] * (len(chunks) - 1) + [EngineStop.LENGTH]
    assert chunks[0].queue_seconds is not None


async def test_a_stop_token_is_the_last_token(engine, thinking_prompt, request_for):
    tokens, _ = await run(engine, request_for(thinking_prompt, 12))
    stop = tokens[5]
    again, chunks = await run(engine, request_for(thinking_prompt, 12, stop_token_ids=(stop,)))
    assert again == tokens[: tokens.index(stop) + 1]
    assert chunks[-1].stop is EngineStop.STOP_TOKEN


async def test_min_tokens_holds(engine, fast_prompt, request_for):
    tokens, _ = await run(engine, request_for(fast_prompt, 40, min_tokens=40))
    assert len(tokens) == 40


async def test_a_prompt_of_one_token(engine, request_for):
    for token_id in (5, 99):
        tokens, _ = await run(engine, request_for((token_id,), 3, min_tokens=3))
        assert len(tokens) == 3


@pytest.mark.parametrize("extra", [0, 1, 2])
async def test_a_prompt_that_leaves_a_short_last_chunk(engine, engine_settings, request_for, extra):
    prompt = tuple(10 + place % 400 for place in range(engine_settings.max_batch_tokens + extra))
    tokens, _ = await run(engine, request_for(prompt, 3, min_tokens=3))
    assert len(tokens) == 3


async def test_closing_the_stream_frees_the_engine(engine, thinking_prompt, request_for):
    eos = tuple(engine.card.eos_ids)
    stream = engine.stream(request_for(thinking_prompt, 5000, banned_token_ids=eos))
    await anext(stream)
    await until(lambda: engine.load().running_requests == 1)
    await stream.aclose()
    await until(lambda: engine.load().running_requests == 0)
    assert engine.load().waiting_requests == 0


async def test_load_has_measured_times(engine, thinking_prompt, request_for):
    await run(engine, request_for(thinking_prompt, 20))
    load = engine.load()
    assert load.steps > 10
    assert load.seconds_per_token > 0
    assert load.first_token_seconds > 0


async def test_banned_tokens_are_never_drawn(engine, thinking_prompt, request_for):
    free = Sampling(temperature=2.0, seed=3)
    common, _ = await run(engine, request_for(thinking_prompt, 60, min_tokens=60, sampling=free))
    markers = engine.card.markers
    banned = (markers.open_id, markers.close_id, *engine.card.eos_ids)
    names = [token for token in dict.fromkeys(common) if engine.tokenizer.name_of(token)][:20]
    banned = tuple(dict.fromkeys((*banned, *names)))
    tokens, _ = await run(engine, request_for(thinking_prompt, 60, sampling=free, banned_token_ids=banned))
    assert len(tokens) == 60
    assert not set(tokens) & set(banned)


@pytest.mark.parametrize("top", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_logprobs_come_with_every_token(engine, thinking_prompt, request_for, top, temperature):
    sampling = Sampling(temperature=temperature, seed=1)
    request = request_for(thinking_prompt, 12, sampling=sampling, top_logprobs=top)
    tokens, chunks = await run(engine, request)
    found = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.sampled.token_id for entry in found] == tokens
    for entry in found:
        assert [one.rank for one in entry.top] == list(range(1, top + 1))
        logprobs = [0.0, *(one.logprob for one in entry.top)]
        assert logprobs == sorted(logprobs, reverse=True)
        assert entry.sampled.logprob <= min(logprobs[:2])


def test_the_least_likely_alternative_is_told_where_it_was_drawn():
    entry = {token: SimpleNamespace(logprob=-float(rank), rank=rank) for token, rank in ((9, 2), (4, 1))}
    (told,) = _logprobs((9,), [entry], 2)
    assert (told.sampled.token_id, [one.token_id for one in told.top]) == (9, [4, 9])
    outside = entry | {7: SimpleNamespace(logprob=-3.0, rank=3)}
    (told,) = _logprobs((7,), [outside], 2)
    assert (told.sampled.token_id, [one.token_id for one in told.top]) == (7, [4, 9])


@pytest.mark.parametrize("thought", [None, 0, 6])
@pytest.mark.parametrize(
    ("constraint", "matches"),
    [
        (StructuredOutput(StructuredKind.CHOICE, choices=("yes", "no")), r"yes|no"),
        (StructuredOutput(StructuredKind.REGEX, spec="[a-c]{3}-[0-9]{4}"), r"[a-c]{3}-[0-9]{4}"),
        (StructuredOutput(StructuredKind.GRAMMAR, spec='root ::= "x" | "(" root ")"'), r"\(*x\)*"),
    ],
    ids=["choice", "regex", "grammar"],
)
async def test_a_constraint_holds_in_the_answer_alone(
    engine, thinking_prompt, fast_prompt, request_for, constraint, matches, thought
):
    close = engine.card.markers.close_id
    prompt = fast_prompt if thought is None else thinking_prompt
    request = request_for(
        prompt, 60, sampling=Sampling(temperature=1.0, seed=11), thought_budget_tokens=thought, structured=constraint
    )
    tokens, _ = await run(engine, request)
    if thought is not None:
        assert tokens.index(close) <= thought
        tokens = tokens[tokens.index(close) + 1 :]
    text = b"".join(engine.tokenizer.token_bytes(token) for token in tokens).decode()
    assert re.fullmatch(matches, text), text


async def test_a_json_schema_holds_and_a_continuation_after_the_thought_obeys(engine, thinking_prompt, request_for):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2, 3]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    constraint = StructuredOutput(StructuredKind.JSON_SCHEMA, spec=json.dumps(schema))
    prompt = (*thinking_prompt, *engine.tokenizer.encode("17 and 25\n</think>\n\n"))
    # JSON may be spaced at will, and a model that never saw any spaces without end.
    vocabulary = range(engine.card.vocab_size)
    blanks = tuple(token for token in vocabulary if (engine.tokenizer.token_bytes(token) or b"").isspace())
    tokens, _ = await run(engine, request_for(prompt, 60, structured=constraint, banned_token_ids=blanks))
    text = b"".join(engine.tokenizer.token_bytes(token) for token in tokens).decode()
    assert json.loads(text)["n"] in (1, 2, 3)


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        (StructuredOutput(StructuredKind.JSON_SCHEMA, spec="{not json"), "spec.output.json_schema"),
        (StructuredOutput(StructuredKind.REGEX, spec="[a-"), "spec.output.regex"),
        (StructuredOutput(StructuredKind.GRAMMAR, spec="root ::= nowhere"), "spec.output.grammar"),
    ],
    ids=["json", "regex", "grammar"],
)
async def test_a_constraint_that_cannot_be_compiled_is_the_callers(engine, fast_prompt, request_for, constraint, field):
    with pytest.raises(BadRequest) as raised:
        await run(engine, request_for(fast_prompt, 8, structured=constraint))
    assert raised.value.violations[0].field == field
    await engine.check()


async def test_speculation_is_counted(engine, thinking_prompt, request_for):
    on = next(feature for feature in engine.card.profile if feature.name == "mtp").enabled
    _, chunks = await run(engine, request_for(thinking_prompt, 20))
    last = chunks[-1]
    assert on == (last.drafted_tokens is not None)
    if on:
        assert 0 <= last.accepted_tokens <= last.drafted_tokens


def test_a_ban_that_model_runner_v2_cannot_hold_is_refused(engine: Engine) -> None:
    """V2 dies of more than 1,024 allowed tokens: a request that needs the list is refused there, and served on V1."""
    from dataclasses import replace

    from penstock.engine.vllm.sampling import MAX_ALLOWED_TOKEN_IDS, sampling_params
    from vllm.v1.worker.gpu.sample import logit_bias

    assert logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS == MAX_ALLOWED_TOKEN_IDS
    assert logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS >= 1024
    assert 64 + len(engine.card.eos_ids) <= logit_bias.MAX_NUM_STOP_TOKEN_IDS
    request = EngineRequest("banned", (20,), 4, 0, Sampling(temperature=0.0), banned_token_ids=(21,))
    v1 = replace(engine.card, vocab_size=150_000)
    v2 = replace(v1, profile=tuple(replace(f, value="V2") if f.name == "model_runner" else f for f in v1.profile))
    assert len(sampling_params(request, v1, lambda _: None).allowed_token_ids or ()) == v1.vocab_size - 1
    with pytest.raises(EngineRefused, match=r"at most 1024 tokens, got 1 to ban and 149999 to allow"):
        sampling_params(request, v2, lambda _: None)
    assert sampling_params(request, v2, lambda _: "word").bad_words == ["word"]
