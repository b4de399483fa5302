"""Wrap a Hugging Face tokenizer with a chat template as `engine.base.Tokenizer`, for byte-level BPE such as Qwen's."""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from typing import Any

from penstock.errors import BadRequest, ConfigError, FieldViolation
from penstock.types import Message, Role

# Text that chat templates search for in messages, whether or not the vocabulary has tokens of these names.
_TEMPLATE_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_INDEX_DIGITS = 6


class HfTokenizer:
    """Hold a copy of the tokenizer without truncation or padding, which other users of the original cannot change."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """Copy the tokenizer. `vocab_size` is the model's, which may be larger than the tokenizer's own."""
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError("the checkpoint has no tokenizer.json: slow tokenizers are not supported")
        self._template = tokenizer
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bytes = _byte_table(self._backend, vocab_size)
        added = {token.content: i for i, token in self._backend.get_added_tokens_decoder().items()}
        # Some vocabularies add sequences of spaces, which are no control tokens.
        self._control_ids = {name: token_id for name, token_id in added.items() if name.strip()}
        self._control = _any_of(self._control_ids)
        self._reserved = _any_of({*self._control_ids, *_TEMPLATE_WORDS})
        self._plain = _without_added_tokens(self._backend, self._control_ids)
        self._takes_late_system = self._keeps_order_of_system_messages()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens recognised."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` as plain text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids and not set(self._control_ids.values()).isdisjoint(ids):
            # The vocabulary's merges would form a control token; single characters do not.
            ids = [i for character in text for i in self._plain.encode(character, add_special_tokens=False).ids]
        return ids

    def render(self, messages: Sequence[Message], *, thinking: bool) -> list[int]:
        """Return the ids of the chat template; see `Tokenizer.render`.

        A message without reserved names passes through the template unchanged. Any other is replaced by a random
        placeholder between its own leading and trailing white space, so that neither the template nor the tokenizer
        sees a reserved name; the text between placeholders and control tokens is then encoded together with its
        surroundings. Raise BadRequest where the template refuses the conversation.
        """
        messages = self._arranged(messages)
        # Digits survive what a template does to letters, and nobody can guess 128 random bits.
        nonce = str(secrets.randbelow(10**38) + 10**38)
        bodies: dict[int, str] = {}
        turns = []
        for number, message in enumerate(messages):
            content = message.content
            if self._is_reserved(content):
                body = content.strip()
                bodies[number] = body
                content = content.replace(body, f"{nonce}{number:0{_INDEX_DIGITS}}", 1)
            turns.append(replace(message, content=content))
        text = self._apply(turns, thinking=thinking)
        if not bodies:
            return self.encode(text)
        # Every second piece after the split is the number of a placeholder.
        pieces = re.split(rf"{nonce}(\d{{{_INDEX_DIGITS}}})", text)
        ids: list[int] = []
        plain = ""
        for place, piece in enumerate(pieces):
            if place % 2:
                plain += bodies[int(piece)]
                continue
            for part in self._control.split(piece):
                if part in self._control_ids:
                    ids += [*self.encode_text(plain), self._control_ids[part]]
                    plain = ""
                else:
                    plain += part
        return ids + self.encode_text(plain)

    def _apply(self, turns: Sequence[Message], *, thinking: bool) -> str:
        from jinja2.exceptions import TemplateError  # comes with transformers, as the template's engine

        try:
            text: str = self._template.apply_chat_template(
                [{"role": turn.role.value, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
        except TemplateError as error:
            # The template's error text may contain the caller's text.
            raise BadRequest(
                FieldViolation(
                    "spec.messages.messages", "the model's chat template refuses this order of roles", "INVALID_FIELD"
                )
            ) from error
        return text

    def _is_reserved(self, content: str) -> bool:
        """Return whether the content has a reserved name, as it is or as the tokenizer normalizes it."""
        if self._reserved.search(content):
            return True
        normalizer = self._backend.normalizer
        return (
            normalizer is not None
            and not content.isascii()
            and bool(self._reserved.search(normalizer.normalize_str(content)))
        )

    def _arranged(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages with all system messages joined at the start, where the template requires that."""
        if self._takes_late_system or all(message.role is not Role.SYSTEM for message in messages[1:]):
            return messages
        said = [message.content.strip() for message in messages if message.role is Role.SYSTEM]
        others = [message for message in messages if message.role is not Role.SYSTEM]
        return [Message(Role.SYSTEM, "\n\n".join(filter(None, said))), *others]

    def _keeps_order_of_system_messages(self) -> bool:
        """Return whether the template writes several and late system messages at their place."""
        roles = (Role.SYSTEM, Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.USER)
        turns = [Message(role, f"probe {number}") for number, role in enumerate(roles)]
        try:
            text = self._apply(turns, thinking=False)
        except (BadRequest, ValueError):  # The template refuses them, or there is none.
            return False
        return re.findall(r"probe \d", text) == [turn.content for turn in turns]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; empty for special tokens."""
        if token_id < 0:
            raise IndexError(token_id)
        return self._bytes[token_id]

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its exact name; None where the vocabulary has none."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def name_of(self, token_id: int) -> str | None:
        """Return the token's text if encoding that text returns exactly this token, else None."""
        text = self._backend.decode([token_id], skip_special_tokens=False)
        return text if text and self.encode(text) == [token_id] else None


def load(path: str, vocab_size: int) -> HfTokenizer:
    """Return the tokenizer of a checkpoint directory or Hugging Face name."""
    from transformers import AutoTokenizer

    return HfTokenizer(AutoTokenizer.from_pretrained(path), vocab_size)


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the names, the longest first, in a group so that `split` keeps it."""
    if not names:
        return re.compile("(?!)")
    return re.compile(f"({'|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))})")


def _without_added_tokens(backend: Any, names: Container[str]) -> Any:
    """Return a copy of the tokenizer for which these names are ordinary text."""
    whole = json.loads(backend.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in names]
    return type(backend).from_str(json.dumps(whole))


def _byte_table(backend: Any, vocab_size: int) -> tuple[bytes, ...]:
    """Return the bytes of each id. Special tokens have none; other added tokens are their own text."""
    of_character = _bytes_of_characters()
    table = [b""] * max(vocab_size, backend.get_vocab_size(with_added_tokens=True))
    for token, token_id in backend.get_vocab(with_added_tokens=False).items():
        table[token_id] = b"".join(of_character.get(character, character.encode()) for character in token)
    for token_id, added in backend.get_added_tokens_decoder().items():
        table[token_id] = b"" if added.special else added.content.encode()
    return tuple(table)


def _bytes_of_characters() -> dict[str, bytes]:
    """Return the printable characters that byte-level BPE writes for bytes, as GPT-2 defined them."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in itself]
    table = {chr(byte): bytes([byte]) for byte in itself}
    table |= {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
    return table
