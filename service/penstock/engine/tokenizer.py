"""Wrap a Hugging Face tokenizer with a chat template as `engine.base.Tokenizer`, for byte-level BPE such as Qwen's."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Container, Sequence
from typing import Any

from penstock.engine.chat_template import (
    Piece,
    Placeholders,
    Turn,
    TurnWriter,
    learn_call_format,
    learn_thought_layout,
    shown_images,
    tools_for_template,
    with_sections,
)
from penstock.errors import BadRequest, ConfigError, FeatureOff, FieldViolation
from penstock.types import Feature, Image, Message, Role, ThoughtHistory, Tool, ToolCallFormat

# Text that chat templates write or search for, whether or not the vocabulary has tokens of these names.
_TEMPLATE_WORDS = (
    "<think>",
    "</think>",
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<function=",
    "</function>",
    "<parameter=",
    "</parameter>",
)

IMAGE_TOKEN = "<|image_pad|>"
_IMAGE_TOKENS = (IMAGE_TOKEN, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


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
        names = {*self._control_ids, *_TEMPLATE_WORDS}
        self._edges = re.compile(f"[{re.escape(''.join({edge for name in names for edge in (name[0], name[-1])}))}]")
        self._names = "\0".join(names)
        self._plain = _without_added_tokens(self._backend, self._control_ids)
        self._takes_late_system = self._keeps_order_of_system_messages()
        layout = learn_thought_layout(self._apply)
        # A header without a control token could be a caller's text.
        self._layout = layout if layout is not None and self._control.search(layout.header) else None
        self._call_format, self._verbatim_arguments, self._call_format_reason = learn_call_format(self._apply)

    @property
    def tool_call_format(self) -> ToolCallFormat | None:
        """Return how the chat template writes tool calls; None where it has none."""
        return self._call_format

    @property
    def tool_call_feature(self) -> Feature:
        """Return the profile's line about tool calls."""
        value = "none" if self._call_format is None else self._call_format.value
        return Feature("tool_calls", self._call_format is not None, value, self._call_format_reason)

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

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Tool] = (),
        history: ThoughtHistory = ThoughtHistory.CURRENT_TURN,
    ) -> list[int]:
        """Return the ids of the chat template; see `Tokenizer.render`.

        The template sees placeholders instead of the caller's texts, except of those that cannot be a part of a
        reserved name. Control tokens are recognised in what the template wrote; the text between them is encoded
        together, as the tokenizer would.

        An assistant message after the last user message always has a think section, as it had when it was generated.
        With ALL_TURNS every assistant message has one, empty where the caller sent no thought.
        """
        messages, places = self._arranged(messages), {id(message): place for place, message in enumerate(messages)}
        self._check_tools(messages, tools)
        begun = messages[-1] if messages and messages[-1].role is Role.ASSISTANT else None
        if begun is not None:
            self._check_begun(begun, f"spec.messages.messages[{places.get(id(begun), len(places) - 1)}]", thinking)
            messages = messages[:-1]
        pieces = self._history(messages, tools, history, thinking or (begun is not None and _has_thought(begun)))
        if begun is not None:
            pieces += self._begun(begun, thinking)
        return self._with_image_tokens(self._encode_pieces(pieces), shown_images(messages))

    def shown_images(self, messages: Sequence[Message]) -> tuple[Image, ...]:
        """Return the images of a conversation in the order of their tokens in its prompt."""
        return shown_images(messages)

    def _with_image_tokens(self, ids: list[int], images: Sequence[Image]) -> list[int]:
        """Repeat the token that the template wrote for each image as often as the image needs."""
        if not images:
            return ids
        stands_for_image = self.id_of(IMAGE_TOKEN)
        if stands_for_image is None or ids.count(stands_for_image) != len(images):
            raise FeatureOff(
                "this model's chat template does not show each image to the model",
                field=images[0].path,
                feature="images",
            )
        left = iter(images)
        return [i for token in ids for i in ([token] * next(left).tokens if token == stands_for_image else [token])]

    def _history(
        self, messages: Sequence[Message], tools: Sequence[Tool], history: ThoughtHistory, thinking: bool
    ) -> list[Piece]:
        """Return everything up to and with the generation prompt."""
        last_user = max((place for place, message in enumerate(messages) if message.role is Role.USER), default=-1)
        shown = [
            history is ThoughtHistory.ALL_TURNS or (history is ThoughtHistory.CURRENT_TURN and place > last_user)
            for place in range(len(messages))
        ]
        placeholders = Placeholders(self._is_clean)
        try:
            turns = TurnWriter(placeholders, self._verbatim_arguments).turns(messages, shown)
        except (ValueError, RecursionError) as error:
            raise BadRequest(
                FieldViolation(
                    "spec.messages.messages",
                    "arguments_json of each tool call must be a JSON object as text",
                    "INVALID_FIELD",
                )
            ) from error
        text = self._apply(
            turns,
            tools=tools_for_template(tools, placeholders) or None,
            generates=True,
            thinking=thinking,
            preserve_thinking=history is ThoughtHistory.ALL_TURNS,
        )
        pieces = placeholders.pieces(text)
        thoughts = [
            (message.thought if shows else "") if shows or place > last_user else None
            for place, (message, shows) in enumerate(zip(messages, shown, strict=True))
            if message.role is Role.ASSISTANT
        ]
        completed = None if self._layout is None else with_sections(pieces, self._layout, thoughts)
        earlier = messages[: last_user + 1] if history is ThoughtHistory.ALL_TURNS else ()
        if completed is None and any(map(_has_thought, earlier)):
            raise FeatureOff(
                "must not be THOUGHT_HISTORY_ALL_TURNS: this model's chat template cannot show earlier thoughts",
                field="spec.thinking.history",
                feature="thinking",
            )
        if completed is None or self._layout is None:
            return pieces
        if thinking and completed and completed[-1].text.endswith(self._layout.header):
            completed.append(Piece(self._layout.opening, True))
        return completed

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Raise FeatureOff for tools that the template would ignore."""
        if self._call_format is not None:
            return
        used = any(message.tool_calls or message.role is Role.TOOL for message in messages)
        if tools or used:
            field = "spec.tools" if tools else "spec.messages.messages"
            raise FeatureOff(f"no tools: {self._call_format_reason}", field=field, feature="tool_calls")

    def _check_begun(self, message: Message, path: str, thinking: bool) -> None:
        """Raise BadRequest where the output cannot continue the last message."""
        if message.tool_calls:
            why = "must not have tool calls as the last message: add a tool message with their results"
            raise BadRequest(FieldViolation(f"{path}.parts", why, "CONFLICTING_FIELDS"))
        if thinking and message.content.strip():
            why = "must have no text as the last message with THINKING_MODE_THINKING: a thought comes before the answer"
            raise BadRequest(FieldViolation(f"{path}.content", why, "CONFLICTING_FIELDS"))
        if _has_thought(message) and self._layout is None:
            raise FeatureOff(
                "must have no thought as the last message: this model's chat template has no think section",
                field=f"{path}.parts",
                feature="thinking",
            )

    def _begun(self, message: Message, thinking: bool) -> list[Piece]:
        """Return what the output continues, after a generation prompt; the white space at its end is kept.

        A thought is left open with `thinking` and closed without. It is the beginning of the output, so it is in the
        prompt whatever the history.
        """
        if self._layout is None or not _has_thought(message):
            return [Piece(message.content.lstrip(), False)]
        if thinking:
            return [Piece(message.thought.lstrip(), False)]
        _, thought, closing = self._layout.section(message.thought)
        return [thought, closing, Piece(message.content.lstrip(), False)]

    def _encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        if all(piece.is_markup for piece in pieces):
            return self.encode("".join(piece.text for piece in pieces))
        ids: list[int] = []
        plain = ""
        for piece in pieces:
            if not piece.is_markup:
                plain += piece.text
                continue
            for part in self._control.split(piece.text):
                if part in self._control_ids:
                    ids += [*self.encode_text(plain), self._control_ids[part]]
                    plain = ""
                else:
                    plain += part
        return ids + self.encode_text(plain)

    def _apply(
        self,
        turns: Sequence[Turn],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        generates: bool = False,
        thinking: bool = False,
        preserve_thinking: bool = False,
    ) -> str:
        from jinja2.exceptions import TemplateError  # comes with transformers, as the template's engine

        try:
            text: str = self._template.apply_chat_template(
                list(turns),
                tools=tools,
                tokenize=False,
                add_generation_prompt=generates,
                enable_thinking=thinking,
                preserve_thinking=preserve_thinking,
            )
        except (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            # The template's error text may contain the caller's text.
            refused = FieldViolation(
                "spec.messages.messages", "the model's chat template refuses this order of roles", "INVALID_FIELD"
            )
            if tools:
                refused = FieldViolation(
                    "spec.tools", "the model's chat template refuses these tools or messages", "INVALID_FIELD"
                )
            raise BadRequest(refused) from error
        return text

    def _is_clean(self, text: str) -> bool:
        """Return whether no reserved name can contain the text or a part of it, whatever stands beside it.

        It is looked at as the tokenizer normalizes it.
        """
        normalizer = self._backend.normalizer
        if normalizer is not None and not text.isascii():
            text = normalizer.normalize_str(text)
        return not self._edges.search(text) and text not in self._names

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
        turns = [{"role": role.value, "content": f"probe {number}"} for number, role in enumerate(roles)]
        try:
            text = self._apply(turns, generates=True)
        except (BadRequest, ValueError):  # The template refuses them, or there is none.
            return False
        return re.findall(r"probe \d", text) == [turn["content"] for turn in turns]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; empty for special tokens."""
        if token_id < 0:
            raise IndexError(token_id)
        return self._bytes[token_id]

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its exact name; None where the vocabulary has none."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    @property
    def image_token_ids(self) -> frozenset[int]:
        """Return the ids that stand for images and videos in a prompt, and around them."""
        return frozenset(i for i in map(self.id_of, _IMAGE_TOKENS) if i is not None)

    def name_of(self, token_id: int) -> str | None:
        """Return the token's text if encoding that text returns exactly this token, else None."""
        text = self._backend.decode([token_id], skip_special_tokens=False)
        return text if text and self.encode(text) == [token_id] else None


def load(path: str, vocab_size: int) -> HfTokenizer:
    """Return the tokenizer of a checkpoint directory or Hugging Face name."""
    from transformers import AutoTokenizer

    return HfTokenizer(AutoTokenizer.from_pretrained(path), vocab_size)


def _has_thought(message: Message) -> bool:
    return bool(message.thought.strip())


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
