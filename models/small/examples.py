"""Make training examples: text questions and conversations with functions, with full, cut and no thoughts.

A seed determines an example. Training draws seeds below `HELD_OUT_SEED`.
"""

import random
from collections.abc import Iterator

from models.small.config import IM_END, THINK_CLOSE
from models.small.encoding import Encoder, Example
from models.small.languages import LANGUAGES
from models.small.picture_questions import PictureQuestion, picture_question
from models.small.pictures import to_patches
from models.small.positions import picture_tokens
from models.small.question import Question
from models.small.questions import MULTI_STEP, NO_THOUGHT_NEEDED, question
from models.small.tokenizer import CLOSING_MESSAGE, SYSTEM_PROMPTS
from models.small.tools import FOUND, LISTED, Task, task

KIND_WEIGHTS = dict.fromkeys(MULTI_STEP, 3.0) | dict.fromkeys(NO_THOUGHT_NEEDED, 1.5)
# Kinds that are hard to learn come more often, easy ones less often.
KIND_WEIGHTS |= {
    "chain": 8.0,
    "rank": 5.0,
    "story": 4.5,
    "units": 3.5,
    "shop": 2.0,
    "tiny_sum": 2.0,
    "larger": 2.5,
    "echo": 4.0,
    "greet": 0.5,
    "who": 0.4,
}
TASK_WEIGHTS = {"attribute": 5.0, "parallel": 3.0, "calculator": 0.6, "convert": 0.8, "lookup": 1.5, "no_call": 3.5}
PICTURE_WEIGHTS = {"picture_sum": 3.5, "picture_larger": 2.0, "picture_count": 10.0, "picture_more": 1.5}
LANGUAGE_WEIGHTS = dict.fromkeys(LANGUAGES, 1.0) | {"en": 2.0}
TASK_SHARE = 0.15
"""Share of examples with functions in the stage without pictures; theirs is half of the tokens."""
FUNCTION_SHARE, PICTURE_SHARE = 0.34, 0.34
"""Shares of examples with functions, and with a picture, in the stage with everything."""
FAST_SHARE = {True: 0.1, False: 0.55}
CUT_SHARE = {True: 0.2, False: 0.15}
"""Shares of examples without a thought and with a cut one, by whether the kind needs steps."""
UNCHECKED_SHARE = 0.35
"""Share of the full thoughts that end without the check of the result.

Large models check what they have found now and then. Greedy decoding follows the larger share and checks; the closing
marker's probability in front of a check tells early exit that the thought could end there.
"""
OTHER_MESSAGES = ("Time is up.\n", "I must answer now.\n", "Stop thinking and answer.\n", "Here is my best answer.")
GUESS_WEIGHT = 0.5
"""Loss weight of an answer that the visible tokens may not determine: it teaches a guess, with much noise."""
DIRECT_WEIGHT = 6.0
"""Loss weight of an easy question's answer without a complete thought: one or two tokens among many others."""
FAST_TASK_SHARE = 0.25
LIST_WEIGHT, FOUND_WEIGHT = 2.0, 6.0
"""Loss weights in a thought about functions: of its list, and of what it reads from the list.

The function that is read is one word among hundreds of tokens, and all that follows depends on it.
"""


def _pick_system(rng: random.Random) -> str | None:
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.4 else None


def pick_closing_message(rng: random.Random) -> str:
    """Return the text with which a budget ends a thought: mostly nothing but the marker."""
    if rng.random() < 0.75:
        return ""
    message = CLOSING_MESSAGE if rng.random() < 0.7 else rng.choice(OTHER_MESSAGES)
    return rng.choice(("", "\n", "\n\n")) + message


def _pick_language(rng: random.Random) -> str:
    return rng.choices(list(LANGUAGE_WEIGHTS), list(LANGUAGE_WEIGHTS.values()))[0]


def example(seed: int, encoder: Encoder) -> Example:
    """Return the training example of `seed`."""
    rng = random.Random(f"example:{seed}")
    language = _pick_language(rng)
    if rng.random() < TASK_SHARE:
        return _any_task(rng, language, seed, encoder)
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    asked = question(kind, language, seed)
    earlier = asked.earlier
    if not earlier and rng.random() < 0.08:
        before = question(rng.choice(list(KIND_WEIGHTS)), language, seed + 1)
        earlier = ((before.text, before.answer),)
    out = Example()
    out.add([*encoder.system(_pick_system(rng)), *encoder.earlier(earlier), *encoder.user(asked.text)])
    add_reply(rng, out, asked, encoder, kind in MULTI_STEP)
    return out


def _any_task(rng: random.Random, language: str, seed: int, encoder: Encoder) -> Example:
    kind = rng.choices(list(TASK_WEIGHTS), list(TASK_WEIGHTS.values()))[0]
    return task_example(rng, task(kind, language, seed), encoder)


def add_reply(rng: random.Random, out: Example, asked: Question, encoder: Encoder, steps: bool) -> None:
    """Add the reply to a question: with a full thought, a thought cut anywhere, or none."""
    chance = rng.random()
    thinking = chance >= FAST_SHARE[steps]
    out.add(encoder.generation_prompt(thinking))
    guess = not thinking
    if thinking:
        guess = chance < FAST_SHARE[steps] + CUT_SHARE[steps]
        thought = encoder.thought(asked.thought)
        lines = asked.thought.split("\n")
        if guess:
            # Budgets end thoughts at any token, also at the first one.
            out.add(thought[: rng.randrange(len(thought))], 1.0)
            out.add(encoder.forced_closing(pick_closing_message(rng)))
        elif len(lines) > asked.working_lines and rng.random() < UNCHECKED_SHARE:
            out.add([*encoder.thought("\n".join(lines[: asked.working_lines])), THINK_CLOSE], 1.0)
        else:
            out.add([*thought, THINK_CLOSE], 1.0)
        out.add(encoder.blank_line, 1.0)
    weight = 1.0
    if guess:
        weight = GUESS_WEIGHT if steps else DIRECT_WEIGHT
    out.add(encoder.encode(asked.answer), weight)
    out.add([IM_END], 1.0)


def picture_example(rng: random.Random, found: PictureQuestion, encoder: Encoder) -> Example:
    """Return a question about a picture with its reply."""
    patches, grid = to_patches(found.picture)
    out = Example(pictures=[(patches, grid)])
    out.add([*encoder.system(_pick_system(rng)), *encoder.user(found.asked.text, picture_tokens(grid))])
    # Each thought about a picture begins with what it shows: most replies have one, because it teaches to read.
    add_reply(rng, out, found.asked, encoder, steps=True)
    return out


def any_example(seed: int, encoder: Encoder) -> Example:
    """Return the training example of `seed` in the stage with everything."""
    rng = random.Random(f"any:{seed}")
    language, chance = _pick_language(rng), rng.random()
    if chance < FUNCTION_SHARE:
        return _any_task(rng, language, seed, encoder)
    if chance < FUNCTION_SHARE + PICTURE_SHARE:
        kind = rng.choices(list(PICTURE_WEIGHTS), list(PICTURE_WEIGHTS.values()))[0]
        return picture_example(rng, picture_question(kind, language, seed), encoder)
    return example(seed, encoder)


def task_example(rng: random.Random, asked: Task, encoder: Encoder) -> Example:
    """Return a conversation with functions: the calls, the results, and the answer read from them."""
    out = Example()
    out.add([*encoder.system(_pick_system(rng), asked.tools), *encoder.user(asked.text)])
    thinking = rng.random() >= FAST_TASK_SHARE
    _add_thought(rng, out, asked.thought, encoder, thinking)
    if not asked.calls:
        out.add([*encoder.encode(asked.answer), IM_END], 1.0)
        return out
    out.add([*encoder.calls(asked.calls), IM_END], 1.0)
    out.add([*encoder.newline, *encoder.results(asked.results)])
    _add_thought(rng, out, asked.result_thought, encoder, thinking)
    out.add([*encoder.encode(asked.answer), IM_END], 1.0)
    return out


def _add_thought(rng: random.Random, out: Example, text: str, encoder: Encoder, thinking: bool) -> None:
    """Add a thought, whole or, one time in six, cut by a budget; calls and answers must be right after a cut, too."""
    out.add(encoder.generation_prompt(thinking))
    if not thinking:
        return
    thought = [(one, weight) for part, weight in weighted_parts(text) for one in encoder.encode(part)]
    cut = rng.random() < 1 / 6
    for one, weight in thought[: rng.randrange(len(thought))] if cut else thought:
        out.add([one], weight)
    if cut:
        out.add(encoder.forced_closing(pick_closing_message(rng)))
    else:
        out.add([THINK_CLOSE], 1.0)
    out.add(encoder.blank_line, 1.0)


def weighted_parts(thought: str) -> Iterator[tuple[str, float]]:
    """Yield the parts of a thought about functions with their loss weights; a part ends where a token does."""
    for line in thought.split("\n"):
        before, listed, after = line.partition(LISTED.rstrip())
        if not listed:
            yield f"{line}\n", 1.0
        elif not line.startswith(FOUND):
            yield f"{line}\n", LIST_WEIGHT
        else:
            name, bracket, rest = after.partition("(")
            yield before + listed, 1.0
            yield name + bracket, FOUND_WEIGHT
            yield f"{rest}\n", 1.0
