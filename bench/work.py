"""Make the same questions for each contender: sums that the demo model works out in a greedy thought."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_TERMS = 8
MAX_TOKENS = 192  # The model needs far fewer and ends by itself.


@dataclass(frozen=True, slots=True)
class Job:
    """The questions of each stream, which it asks one after the other."""

    questions: tuple[tuple[str, ...], ...]


def job(streams: int, per_stream: int, seed: int) -> Job:
    """Return other questions for each stream; the same seed gives the same ones."""
    dice = random.Random(seed)

    def question() -> str:
        return f"What is {' + '.join(str(dice.randint(11, 99)) for _ in range(_TERMS))}?"

    return Job(tuple(tuple(question() for _ in range(per_stream)) for _ in range(streams)))


def long_job(streams: int, per_stream: int, seed: int, tokens: int, count: Callable[[str], int]) -> Job:
    """Return questions whose prompts have `tokens` tokens by `count`, or slightly more. No two begin alike.

    Raises ValueError if the template alone has more tokens.
    """
    dice = random.Random(seed)
    if count("") > tokens:
        raise ValueError(f"the prompt must be longer than the template, got {tokens} tokens")

    def question() -> str:
        text = "".join(str(dice.randint(0, 9)) for _ in range(tokens))
        low, high = 0, len(text)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count(text[:middle]) >= tokens else (middle + 1, high)
        return text[:low]

    return Job(tuple(tuple(question() for _ in range(per_stream)) for _ in range(streams)))
