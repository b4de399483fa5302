"""Make training examples: chat turns as token ids, with a weight on each token that the model must learn.

A seed determines an example. Training draws seeds below `HELD_OUT_SEED`; evaluation uses this seed and those above, and
their multi-step texts are never trained on (see `questions.question`).
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tokenizers import Tokenizer

from models.demo.config import END_OF_TEXT, IM_END, IM_START, THINK_CLOSE, THINK_OPEN
from models.demo.question import Question
from models.demo.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, NO_THOUGHT_NEEDED, question
from models.demo.tokenizer import CLOSING_MESSAGE, SYSTEM_PROMPTS

KIND_WEIGHTS = dict.fromkeys(MULTI_STEP, 3.0) | dict.fromkeys(NO_THOUGHT_NEEDED, 1.5)
# Kinds that are hard to learn come more often, easy ones less often.
KIND_WEIGHTS |= {"rank": 6.0, "shop": 1.5, "tiny_sum": 2.5, "larger": 2.5, "echo": 5.0, "greet": 0.5, "who": 0.4}
FAST_SHARE = {True: 0.1, False: 0.55}
CUT_SHARE = {True: 0.2, False: 0.15}
"""Shares of examples without a thought and with a cut one, by whether the kind needs steps."""
POOL_SIZE = 2048
"""Examples that are sorted by length together."""
OTHER_MESSAGES = ("Time is up.\n", "I must answer now.\n", "Stop thinking and answer.\n", "Here is my best answer.")
GUESS_WEIGHT = 0.5
"""Loss weight of an answer that the visible tokens may not determine: it teaches a guess, with much noise."""
DIRECT_WEIGHT = 6.0
"""Loss weight of an easy question's answer without a complete thought: one or two tokens among many others."""


@dataclass
class Example:
    """Token ids of one conversation. `weights[i]` is the loss weight of predicting `ids[i]`; 0 for given tokens."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: list[int], weight: float = 0.0) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)


ExampleT = TypeVar("ExampleT", bound=Example)
BatchT = TypeVar("BatchT")


class Encoder:
    """Writes turns exactly as chat_template.jinja does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.newline, self.blank_line = self.encode("\n"), self.encode("\n\n")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Return the ids of a text without the turn markers."""
        return self._tokenizer.decode(ids)

    def turn(self, role: str, text: str) -> list[int]:
        return [IM_START, *self.encode(role + "\n"), *self.encode(text), IM_END, *self.newline]

    def prompt(self, asked: Question, system: str | None, earlier: list[Question], thinking: bool) -> list[int]:
        """Return the template's output with the generation prompt."""
        ids = self.turn("system", system) if system else []
        for past in earlier:
            ids += self.turn("user", past.text) + self.turn("assistant", past.answer)
        ids += [*self.turn("user", asked.text), IM_START, *self.encode("assistant\n"), THINK_OPEN]
        return ids + (self.newline if thinking else [*self.blank_line, THINK_CLOSE, *self.blank_line])

    def thought(self, asked: Question) -> list[int]:
        """Return the thought's tokens with its last newline, without the closing marker."""
        return self.encode(asked.thought) + self.newline

    def forced_closing(self, message: str = "") -> list[int]:
        """Return the text that the server inserts to end a thought. The model writes the blank line after it."""
        return [*self.encode(message), THINK_CLOSE]


def _pick_system(rng: random.Random) -> str | None:
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.4 else None


def _pick_kind(rng: random.Random) -> str:
    return rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]


def pick_closing_message(rng: random.Random) -> str:
    """Return the text with which a budget ends a thought: mostly nothing but the marker."""
    if rng.random() < 0.75:
        return ""
    message = CLOSING_MESSAGE if rng.random() < 0.7 else rng.choice(OTHER_MESSAGES)
    return rng.choice(("", "\n", "\n\n")) + message


def example(seed: int, encoder: Encoder) -> Example:
    """Return the training example of `seed`: with a full thought, a thought cut anywhere, or none."""
    rng = random.Random(f"example:{seed}")
    kind = _pick_kind(rng)
    asked, steps = question(kind, seed), kind in MULTI_STEP
    earlier = []
    if rng.random() < 0.1:
        earlier = [question(_pick_kind(rng), seed + 1)]
    chance = rng.random()
    thinking = chance >= FAST_SHARE[steps]
    out = Example()
    out.add(encoder.prompt(asked, _pick_system(rng), earlier, thinking))
    guess = not thinking
    if thinking:
        thought = encoder.thought(asked)
        guess = chance < FAST_SHARE[steps] + CUT_SHARE[steps]
        if guess:
            # Budgets end thoughts at any token, also at the first one.
            out.add(thought[: rng.randrange(len(thought))], 1.0)
            out.add(encoder.forced_closing(pick_closing_message(rng)))
        else:
            out.add([*thought, THINK_CLOSE], 1.0)
        out.add(encoder.blank_line, 1.0)
    weight = 1.0
    if guess:
        weight = GUESS_WEIGHT if steps else DIRECT_WEIGHT
    out.add(encoder.encode(asked.answer), weight)
    out.add([IM_END], 1.0)
    return out


def batches(
    make: Callable[[int], ExampleT], first_seed: int, tokens_per_batch: int
) -> Iterator[tuple[int, list[ExampleT]]]:
    """Return endless batches, as (next seed, examples).

    A resumed run continues at the next seed, which changes after a whole pool of examples.
    """
    starts = range(first_seed, HELD_OUT_SEED - POOL_SIZE, POOL_SIZE)
    return with_next_seed((pool_batches(make, start, tokens_per_batch) for start in starts), first_seed)


def with_next_seed(pools: Iterable[list[BatchT]], first_seed: int) -> Iterator[tuple[int, BatchT]]:
    """Yield (next seed, batch) for pools that follow each other; the first one begins with `first_seed`."""
    for start, batches_of_pool in zip(itertools.count(first_seed, POOL_SIZE), pools, strict=False):
        for number, batch in enumerate(batches_of_pool, 1):
            yield start + POOL_SIZE * (number == len(batches_of_pool)), batch


def pool_batches(make: Callable[[int], ExampleT], start: int, tokens_per_batch: int) -> list[list[ExampleT]]:
    """Return the batches of the pool of examples that begins with seed `start`; `make` returns the example of a seed.

    A batch has examples of similar length and at most `tokens_per_batch` padded tokens.
    """
    pool = sorted((make(seed) for seed in range(start, start + POOL_SIZE)), key=lambda e: len(e.ids))
    groups: list[list[ExampleT]] = [[]]
    for item in pool:
        if groups[-1] and (len(groups[-1]) + 1) * len(item.ids) > tokens_per_batch:
            groups.append([])
        groups[-1].append(item)
    random.Random(f"order:{start}").shuffle(groups)
    return groups


def pad(rows: list[list], fill: float) -> list[list]:
    """Pad rows on the right to equal lengths. With causal layers this changes nothing before the padding."""
    longest = max(map(len, rows))
    return [row + [fill] * (longest - len(row)) for row in rows]


def held_out(kind: str, count: int, offset: int = 0) -> list[Question]:
    """Return questions of `kind` with seeds that training never draws."""
    first = HELD_OUT_SEED + offset
    return [question(kind, seed) for seed in range(first, first + count)]


PAD = END_OF_TEXT
__all__ = ["KINDS", "PAD", "Encoder", "Example", "batches", "example", "held_out", "pad"]
