"""Compute tokens per second at a concurrency from the steps, including the reading of prompts. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock_bench.capacity.memory import Memory, Setup
from penstock_bench.capacity.roofline import Assumptions, Roofline, Step


@dataclass(frozen=True, slots=True)
class Mix:
    """One request, in tokens. `cached_share` of the input comes from the prefix cache.

    The input's tokens include those of `images` images, of `tokens_per_image` tokens each.
    """

    input_tokens: int
    thought_tokens: int
    answer_tokens: int
    cached_share: float = 0.0
    images: int = 0
    tokens_per_image: int = 0

    @property
    def image_tokens(self) -> int:
        """Return the tokens of the input that stand for images."""
        return self.images * self.tokens_per_image

    @property
    def output_tokens(self) -> int:
        """Return the output tokens of a request, thought plus answer."""
        return self.thought_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        """Return the input plus output tokens of a request."""
        return self.input_tokens + self.output_tokens

    @property
    def mean_context_tokens(self) -> float:
        """Return the mean context while the request is answered."""
        return self.input_tokens + self.output_tokens / 2

    @property
    def read_tokens(self) -> float:
        """Return the input tokens that are not in the prefix cache."""
        return self.input_tokens * (1 - self.cached_share)


@dataclass(frozen=True, slots=True)
class Correction:
    """A calibration: a step takes `factor` x computed seconds + `extra_seconds`; prompts have their own factor."""

    decode_factor: float = 1.0
    decode_extra_seconds: float = 0.0
    prefill_factor: float = 1.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Speed of all replicas together: decoding alone, prompts alone, and both in the mix's proportion."""

    concurrency: int
    fits: bool
    step: Step = field(repr=False)
    step_seconds: float
    tokens_per_step: float
    decode_tokens_per_second: float
    prompt_tokens_per_second: float
    requests_per_second: float

    def output_tokens_per_second(self, mix: Mix) -> float:
        """Return the output tokens per second of all requests."""
        return self.requests_per_second * mix.output_tokens

    @property
    def stream_tokens_per_second(self) -> float:
        """Return the tokens per second of one stream while no prompt is read."""
        return self.tokens_per_step / self.step_seconds


def tokens_per_step(drafted: int, acceptance: tuple[float, ...]) -> float:
    """Return the tokens per step: one, and each draft that is accepted together with all drafts before it.

    Positions beyond the list have its last share.
    """
    total = reached = 1.0
    for number in range(drafted):
        reached *= acceptance[min(number, len(acceptance) - 1)]
        total += reached
    return total


# Machine and model, the load, and the calibration: each comes from another part of a plan.
def point(
    setup: Setup, memory: Memory, assumed: Assumptions, mix: Mix, concurrency: int, correction: Correction
) -> Point:
    """Return the speed while `concurrency` requests are always running."""
    roofline = Roofline(setup, memory.cache, assumed)
    sequences = math.ceil(concurrency / setup.layout.data)
    step = roofline.decode(sequences, mix.mean_context_tokens)
    seconds = step.seconds * correction.decode_factor + correction.decode_extra_seconds
    each = tokens_per_step(setup.drafted, assumed.acceptance)
    decode = concurrency * each / seconds
    reading = roofline.prefill(mix.input_tokens)
    per_token = reading.seconds / reading.tokens
    # Images are encoded by steps of the tower, between those that read the prompt.
    per_token += mix.images * roofline.encode_seconds(mix.tokens_per_image) / mix.input_tokens
    prompt = setup.layout.data / (per_token * correction.prefill_factor)
    return Point(
        concurrency=concurrency,
        fits=concurrency <= ceiling(setup, memory, mix.total_tokens),
        step=step,
        step_seconds=seconds,
        tokens_per_step=each,
        decode_tokens_per_second=decode,
        prompt_tokens_per_second=prompt,
        requests_per_second=1 / (mix.read_tokens / prompt + mix.output_tokens / decode),
    )


def ceiling(setup: Setup, memory: Memory, tokens: int) -> int:
    """Return the largest concurrency that the memory and the scheduler's limit allow."""
    if not memory.fits:
        return 0
    by_memory = int(memory.cache.sequences(memory.cache_bytes, tokens)) * setup.layout.data
    return min(by_memory, setup.max_sequences * setup.layout.data)


def concurrencies(most: int, asked: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return the given concurrencies, or 1, 2, 4 and so on up to the largest one."""
    if asked:
        return tuple(sorted(set(asked)))
    doubling = [2**power for power in range(max(1, most).bit_length()) if 2**power < most]
    return (*doubling, max(1, most))
