"""MTP and prefix caching change the speed, not the words: the same greedy tokens in all four combinations.

Kernels that take one token at a time and kernels that take many round differently, so two tokens whose logits lie
within bfloat16's resolution of each other may trade places, and so may two experts: then one token's logits jump, and
those after it are as before. Every difference is followed to its first token, and there both tokens must be nearly
alike, to the plain engine or to the reference model, which does not round; or to the reference two experts. All three
gaps are printed (`-s`).
"""

from __future__ import annotations

import asyncio
import random

import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.vllm.start import start
from penstock.types import Message, Role

from .conftest import run
from .reference import apart, reference, router_margins

PLAIN = ("off", "off")
COMBINATIONS = [("required", "required"), ("required", "off"), ("off", "required"), PLAIN]
CHUNK = 512
NEAR_TIE_NATS = 0.5
"""Logits of 32 to 64 are 0.25 apart in bfloat16, and two of them are compared."""
ROUTER_TIE_NATS = 0.016
"""Router logits of 2 to 4 are that far apart in bfloat16."""


def settings(mtp: str, prefix_caching: str) -> EngineSettings:
    return EngineSettings(
        mtp=mtp,
        prefix_caching=prefix_caching,
        max_batch_tokens=CHUNK,
        max_context_tokens=4096,
        kv_cache_gib=0.5,
    )


def prompts(tokenizer) -> list[tuple[tuple[int, ...], int]]:
    """200 prompts, each with the tokens to generate."""
    draw = random.Random(7)

    def question(system: str = "") -> tuple[int, ...]:
        numbers = " + ".join(str(draw.randint(1, 99)) for _ in range(draw.randint(2, 5)))
        turns = [Message(Role.SYSTEM, system)] if system else []
        return tuple(
            tokenizer.render([*turns, Message(Role.USER, f"What is {numbers}?")], thinking=draw.random() < 0.7)
        )

    def noise(length: int) -> tuple[int, ...]:
        return tuple(draw.randint(20, 500) for _ in range(length))

    head = "Add the numbers. " * 150  # several cache blocks
    stem = noise(1000)
    shared = [(question(head), 8) for _ in range(24)] + [(stem[: 380 * k] + noise(9), 8) for k in (1, 2) for _ in "abc"]
    single = [((token,), 6) for token in range(20, 500, 24)]
    leaves_one = [(noise(CHUNK + 1), 6) for _ in range(16)] + [(noise(2 * CHUNK + 1), 6) for _ in range(4)]
    blocks = [(noise(length), 6) for length in (384, 385, 767, 768, 769, 1152, 1153, 1537, 2000, 3000)]
    crossing = [(noise(length), 24) for length in (372, 376, 380, 383, 756, 760, 764, 767)]  # a boundary while decoding
    some = [*shared, *single, *leaves_one, *blocks, *crossing, *blocks, *crossing]
    return some + [(question(), 24) for _ in range(200 - len(some))]


async def answers(engine, request_for, asked) -> list[list[int]]:
    """Three waves: prefixes are shared with what came before as well as with what runs beside."""
    wave = -(-len(asked) // 3)
    parts = [asked[start : start + wave] for start in range(0, len(asked), wave)]
    found: list[list[int]] = []
    for part in parts:
        done = await asyncio.gather(*(run(engine, request_for(prompt, limit)) for prompt, limit in part))
        found += [tokens for tokens, _ in done]
    return found


async def gap(engine, request_for, prompt, one: int, other: int) -> float:
    """How much likelier the plain engine finds `one` than `other` after the prompt, in nats."""
    _, chunks = await run(engine, request_for(prompt, 1, top_logprobs=20))
    top = {entry.token_id: entry.logprob for entry in chunks[0].logprobs[0].top}
    return abs(top.get(one, -99.0) - top.get(other, -99.0))


async def differences(engine, request_for, asked, plain, other) -> list[tuple[float, float, float]]:
    """(token gap, the reference's, its router gap) in nats at the first token of each answer that differs."""
    found, model = [], reference()
    for (prompt, _), left, right in zip(asked, plain, other, strict=True):
        if left == right:
            continue
        same = next(place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
        context = prompt + tuple(left[:same])
        rounded = await gap(engine, request_for, context, left[same], right[same])
        exact = apart(model, context, left[same], right[same])
        found.append((round(rounded, 3), round(exact, 3), round(min(router_margins(model, context)), 4)))
    return sorted(found)


@pytest.mark.timeout(1800)  # four engines; some thirteen minutes on a CPU without AVX-512
async def test_the_same_greedy_tokens_in_all_combinations(request_for):
    asked, found = [], {}
    for combination in COMBINATIONS:
        engine = await start(settings(*combination))
        asked = asked or prompts(engine.tokenizer)
        found[combination] = await answers(engine, request_for, asked)
        if combination != PLAIN:
            await engine.close()
    assert len(asked) == 200
    try:
        for combination, tokens in found.items():
            differ = await differences(engine, request_for, asked, found[PLAIN], tokens)
            print(
                f"\nmtp {combination[0]}, prefix caching {combination[1]}: {200 - len(differ)} of 200 the same", end=""
            )
            print(f"; (token gap, reference's, router gap) in nats where not: {differ}" if differ else "")
            for rounded, exact, router_gap in differ:
                # Without AVX-512 the engine has found 0.80 where the reference finds 0.44.
                assert min(rounded, exact) < NEAR_TIE_NATS or router_gap < ROUTER_TIE_NATS
            assert len(differ) <= 20
    finally:
        await engine.close()
