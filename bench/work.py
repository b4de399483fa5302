"""The same questions for every contender: sums that the demo model works out in a thought, greedily."""

from __future__ import annotations

import random
from dataclasses import dataclass

_TERMS = 8
MAX_TOKENS = 192  # far beyond what the model needs; it ends by itself


@dataclass(frozen=True, slots=True)
class Job:
    """What each stream asks, one question after the other."""

    questions: tuple[tuple[str, ...], ...]


def job(streams: int, per_stream: int, seed: int) -> Job:
    """Questions of their own for each stream; the same for the same seed."""
    dice = random.Random(seed)

    def question() -> str:
        return f"What is {' + '.join(str(dice.randint(11, 99)) for _ in range(_TERMS))}?"

    return Job(tuple(tuple(question() for _ in range(per_stream)) for _ in range(streams)))
