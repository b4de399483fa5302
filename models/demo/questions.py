"""Make the questions of the demo task: six kinds that need several steps, six that need none.

A question is a pure function of a `random.Random`, so a seed determines a question. The thought is the canonical
working (one step per line) and depends on the question alone. So greedy decoding can be compared token by token, and
speculative drafts can be right.
"""

import random
import zlib

from models.demo import multi_step, no_thought
from models.demo.question import Question

MULTI_STEP = {
    kind.__name__: kind
    for kind in (
        multi_step.chain,
        multi_step.steps,
        multi_step.units,
        multi_step.rank,
        multi_step.story,
        multi_step.shop,
    )
}
NO_THOUGHT_NEEDED = {
    kind.__name__: kind
    for kind in (
        no_thought.tiny_sum,
        no_thought.larger,
        no_thought.echo,
        no_thought.greet,
        no_thought.who,
        no_thought.scope,
    )
}
KINDS = MULTI_STEP | NO_THOUGHT_NEEDED


HELD_OUT_SEED = 1_000_000_000
"""Training draws seeds below this one; evaluation uses this one and those above."""


def question(kind: str, seed: int) -> Question:
    """Return the question of `kind` for `seed`.

    Seeds alone would not separate the sets, because two seeds can draw the same numbers. So one text in eight of the
    multi-step kinds is reserved. Seeds from HELD_OUT_SEED draw again until their text is reserved, the others until it
    is not.
    """
    rng = random.Random(f"{kind}:{seed}")
    asked = KINDS[kind](rng)
    while kind in MULTI_STEP and is_reserved(asked.text) != (seed >= HELD_OUT_SEED):
        asked = KINDS[kind](rng)
    return asked


def is_reserved(text: str) -> bool:
    """Return whether a text is reserved for evaluation: one in eight."""
    return zlib.crc32(text.encode()) % 8 == 0
