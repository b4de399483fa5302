"""Make the text questions of the small model: seven kinds that need steps, six that need none, in six languages.

A question is a pure function of a `random.Random`, so a seed determines a question. The thought is the canonical
working (one step per line) with its checks, and depends on the question alone. So greedy decoding can be compared token
by token, and speculative drafts can be right.
"""

import random
import zlib

from models.small import arithmetic, small_talk, stories
from models.small.languages import LANGUAGES
from models.small.question import Question

MULTI_STEP = {
    kind.__name__: kind
    for kind in (
        arithmetic.chain,
        arithmetic.steps,
        stories.units,
        arithmetic.rank,
        stories.story,
        stories.shop,
        arithmetic.follow_up,
    )
}
NO_THOUGHT_NEEDED = {
    kind.__name__: kind
    for kind in (
        arithmetic.tiny_sum,
        arithmetic.larger,
        small_talk.echo,
        small_talk.greet,
        small_talk.who,
        small_talk.scope,
    )
}
KINDS = MULTI_STEP | NO_THOUGHT_NEEDED

HELD_OUT_SEED = 1_000_000_000
"""Training draws seeds below this one; evaluation uses this one and those above."""


def question(kind: str, language: str, seed: int) -> Question:
    """Return the question of `kind` in `language` for `seed`.

    Seeds alone would not separate the sets, because two seeds can draw the same numbers. So one text in eight of the
    multi-step kinds is reserved. Seeds from HELD_OUT_SEED draw again until their text is reserved, the others until it
    is not.
    """
    rng = random.Random(f"{kind}:{language}:{seed}")
    asked = KINDS[kind](rng, LANGUAGES[language])
    while kind in MULTI_STEP and is_reserved(_whole(asked)) != (seed >= HELD_OUT_SEED):
        asked = KINDS[kind](rng, LANGUAGES[language])
    return asked


def is_reserved(text: str) -> bool:
    """Return whether a text is reserved for evaluation: one in eight."""
    return zlib.crc32(text.encode()) % 8 == 0


def _whole(asked: Question) -> str:
    return "\n".join([*(text for turn in asked.earlier for text in turn), asked.text])


def held_out(kind: str, language: str, count: int, offset: int = 0) -> list[Question]:
    """Return questions with seeds that training never draws."""
    first = HELD_OUT_SEED + offset
    return [question(kind, language, seed) for seed in range(first, first + count)]
