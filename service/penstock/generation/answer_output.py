"""Turn the tokens of an answer into events: text without stop strings, and tool calls where tools may be called.

A token whose text may or may not begin a call is undecided until that is known; it counts as an answer token until
then. What closes a call belongs to the next call, and behind the last one to the answer, like the end of turn: so the
counts of the events of calls sum to the tool tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.generation.text import StopStrings, Utf8Text
from penstock.generation.tool_calls import CallArguments, CallFinished, CallStarted, Piece, TextPiece, ToolCallParser
from penstock.types import (
    Delta,
    TokenLogprobs,
    ToolCall,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
    ToolCallStatus,
    ToolEvent,
)


@dataclass(slots=True)
class PendingDelta:
    """Collect the next delta of one kind."""

    text: str = ""
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, text: str, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """Add tokens and the text that they complete."""
        self.text += text
        self.tokens += len(ids)
        self.token_ids.extend(ids)
        self.logprobs.extend(logprobs)

    def state(self) -> list[Any]:
        """Return plain data from which another one can continue. It is popped before wherever it has text."""
        return [self.tokens, self.token_ids, msgspec.to_builtins(self.logprobs)]

    def restore(self, state: Sequence[Any]) -> None:
        """Continue from the `state` of another one."""
        self.tokens, self.token_ids = state[0], list(state[1])
        self.logprobs = msgspec.convert(state[2], list[TokenLogprobs])

    def is_due(self, over: bool) -> bool:
        """Return whether it is to be sent: tokens without text wait for it, unless the output is `over`."""
        return bool(self.text) or (over and self.tokens > 0)

    def to_delta(self, candidate_index: int, *, is_thought: bool) -> Delta:
        """Return it as an event."""
        return Delta(
            candidate_index=candidate_index,
            is_thought=is_thought,
            text=self.text,
            token_count=self.tokens,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
        )


class AnswerOutput:
    """Collect the answer of one candidate. `tools` is None where no tool may be called."""

    def __init__(
        self, candidate_index: int, stop_strings: Sequence[str], tools: ToolCallParser | None, call_id_prefix: str
    ) -> None:
        self._index = candidate_index
        self._text = Utf8Text()
        self._stops = StopStrings(stop_strings)
        self._stops_in_breaks = StopStrings(stop_strings)
        """Finds stop strings in line breaks that the tool-call parser holds back, as early as in other text."""
        self._unsearched_breaks = 0
        """How many of these line breaks came within the minimum length."""
        self._tools = tools
        self._call_id_prefix = call_id_prefix
        self._pending = PendingDelta()
        self._undecided = PendingDelta()
        self._ending = PendingDelta()
        self._untold_tool_tokens = 0
        self._events: list[Delta | ToolEvent] = []
        self.trims_start = False
        """Whether line breaks at the start are left out of the text."""
        self.answer_tokens = 0
        self.tool_tokens = 0
        self.complete_calls = 0

    @property
    def matched_stop(self) -> str:
        """Return the stop string that was found; empty for none."""
        return self._stops.matched

    @property
    def may_have_calls(self) -> bool:
        """Return whether tools may be called."""
        return self._tools is not None

    @property
    def is_in_call(self) -> bool:
        """Return whether the output so far ends inside a tool call, its header included, where stops do not apply."""
        return self._tools is not None and self._tools.in_call

    @property
    def calls_are_made(self) -> bool:
        """Return whether as many calls are over as may be made."""
        return self._tools is not None and self._tools.is_full

    def push(
        self, piece: bytes, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = (), *, searches_stops: bool = True
    ) -> None:
        """Add tokens that stand for the bytes `piece`. With tools it is called for each token by itself.

        `searches_stops` is False within the minimum length: text there is never cut, because the client may have it
        already when a stop string ends after it.
        """
        self.answer_tokens += len(ids)
        text = self._text.push(piece)
        if self.trims_start:
            text = text.lstrip("\n")
            self.trims_start = not text
        if self._tools is None:
            self._pending.add(self._stops.push(text) if searches_stops else text, ids, logprobs)
            return
        self._undecided.add("", ids, logprobs)
        self._append(self._tools.push(text), searches_stops=searches_stops)
        breaks = self._tools.pop_breaks()
        if breaks and searches_stops:
            self._search_breaks(breaks)
        else:
            self._unsearched_breaks += len(breaks)

    def push_end(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """Add a token that ended the output; it has no text, and comes after all undecided tokens."""
        self.answer_tokens += len(ids)
        self._ending.add("", ids, logprobs)

    def _append(self, pieces: Sequence[Piece], *, searches_stops: bool = True) -> None:
        """Append the events of what the tool-call parser found; the newest tokens are among the undecided ones."""
        tools = self._tools
        assert tools is not None
        if tools.is_in_arguments or any(not isinstance(piece, TextPiece) for piece in pieces):
            self._decide_for_call()
        elif pieces:
            self._decide_for_text()
        for piece in pieces:
            if self._stops.matched and isinstance(piece, TextPiece):
                continue  # The text behind a stop string was held back until now.
            if isinstance(piece, TextPiece):
                self._append_text(piece.text, searches_stops=searches_stops)
            else:
                self._append_call_event(piece)

    def _append_text(self, text: str, *, searches_stops: bool) -> None:
        begin = self._unsearched_breaks if searches_stops else len(text)
        self._pending.text += text[:begin] + self._stops.push(text[begin:])
        self._forget_breaks()

    def _search_breaks(self, breaks: str) -> None:
        """Search line breaks that the parser holds back. They are text where a stop string is in them."""
        assert self._tools is not None
        self._stops_in_breaks.push(breaks)
        if self._stops_in_breaks.matched:
            self._append(self._tools.end())

    def _forget_breaks(self) -> None:
        self._stops_in_breaks.hold(self._stops.held)
        self._unsearched_breaks = 0

    def _decide_for_call(self) -> None:
        tokens, self._undecided = self._undecided.tokens, PendingDelta()
        self.answer_tokens -= tokens
        self.tool_tokens += tokens
        self._untold_tool_tokens += tokens

    def _decide_for_text(self) -> None:
        undecided, self._undecided = self._undecided, PendingDelta()
        self._pending.add("", undecided.token_ids, undecided.logprobs)

    def _append_call_event(self, piece: CallStarted | CallArguments | CallFinished) -> None:
        tokens, self._untold_tool_tokens = self._untold_tool_tokens, 0
        at = self._index, piece.index
        call_id = f"{self._call_id_prefix}{piece.index}"
        event: ToolEvent
        match piece:
            case CallStarted():
                # A stop string does not reach over a call, so what is held back for one is text.
                self._pending.text += self._stops.flush()
                self._forget_breaks()
                self._flush_pending()
                event = ToolCallStarted(*at, call_id, piece.name, tokens)
            case CallArguments():
                event = ToolCallArguments(*at, piece.json_fragment, tokens)
            case CallFinished():
                self.complete_calls += piece.status is ToolCallStatus.COMPLETE
                call = ToolCall(call_id, piece.name, piece.arguments_json, piece.status)
                event = ToolCallFinished(*at, call, tokens)
        self._events.append(event)

    def _flush_pending(self) -> None:
        if self._pending.is_due(over=True):
            self._events.append(self._pending.to_delta(self._index, is_thought=False))
            self._pending = PendingDelta()

    def pop_events(self, *, final: bool, was_cut: bool = False) -> list[Delta | ToolEvent]:
        """Return the events that are due, in order. `final`: the output is over, and an open call is INCOMPLETE.

        `was_cut`: the model did not end it.
        """
        if final:
            self._text.end()
            if self._tools is not None:
                self._append(self._tools.end(was_cut=was_cut))
                self._decide_for_text()
            if not self._stops.matched:
                self._pending.text += self._stops.flush()
            self._pending.add("", self._ending.token_ids, self._ending.logprobs)
            self._ending = PendingDelta()
        events, self._events = self._events, []
        if self._pending.is_due(final):
            events.append(self._pending.to_delta(self._index, is_thought=False))
            self._pending = PendingDelta()
        return events

    def state(self) -> dict[str, Any]:
        """Return plain data from which another one can continue. Events that are due have been popped before."""
        return {
            "counts": [self.answer_tokens, self.tool_tokens, self.complete_calls, self._untold_tool_tokens],
            "trim": self.trims_start,
            "incomplete": list(self._text.incomplete),
            "held": self._stops.held,
            "unsearched": self._unsearched_breaks,
            "pending": [pending.state() for pending in (self._pending, self._undecided)],
            "tools": self._tools.state() if self._tools is not None else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another one."""
        self.answer_tokens, self.tool_tokens, self.complete_calls, self._untold_tool_tokens = state["counts"]
        self.trims_start = state["trim"]
        self._text.push(bytes(state["incomplete"]))
        self._stops.hold(state["held"])
        for pending, saved in zip((self._pending, self._undecided), state["pending"], strict=True):
            pending.restore(saved)
        if self._tools is not None and state["tools"] is not None:
            self._tools.restore(state["tools"])
            self._unsearched_breaks = state["unsearched"]
            self._stops_in_breaks.hold(self._stops.held)
            self._stops_in_breaks.push(self._tools.pop_breaks()[self._unsearched_breaks :])
