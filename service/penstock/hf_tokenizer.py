"""A Hugging Face tokenizer with a chat template, as `engine.Tokenizer`. Knows byte-level BPE, which Qwen's are."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from typing import Any

from penstock.errors import ConfigError
from penstock.types import Message, Role

# A private-use character: stands for a message's text while the template is filled in.
_STAND_IN = "\ue0f3"


class HfTokenizer:
    """Holds its own copy of the tokenizer, without truncation or padding, so that no other user can change either."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """`vocab_size` is the model's, which may be padded beyond the tokenizer's own."""
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError("the checkpoint has no tokenizer.json: slow tokenizers are not supported")
        self._template = tokenizer
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bytes = _byte_table(self._backend, vocab_size)
        names = (token.content for token in self._backend.get_added_tokens_decoder().values())
        self._markers = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def render(self, messages: Sequence[Message], *, thinking: bool) -> list[int]:
        """See `Tokenizer.render`. Markers that a user or system message spells out are text there, never markers."""
        foreign: dict[str, str] = {}
        turns = []
        for number, message in enumerate(messages):
            content = message.content
            # The model's own earlier turns may hold a thought, which the template knows how to leave out.
            if message.role is not Role.ASSISTANT and self._markers.search(content):
                stand_in = f"{_STAND_IN}{number}{_STAND_IN}"
                foreign[stand_in], content = content, stand_in
            turns.append({"role": message.role.value, "content": content})
        text: str = self._template.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        ids: list[int] = []
        for stand_in, content in foreign.items():
            if stand_in not in text:
                continue  # The template left this message out.
            before, _, text = text.partition(stand_in)
            ids += [*self.encode(before), *self._encode_as_text(content)]
        return [*ids, *self.encode(text)]

    def _encode_as_text(self, text: str) -> list[int]:
        """Ids of `text` with its markers cut in two, so that none is recognised."""
        cuts = [0, *(found.start() + 1 for found in self._markers.finditer(text)), len(text)]
        return [token_id for start, end in itertools.pairwise(cuts) for token_id in self.encode(text[start:end])]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 0:
            raise IndexError(token_id)
        return self._bytes[token_id]

    def id_of(self, token: str) -> int | None:
        """Id of a token by its exact name; None where the vocabulary has none."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def name_of(self, token_id: int) -> str | None:
        """The token's text if encoding that text gives back exactly this token, else None."""
        text = self._backend.decode([token_id], skip_special_tokens=False)
        return text if text and self.encode(text) == [token_id] else None


def load(path: str, vocab_size: int) -> HfTokenizer:
    """From a checkpoint directory or Hugging Face name."""
    from transformers import AutoTokenizer

    return HfTokenizer(AutoTokenizer.from_pretrained(path), vocab_size)


def _byte_table(backend: Any, vocab_size: int) -> tuple[bytes, ...]:
    """Bytes by id. Special tokens have none; added ones that are not special are their own text."""
    of_character = _bytes_of_characters()
    table = [b""] * max(vocab_size, backend.get_vocab_size(with_added_tokens=True))
    for token, token_id in backend.get_vocab(with_added_tokens=False).items():
        table[token_id] = b"".join(of_character.get(character, character.encode()) for character in token)
    for token_id, added in backend.get_added_tokens_decoder().items():
        table[token_id] = b"" if added.special else added.content.encode()
    return tuple(table)


def _bytes_of_characters() -> dict[str, bytes]:
    """The printable stand-ins that byte-level BPE writes for bytes, as GPT-2 defined them."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in itself]
    table = {chr(byte): bytes([byte]) for byte in itself}
    table |= {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
    return table
