"""The questions of the demo task: six kinds that need several steps, six that need none.

Every question is a pure function of a `random.Random`, so a seed names a question. The thought is the canonical
working (one step per line) and is a function of the question alone: greedy decoding can therefore be compared token
by token, and speculative drafts of it can be right.
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
"""Training draws seeds below it, evaluation from it on."""


def question(kind: str, seed: int) -> Question:
    """The question of `kind` that `seed` names.

    Seeds alone would not keep the sets apart: two seeds can draw the same numbers. So one text in eight of the
    multi-step kinds is reserved: seeds from HELD_OUT_SEED on draw again until theirs is reserved, the others until
    theirs is not.
    """
    rng = random.Random(f"{kind}:{seed}")
    asked = KINDS[kind](rng)
    while kind in MULTI_STEP and is_reserved(asked.text) != (seed >= HELD_OUT_SEED):
        asked = KINDS[kind](rng)
    return asked


def is_reserved(text: str) -> bool:
    """Whether a multi-step question is kept for evaluation."""
    return zlib.crc32(text.encode()) % 8 == 0
