"""The demo model in FP8 on the real engine, alone and over two processes, beside its bfloat16 self."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.sizing.weights import inventory, weight_bytes
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.engine.vllm.fp8.write import write
from penstock.engine.vllm.start import start
from penstock.types import Message, Role

from .conftest import run

QUESTIONS = [f"What is {17 * k % 90 + 3} + {31 * k % 80 + 5} + {7 * k % 60}?" for k in range(1, 25)]
WAYS = {"bfloat16": {"fp8": False}, "fp8": {"fp8": True}, "fp8 on two": {"fp8": True, "tensor_parallel_size": 2}}


@pytest.fixture(scope="module")
async def found(tmp_path_factory, request_for_module):
    """Per way: the tokens of every question, and the bytes of weights per worker and element type."""
    fp8 = tmp_path_factory.mktemp("checkpoint") / "fp8"
    write(DEMO_MODEL_DIR, fp8)
    found = {}
    for name, way in WAYS.items():
        way = dict(way)
        model = str(fp8 if way.pop("fp8") else DEMO_MODEL_DIR)
        engine = await start(EngineSettings(model=model, max_context_tokens=4096, kv_cache_gib=0.2, **way))
        try:
            prompts = [tuple(engine.tokenizer.render([Message(Role.USER, text)], thinking=True)) for text in QUESTIONS]
            runs = await asyncio.gather(*(run(engine, request_for_module(prompt, 60)) for prompt in prompts))
            found[name] = [tokens for tokens, _ in runs], await engine.weight_bytes(), engine.card.profile
        finally:
            await engine.close()
    return found


@pytest.fixture(scope="module")
def request_for_module():
    from penstock.types import EngineRequest

    from .conftest import GREEDY

    numbers = iter(range(10_000))
    return lambda prompt, limit: EngineRequest(f"fp8-{next(numbers)}", prompt, limit, 0, GREEDY)


@pytest.mark.timeout(600)
def test_weights_take_two_thirds_of_the_memory(found):
    """The embeddings, the head and the vision tower stay in bfloat16, a fourth of this small model."""
    sizes = {name: [sum(worker.values()) for worker in weights] for name, (_, weights, _) in found.items()}
    print(f"\nbytes of weights per worker: {sizes}")
    assert sum(sizes["fp8"]) <= 0.66 * sum(sizes["bfloat16"])
    assert len(sizes["fp8 on two"]) == 2
    assert max(sizes["fp8 on two"]) < 0.6 * sizes["fp8"][0]


def test_weights_are_those_on_paper_on_one_worker_and_on_two(found):
    """Over two, FP8 layers have more scales than the checkpoint: blocks are cut with the layer."""
    found_here = read_checkpoint(str(DEMO_MODEL_DIR))
    shape, tower = read_shape(found_here.text), found_here.tower("required")
    assert tower is not None
    seen = vision_weight_bytes(tower)
    held = {name: [Counter(worker) for worker in weights] for name, (_, weights, _) in found.items()}
    assert sum(held["bfloat16"][0].values()) == weight_bytes(shape, fp8=False) + seen
    assert sum(held["fp8"][0].values()) == weight_bytes(shape, fp8=True) + seen
    halves = sum(matrix.elements for matrix in inventory(shape) if matrix.fp8) / 2
    assert [worker["float8_e4m3fn"] for worker in held["fp8 on two"]] == [halves, halves]


def test_greedy_answers_agree(found):
    (plain, _, _), (fp8, _, _) = found["bfloat16"], found["fp8"]
    same = sum(one == other for one, other in zip(plain, fp8, strict=True))
    tokens = [
        sum(a == b for a, b in zip(one, other, strict=False)) / len(one) for one, other in zip(plain, fp8, strict=True)
    ]
    print(f"\nfp8 and bfloat16 agree: {same} of {len(plain)} whole, {sum(tokens) / len(tokens):.3f} of tokens by place")
    assert sum(tokens) / len(tokens) > 0.5


def test_two_processes_say_the_same(found):
    (one, _, _), (two, _, profile) = found["fp8"], found["fp8 on two"]
    same = sum(a == b for a, b in zip(one, two, strict=True))
    print(f"\none and two processes agree: {same} of {len(one)}")
    # A sum over two halves is rounded once more: a tie may fall the other way.
    assert same >= len(one) - 2
    assert {feature.name: feature.value for feature in profile}["tensor_parallel"] == "2"
