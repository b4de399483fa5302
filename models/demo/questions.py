"""The questions of the demo task: six kinds that need several steps, six that need none.

Every question is a pure function of a `random.Random`, so a seed names a question. The thought is the canonical
working (one step per line) and is a function of the question alone: greedy decoding can therefore be compared token
by token, and speculative drafts of it can be right.
"""

import random

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


def question(kind: str, seed: int) -> Question:
    """The question of `kind` that `seed` names."""
    return KINDS[kind](random.Random(f"{kind}:{seed}"))
