"""Calls with images, for tests of the real engine with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.engine.base import Engine
from penstock.types import EngineRequest, Image, Message, Role, Sampling
from penstock_proto.v1 import generation_pb2 as pb

GREEDY = Sampling(temperature=0.0)


async def shown(
    engine: Engine, *data: bytes, said: str = "What is in these?"
) -> tuple[tuple[int, ...], tuple[Image, ...]]:
    """A prompt with images before its text, and the images."""
    images = [Image(one, "image/png", 0, "spec") for one in data]
    images = [replace(image, tokens=await engine.image_tokens(image, "caller")) for image in images]
    message = Message(Role.USER, said, images=tuple(images))
    return tuple(engine.tokenizer.render([message], thinking=True)), engine.tokenizer.shown_images([message])


async def run(
    engine: Engine, name: str, ids: Sequence[int], images: tuple[Image, ...], most: int, **fields: object
) -> tuple[list[int], int, list[float]]:
    """The tokens, how many of the prompt were cached, and the log probability of each."""
    fields = {"sampling": GREEDY, "banned_token_ids": tuple(engine.card.image_token_ids), **fields}
    request = EngineRequest(name, tuple(ids), most, most, images=images, **fields)  # type: ignore[arg-type]
    tokens: list[int] = []
    logprobs: list[float] = []
    cached = 0
    async for chunk in engine.stream(request):
        tokens += chunk.token_ids
        logprobs += [one.sampled.logprob for one in chunk.logprobs]
        cached = chunk.cached_tokens
    return tokens, cached, logprobs


def spec(said: str, images: Sequence[bytes], budget: int, sampling: pb.SamplingConfig) -> pb.GenerationSpec:
    parts = [pb.Part(image=pb.Image(mime_type="image/png", data=data)) for data in images]
    return pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=[*parts, pb.Part(text=said)])]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=budget),
        sampling=sampling,
        output=pb.OutputConfig(max_output_tokens=budget + 8),
    )
