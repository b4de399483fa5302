"""The same questions for every contender: sums that the demo model works out in a thought, greedily."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_TERMS = 8
MAX_TOKENS = 192  # far beyond what the model needs; it ends by itself


@dataclass(frozen=True, slots=True)
class Job:
    """Define what each stream asks, one question after the other."""

    questions: tuple[tuple[str, ...], ...]


def job(streams: int, per_stream: int, seed: int) -> Job:
    """Questions of their own for each stream; the same for the same seed."""
    dice = random.Random(seed)

    def question() -> str:
        return f"What is {' + '.join(str(dice.randint(11, 99)) for _ in range(_TERMS))}?"

    return Job(tuple(tuple(question() for _ in range(per_stream)) for _ in range(streams)))


def long_job(streams: int, per_stream: int, seed: int, tokens: int, count: Callable[[str], int]) -> Job:
    """Questions whose prompts have so many tokens by `count`, or the fewest beyond them; no two begin alike.

    Raises ValueError where the template alone has more.
    """
    dice = random.Random(seed)
    if count("") > tokens:
        raise ValueError(f"a prompt of {tokens} tokens is too short for the template")

    def question() -> str:
        text = "".join(str(dice.randint(0, 9)) for _ in range(tokens))
        low, high = 0, len(text)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count(text[:middle]) >= tokens else (middle + 1, high)
        return text[:low]

    return Job(tuple(tuple(question() for _ in range(per_stream)) for _ in range(streams)))
