"""Make up text of a given length in tokens, as the service counts them."""

from __future__ import annotations

import random
from typing import Self

from penstock_bench.load.pictures import png
from penstock_bench.load.workload import Work
from penstock_client import AsyncClient, ImagePart, Message
from penstock_client.messages import MessageLike

_WORDS = (
    "river",
    "gate",
    "turbine",
    "water",
    "pressure",
    "valve",
    "wheel",
    "mill",
    "stone",
    "field",
    "winter",
    "letter",
)
_REPEATS = 8


class Prompts:
    """Makes text from words whose lengths in tokens are known.

    A word has about the same number of tokens everywhere, so lengths are right within a few percent without a call to
    the service while it is measured. The usage of each call has the exact length.
    """

    def __init__(self, tokens_of: dict[str, float], template_tokens: float, system_tokens: float) -> None:
        self._tokens_of = tokens_of
        self._template_tokens = template_tokens
        self._system_tokens = system_tokens
        self._prefixes: dict[tuple[str, int], str] = {}

    @classmethod
    async def learn(cls, client: AsyncClient) -> Self:
        """Measure the words with about 25 CountTokens calls. Raises PenstockError."""
        tokens_of = {}
        for word in _WORDS:
            once, often = await _count(client, word), await _count(client, " ".join([word] * (_REPEATS + 1)))
            tokens_of[word] = max(0.1, (often - once) / _REPEATS)
        first = _WORDS[0]
        template = await _count(client, first) - tokens_of[first]
        with_system = (await client.count([("system", first), ("user", first)])).prompt_tokens
        return cls(tokens_of, template, max(0.0, with_system - template - 2 * tokens_of[first]))

    @property
    def min_tokens(self) -> int:
        """Return the tokens of the shortest possible prompt: the template with one word."""
        return round(self._template_tokens + min(self._tokens_of.values())) + 1

    def messages(self, work: Work, rng: random.Random) -> list[MessageLike]:
        """Return the conversation. A shared prefix is the system message; the rest is always new.

        Images come before the user's text.
        """
        texts = self._texts(work, rng)
        if not work.images:
            return [*texts]
        shown = [ImagePart(png(work.image_width, work.image_height, rng), "image/png") for _ in range(work.images)]
        return [*texts[:-1], Message.user(*shown, texts[-1][1])]

    def tool_result(self, work: Work, rng: random.Random) -> str:
        """Return what a tool found."""
        return self._text(max(1, work.tool_result_tokens), rng)

    def _texts(self, work: Work, rng: random.Random) -> list[tuple[str, str]]:
        """Return the texts as (role, content)."""
        if work.prompt is not None:
            return [("user", work.prompt)]
        if work.blocks:
            return [("user", self._of_blocks(work))]
        room = work.prompt_tokens - self._template_tokens
        if not work.prefix:
            return [("user", self._text(room, rng))]
        key = (work.prefix, work.prefix_tokens)
        if key not in self._prefixes:
            self._prefixes[key] = self._text(work.prefix_tokens - self._system_tokens, random.Random(repr(key)))
        return [("system", self._prefixes[key]), ("user", self._text(room - work.prefix_tokens, rng))]

    def next_message(self, work: Work, rng: random.Random) -> str:
        """Return the user's message of a later turn."""
        return self._text(max(1, work.turn_tokens), rng)

    def _of_blocks(self, work: Work) -> str:
        """Return text from the ids of its blocks; the last block is cut to the length of the prompt."""
        room, parts = work.prompt_tokens - self._template_tokens, []
        for block in work.blocks:
            if room <= 0:
                break
            parts.append(self._text(min(room, work.block_tokens), random.Random(f"block {block}")))
            room -= work.block_tokens
        return " ".join(parts) or _WORDS[0]

    def _text(self, tokens: float, rng: random.Random) -> str:
        words = [rng.choice(_WORDS)]
        left = tokens - self._tokens_of[words[0]]
        while left > 0:
            word = rng.choice(_WORDS)
            left -= self._tokens_of[word]
            if left > -self._tokens_of[word] / 2:
                words.append(word)
        return " ".join(words)


async def _count(client: AsyncClient, text: str) -> int:
    return (await client.count(text)).prompt_tokens
