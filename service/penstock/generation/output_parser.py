"""Split the sampled tokens into thought and answer: a state machine over token ids that enforces the thinking budget.

    THOUGHT --close marker--> ANSWER --EOS | stop token | stop string | max tokens--> end  (stops apply only here)
       |--- budget spent, or EOS inside the thought ---> the driver must close the thought (StepAction.CLOSE_THOUGHT_*)
                                ANSWER --open marker--> the driver must continue without it (StepAction.REOPENED)
                                ANSWER --end below the minimum--> the driver must continue without it (TOO_SHORT)

The parser keeps only tokens that fit the budget; the rest of a chunk after an action is dropped, and the driver starts
a continuation from `context_ids`. That makes the budget exact whatever the engine does: with speculative decoding a
chunk may hold several tokens past the budget.
"""

from __future__ import annotations

import codecs
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.types import Delta, Markers, TokenLogprobs


class StepAction(enum.Enum):
    """Enumerate what must happen before the next token; GO_ON is nothing."""

    GO_ON = enum.auto()
    CLOSE_THOUGHT_AT_BUDGET = enum.auto()
    CLOSE_THOUGHT_AFTER_EOS = enum.auto()
    REOPENED = enum.auto()
    TOO_SHORT = enum.auto()
    CLOSE_THOUGHT_BY_CLIENT = enum.auto()
    CLOSE_THOUGHT_BEFORE_DEADLINE = enum.auto()
    BUDGET_CHANGED = enum.auto()
    ENGINE_RAN_OUT = enum.auto()
    EOS = enum.auto()
    STOP_TOKEN = enum.auto()
    STOP_STRING = enum.auto()
    MAX_OUTPUT_TOKENS = enum.auto()
    CANCELLED = enum.auto()
    DRAINED = enum.auto()


class Utf8Text:
    """Decode the bytes of tokens into whole characters.

    Invalid bytes become U+FFFD; the bytes of a character that is incomplete at the end of the text are dropped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def incomplete(self) -> bytes:
        """Return the bytes of a character that is not complete yet."""
        return self._decoder.getstate()[0]

    def push(self, piece: bytes) -> str:
        """Return the characters that these bytes complete."""
        return self._decoder.decode(piece)

    def end(self) -> None:
        """End the text and drop an incomplete character."""
        self._decoder.reset()


class StopStrings:
    """Find the first stop string in a stream of text, and hold back only text that may become one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stops = tuple(stop_strings)
        self._held = ""
        self.matched = ""

    def push(self, text: str) -> str:
        """Return the text that is certainly before any stop string. Sets `matched` once one is found."""
        if not self._stops:
            return text
        text = self._held + text
        hits = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if hits:
            # The earliest start wins, and at the same place the longer one, so that the result does not depend on the
            # order of the caller's list.
            at, self.matched = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return text[:at]
        keep = self._longest_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def held(self) -> str:
        """Return the text that is held back."""
        return self._held

    def hold(self, text: str) -> None:
        """Continue from the text that another instance held back."""
        self._held = text

    def _longest_held(self, text: str) -> int:
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def flush(self) -> str:
        """Return the text that is held back, and forget it."""
        held, self._held = self._held, ""
        return held


@dataclass(slots=True)
class _Pending:
    """Collect the next delta of one kind."""

    text: str = ""
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def is_due(self, over: bool) -> bool:
        return bool(self.text) or (over and self.tokens > 0)

    def to_delta(self, candidate_index: int, *, is_thought: bool) -> Delta:
        return Delta(
            candidate_index=candidate_index,
            is_thought=is_thought,
            text=self.text,
            token_count=self.tokens,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
        )


@dataclass(frozen=True, slots=True)
class ParserSettings:
    """Configure a parser. Budgets are in tokens; `markers` None is a model without thoughts."""

    markers: Markers | None
    eos_ids: frozenset[int]
    thought_budget_tokens: int
    max_output_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_output_tokens: int = 0
    """Number of output tokens before which neither the end of turn nor a stop ends the answer."""
    trims_answer_start: bool = True
    """Whether line breaks between thought and answer are removed from the answer's text."""


class OutputParser:
    """Parse the tokens of one candidate. `context_ids` are all tokens after the prompt that a continuation needs."""

    def __init__(
        self,
        settings: ParserSettings,
        token_bytes: Callable[[int], bytes],
        *,
        candidate_index: int = 0,
        in_thought: bool,
        may_open: bool = False,
    ) -> None:
        self._settings = settings
        self._bytes = token_bytes
        markers = settings.markers
        marker_ids = () if markers is None else (markers.open_id, markers.close_id)
        self._special_ids = settings.eos_ids | settings.stop_token_ids | frozenset(marker_ids)
        self._index = candidate_index
        self.in_thought = in_thought
        self._may_open = may_open
        self.thought_tokens = 0
        self.answer_tokens = 0
        self.marker_tokens = 0
        self.thought_budget_tokens = settings.thought_budget_tokens
        self.context_ids: list[int] = []
        self.answer_start = 0
        """Index in `context_ids` at which the answer starts, once it has started."""
        self._thought_text = Utf8Text()
        self._answer_text = Utf8Text()
        self._stops = StopStrings(settings.stop_strings)
        # The separator after the marker is generated and counted, but is not part of the answer's text.
        self._trim_answer_start = settings.trims_answer_start and settings.markers is not None and in_thought
        self._thought = _Pending()
        self._answer = _Pending()

    @property
    def matched_stop(self) -> str:
        """Return the stop string that was found; empty for none."""
        return self._stops.matched

    @property
    def output_tokens(self) -> int:
        """Return the number of thought and answer tokens."""
        return self.thought_tokens + self.answer_tokens

    @property
    def may_think(self) -> bool:
        """Return whether the next token may belong to a thought, where the caller's stops do not apply."""
        return self.in_thought or (self._may_open and not self.answer_tokens)

    @property
    def _is_too_short(self) -> bool:
        return self.output_tokens < self._settings.min_output_tokens

    def push(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> StepAction:
        """Parse one engine step. Tokens after the first one that requires an action are dropped."""
        if not logprobs and self._is_plain(ids):
            self._plain_tokens(ids)
            return StepAction.GO_ON
        for position, token_id in enumerate(ids):
            logprob = logprobs[position] if logprobs else None
            action = (
                self._thought_token(token_id, logprob) if self.in_thought else self._answer_token(token_id, logprob)
            )
            if action is not StepAction.GO_ON:
                return action
        return StepAction.GO_ON

    def _is_plain(self, ids: Sequence[int]) -> bool:
        """Return whether all tokens are plain text and fit: true for nearly every step of every stream."""
        if not self._special_ids.isdisjoint(ids):
            return False
        room = self._settings.max_output_tokens - self.output_tokens
        if self.in_thought:
            room = min(room, self.thought_budget_tokens - self.thought_tokens)
            return len(ids) <= room
        return len(ids) < room and not self._settings.stop_strings

    def _plain_tokens(self, ids: Sequence[int]) -> None:
        """Parse all tokens of a step at once, with the same result as one by one."""
        piece = self._bytes(ids[0]) if len(ids) == 1 else b"".join(map(self._bytes, ids))
        if self.in_thought:
            self.thought_tokens += len(ids)
            pending, text = self._thought, self._thought_text.push(piece)
        else:
            self.answer_tokens += len(ids)
            pending, text = self._answer, self._answer_piece(piece)
        self.context_ids.extend(ids)
        pending.text += text
        pending.tokens += len(ids)
        pending.token_ids.extend(ids)

    def _thought_token(self, token_id: int, logprob: TokenLogprobs | None) -> StepAction:
        settings = self._settings
        if settings.markers is not None and token_id == settings.markers.close_id:
            self.marker_tokens += 1
            self.context_ids.append(token_id)
            self._leave_thought()
            return StepAction.GO_ON
        if token_id in settings.eos_ids:
            # The end of turn inside a thought is dropped, so that an answer can still follow.
            self.marker_tokens += 1
            return StepAction.CLOSE_THOUGHT_AFTER_EOS
        if self.thought_tokens >= self.thought_budget_tokens:
            return StepAction.CLOSE_THOUGHT_AT_BUDGET
        if self.output_tokens >= settings.max_output_tokens:
            return StepAction.MAX_OUTPUT_TOKENS
        self.thought_tokens += 1
        self.context_ids.append(token_id)
        self._keep(self._thought, token_id, logprob, self._thought_text.push(self._bytes(token_id)))
        return StepAction.GO_ON

    def _answer_token(self, token_id: int, logprob: TokenLogprobs | None) -> StepAction:
        settings = self._settings
        if settings.markers is not None and token_id in (settings.markers.open_id, settings.markers.close_id):
            return self._answer_marker(token_id, settings.markers)
        if self.output_tokens >= settings.max_output_tokens:
            return StepAction.MAX_OUTPUT_TOKENS
        ends = token_id in settings.eos_ids or token_id in settings.stop_token_ids
        if ends and self._is_too_short:
            return StepAction.TOO_SHORT
        self.answer_tokens += 1
        self.context_ids.append(token_id)
        text = "" if ends else self._answer_piece(self._bytes(token_id))
        self._keep(self._answer, token_id, logprob, text)
        if ends:
            return StepAction.EOS if token_id in settings.eos_ids else StepAction.STOP_TOKEN
        if self._stops.matched:
            return StepAction.STOP_STRING
        return StepAction.MAX_OUTPUT_TOKENS if self.output_tokens >= settings.max_output_tokens else StepAction.GO_ON

    def _answer_marker(self, token_id: int, markers: Markers) -> StepAction:
        opens = token_id == markers.open_id
        if opens and self.may_think:
            # For a raw prompt without an open think section, the first token may open the only thought.
            self._may_open = False
            self.in_thought = True
            self._trim_answer_start = self._settings.trims_answer_start
        elif token_id in self._settings.stop_token_ids and self._is_too_short:
            return StepAction.TOO_SHORT
        elif opens and token_id not in self._settings.stop_token_ids:
            return StepAction.REOPENED
        else:
            self._may_open = False
        self.marker_tokens += 1
        self.context_ids.append(token_id)
        if not self.in_thought and token_id in self._settings.stop_token_ids:
            return StepAction.STOP_TOKEN
        return StepAction.GO_ON

    def _answer_piece(self, piece: bytes) -> str:
        text = self._answer_text.push(piece)
        if self._trim_answer_start:
            text = text.lstrip("\n")
            self._trim_answer_start = not text
        # Text within the minimum is never cut: the client may have it already when a stop string ends after it.
        return text if self.output_tokens <= self._settings.min_output_tokens else self._stops.push(text)

    @staticmethod
    def _keep(pending: _Pending, token_id: int, logprob: TokenLogprobs | None, text: str) -> None:
        pending.text += text
        pending.tokens += 1
        pending.token_ids.append(token_id)
        if logprob is not None:
            pending.logprobs.append(logprob)

    def state(self) -> dict[str, Any]:
        """Return plain data from which another parser with these settings can continue."""
        return {
            "in_thought": self.in_thought,
            "may_open": self._may_open,
            "trim": self._trim_answer_start,
            "counts": [self.thought_tokens, self.answer_tokens, self.marker_tokens],
            "budget": self.thought_budget_tokens,
            "context_ids": self.context_ids,
            "answer_start": self.answer_start,
            "incomplete": [list(self._thought_text.incomplete), list(self._answer_text.incomplete)],
            "held": self._stops.held,
            "pending": [[p.tokens, p.token_ids] for p in (self._thought, self._answer)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another parser."""
        self.in_thought, self._may_open = state["in_thought"], state["may_open"]
        self._trim_answer_start = state["trim"]
        self.thought_tokens, self.answer_tokens, self.marker_tokens = state["counts"]
        self.thought_budget_tokens, self.answer_start = state["budget"], state["answer_start"]
        self.context_ids = list(state["context_ids"])
        for text, incomplete in zip((self._thought_text, self._answer_text), state["incomplete"], strict=True):
            text.push(bytes(incomplete))
        self._stops.hold(state["held"])
        for pending, (tokens, ids) in zip((self._thought, self._answer), state["pending"], strict=True):
            pending.tokens, pending.token_ids = tokens, list(ids)

    def close_thought(self, closing_ids: Sequence[int]) -> None:
        """Close the thought: append `closing_ids` to the context without counting them as output."""
        self.context_ids.extend(closing_ids)
        self.marker_tokens += len(closing_ids)
        self._leave_thought()

    def _leave_thought(self) -> None:
        self._thought_text.end()
        self.in_thought = False
        self.answer_start = len(self.context_ids)

    def pop_deltas(self, *, final: bool = False) -> list[Delta]:
        """Return the deltas that are due, thought before answer. Tokens without text wait for it, unless `final`."""
        if final:
            self._answer.text += self._flush_answer()
            self._thought_text.end()
        deltas = []
        if self._thought.is_due(final or not self.in_thought):
            deltas.append(self._thought.to_delta(self._index, is_thought=True))
            self._thought = _Pending()
        if self._answer.is_due(final):
            deltas.append(self._answer.to_delta(self._index, is_thought=False))
            self._answer = _Pending()
        return deltas

    def _flush_answer(self) -> str:
        self._answer_text.end()
        return "" if self._stops.matched else self._stops.flush()
