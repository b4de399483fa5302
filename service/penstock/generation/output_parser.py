"""Split the sampled tokens into thought and answer: a state machine over token ids that enforces the thinking budget.

    THOUGHT --close marker--> ANSWER --EOS | stop token | stop string | max tokens--> end  (stops apply only here)
       |--- budget spent, a stop pattern, or EOS inside the thought ---> the driver must close it (CLOSE_THOUGHT_*)
                                ANSWER --open marker--> the driver must continue without it (StepAction.REOPENED)
                                ANSWER --end below the minimum--> the driver must continue without it (TOO_SHORT)
       |--- the marker of a tool call ---> the driver must close the thought before the call (CLOSE_THOUGHT_FOR_CALL)
                                ANSWER --think marker in a tool call--> the driver must start a new run (MARKER_IN_CALL)
                                ANSWER --the engine stopped in a tool call--> likewise (STOP_IN_CALL)
                                ANSWER --as many tool calls as may be made--> end (CALLS_MADE)

The parser keeps only tokens that fit the budget; the rest of a chunk after an action is dropped, and the driver starts
a continuation from `context_ids`. That makes the budget exact whatever the engine does: with speculative decoding a
chunk may hold several tokens past the budget.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.generation.answer_output import AnswerOutput, PendingDelta
from penstock.generation.stop_patterns import ThoughtStops
from penstock.generation.text import Utf8Text
from penstock.generation.tool_calls import ToolCallParser
from penstock.types import Delta, Markers, StopPatterns, TokenLogprobs, ToolEvent


class StepAction(enum.Enum):
    """Enumerate what must happen before the next token; GO_ON is nothing."""

    GO_ON = enum.auto()
    CLOSE_THOUGHT_AT_BUDGET = enum.auto()
    CLOSE_THOUGHT_AFTER_EOS = enum.auto()
    REOPENED = enum.auto()
    MARKER_IN_CALL = enum.auto()
    TOO_SHORT = enum.auto()
    STOP_IN_CALL = enum.auto()
    CLOSE_THOUGHT_AT_PATTERN = enum.auto()
    CLOSE_THOUGHT_CONVERGED = enum.auto()
    CLOSE_THOUGHT_BY_CLIENT = enum.auto()
    CLOSE_THOUGHT_BEFORE_DEADLINE = enum.auto()
    CLOSE_THOUGHT_FOR_CALL = enum.auto()
    BUDGET_CHANGED = enum.auto()
    ENGINE_RAN_OUT = enum.auto()
    EOS = enum.auto()
    STOP_TOKEN = enum.auto()
    STOP_STRING = enum.auto()
    MAX_OUTPUT_TOKENS = enum.auto()
    CALLS_MADE = enum.auto()
    CANCELLED = enum.auto()
    DRAINED = enum.auto()


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
    tool_call_id: int | None = None
    """The token that begins a tool call; None where tools cannot be called or calls begin with text alone."""
    stop_patterns: StopPatterns | None = None
    """What ends the thought where it shows."""
    marker_logprob: float | None = None
    """Log probability of the closing marker at the end of a line from which on the thought ends there."""
    is_greedy: bool = False
    """Whether the most likely token is always drawn."""
    gives_logprobs: bool = True
    """Whether the caller gets log probabilities, where the engine tells them."""
    top_logprobs: int | None = None
    """How many alternatives of each token the caller gets at most; None gives all that the engine tells."""
    candidate_index: int = 0
    call_id_prefix: str = ""
    """What the ids of tool calls begin with; the number of the call follows."""


@dataclass(frozen=True, slots=True)
class ThoughtMark:
    """Mark a place between two characters of a thought, as a parser made it."""

    thought_tokens: int
    context_tokens: int
    lines: int
    line_end: int
    stops: Any


class OutputParser:
    """Parse the tokens of one candidate. `context_ids` are all tokens after the prompt that a continuation needs."""

    def __init__(
        self,
        settings: ParserSettings,
        token_bytes: Callable[[int], bytes],
        *,
        in_thought: bool,
        may_open: bool = False,
        tools: ToolCallParser | None = None,
    ) -> None:
        self._settings = settings
        self._bytes = token_bytes
        markers = settings.markers
        marker_ids = () if markers is None else (markers.open_id, markers.close_id)
        self._special_ids = settings.eos_ids | settings.stop_token_ids | frozenset(marker_ids)
        if settings.tool_call_id is not None:
            self._special_ids |= {settings.tool_call_id}
        self._index = settings.candidate_index
        self.in_thought = in_thought
        self._may_open = may_open
        self.thought_tokens = 0
        self.marker_tokens = 0
        self.thought_budget_tokens = settings.thought_budget_tokens
        self.context_ids: list[int] = []
        self.answer_start = 0
        """Index in `context_ids` at which the answer starts, once it has started."""
        self._thought_text = Utf8Text()
        self._thought = PendingDelta()
        self._thought_stops = ThoughtStops(settings.stop_patterns) if settings.stop_patterns else None
        self._call_logprob: TokenLogprobs | None = None
        self.lines = 0
        """Number of lines of the thought that are complete."""
        self.line_end = 0
        """Number of tokens in `context_ids` up to the end of the last of them."""
        self.engine_exits = False
        """Whether the engine forces the marker in this run where it is likely enough."""
        self.exited = False
        """Whether the engine ended the thought so."""
        self._answer = AnswerOutput(settings.candidate_index, settings.stop_strings, tools, settings.call_id_prefix)
        # The separator after the marker is generated and counted, but is not part of the answer's text.
        self._answer.trims_start = settings.trims_answer_start and settings.markers is not None and in_thought

    @property
    def matched_stop(self) -> str:
        """Return the stop string that was found; empty for none."""
        return self._answer.matched_stop

    @property
    def answer_tokens(self) -> int:
        """Return the number of answer tokens."""
        return self._answer.answer_tokens

    @property
    def tool_tokens(self) -> int:
        """Return the number of tokens of tool calls."""
        return self._answer.tool_tokens

    @property
    def output_tokens(self) -> int:
        """Return the number of thought, answer and tool-call tokens."""
        return self.thought_tokens + self._answer.answer_tokens + self._answer.tool_tokens

    @property
    def complete_calls(self) -> int:
        """Return the number of tool calls that are over and whole."""
        return self._answer.complete_calls

    @property
    def may_think(self) -> bool:
        """Return whether the next token may belong to a thought, where the caller's stops do not apply."""
        return self.in_thought or (self._may_open and self.output_tokens == 0)

    @property
    def _is_too_short(self) -> bool:
        return self.output_tokens < self._settings.min_output_tokens

    def push(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> StepAction:
        """Parse one engine step. Tokens after the first one that requires an action are dropped."""
        if (not logprobs or self._may_drop_logprobs) and self._is_plain(ids):
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

    @property
    def _may_drop_logprobs(self) -> bool:
        """Whether log probabilities are of no use: the caller asked for none, and no sign is read from them."""
        return not self._settings.gives_logprobs and not (self.in_thought and self.marker_is_read)

    @property
    def marker_is_read(self) -> bool:
        """Return whether the thought may end by the closing marker's probability."""
        return self._settings.marker_logprob is not None

    @property
    def is_at_line_end(self) -> bool:
        """Return whether the thought so far ends with a line."""
        return self.lines > 0 and self.line_end == len(self.context_ids)

    def _is_plain(self, ids: Sequence[int]) -> bool:
        """Return whether all tokens are plain text and fit: true for nearly every step of every stream."""
        if not self._special_ids.isdisjoint(ids):
            return False
        room = self._settings.max_output_tokens - self.output_tokens
        if self.in_thought:
            room = min(room, self.thought_budget_tokens - self.thought_tokens)
            return len(ids) <= room and self._thought_stops is None
        return len(ids) < room and not self._settings.stop_strings and not self._answer.may_have_calls

    def _plain_tokens(self, ids: Sequence[int]) -> None:
        """Parse all tokens of a step at once, with the same result as one by one."""
        piece = self._bytes(ids[0]) if len(ids) == 1 else b"".join(map(self._bytes, ids))
        self.context_ids.extend(ids)
        if self.in_thought:
            self.thought_tokens += len(ids)
            self._thought.add(self._thought_text.push(piece), ids)
            if b"\n" in piece:
                self._count_lines(ids)
        else:
            self._answer.push(piece, ids)

    def _thought_token(self, token_id: int, logprob: TokenLogprobs | None) -> StepAction:
        settings = self._settings
        if settings.markers is not None and token_id == settings.markers.close_id:
            self.exited = self._is_exit(logprob)
            self.marker_tokens += 1
            self.context_ids.append(token_id)
            self._leave_thought()
            return StepAction.GO_ON
        if token_id in settings.eos_ids:
            # The end of turn inside a thought is dropped, so that an answer can still follow.
            self.marker_tokens += 1
            return StepAction.CLOSE_THOUGHT_AFTER_EOS
        if token_id == settings.tool_call_id:
            self._call_logprob = logprob
            return StepAction.CLOSE_THOUGHT_FOR_CALL
        if self.thought_tokens >= self.thought_budget_tokens:
            return StepAction.CLOSE_THOUGHT_AT_BUDGET
        if self.output_tokens >= settings.max_output_tokens:
            return StepAction.MAX_OUTPUT_TOKENS
        if logprob is not None and self._marker_is_likely(logprob):
            return StepAction.CLOSE_THOUGHT_CONVERGED
        self.thought_tokens += 1
        self.context_ids.append(token_id)
        piece = self._bytes(token_id)
        text = self._thought_text.push(piece)
        self._thought.add(text, (token_id,), self._for_caller(logprob))
        if b"\n" in piece:
            self._count_lines((token_id,))
        if self._thought_stops is not None and self._thought_stops.push(text):
            # The token stays in the thought: it was generated and counted, and the model sees what ended its thought.
            return StepAction.CLOSE_THOUGHT_AT_PATTERN
        return StepAction.GO_ON

    def _count_lines(self, ids: Sequence[int]) -> None:
        """Count the tokens that end a line among the last ones. One that also begins the next line ends it as well."""
        start = len(self.context_ids) - len(ids)
        ends = [start + at for at, token_id in enumerate(ids, 1) if b"\n" in self._bytes(token_id)]
        self.lines += len(ends)
        self.line_end = ends[-1]

    def _marker_is_likely(self, logprob: TokenLogprobs) -> bool:
        """Return whether the model would rather end the thought here than its threshold says, after a whole line."""
        least, markers = self._settings.marker_logprob, self._settings.markers
        if least is None or markers is None or not self.is_at_line_end:
            return False
        return any(one.token_id == markers.close_id and one.logprob >= least for one in logprob.top)

    def _is_exit(self, logprob: TokenLogprobs | None) -> bool:
        """Return whether the engine forced this closing marker. A greedy model writes the likeliest token itself."""
        least = self._settings.marker_logprob
        if not self.engine_exits or least is None or logprob is None or not self.is_at_line_end:
            return False
        return logprob.sampled.logprob >= least and (logprob.sampled.rank > 1 or not self._settings.is_greedy)

    def _for_caller(self, logprob: TokenLogprobs | None) -> tuple[TokenLogprobs, ...]:
        """Return the log probabilities of one token as far as the caller asked for them."""
        most = self._settings.top_logprobs
        if logprob is None or not self._settings.gives_logprobs:
            return ()
        if most is None or len(logprob.top) <= most:
            return (logprob,)
        return (TokenLogprobs(logprob.sampled, logprob.top[:most]),)

    def _answer_token(self, token_id: int, logprob: TokenLogprobs | None) -> StepAction:
        settings = self._settings
        markers = settings.markers
        is_marker = markers is not None and token_id in (markers.open_id, markers.close_id)
        if is_marker and not self._answer.is_in_call:
            assert markers is not None
            return self._answer_marker(token_id, markers)
        if self.output_tokens >= settings.max_output_tokens:
            return StepAction.MAX_OUTPUT_TOKENS
        stops = token_id in settings.stop_token_ids and not self._answer.is_in_call
        ends = token_id in settings.eos_ids or stops
        if ends and self._is_too_short:
            return StepAction.TOO_SHORT
        self.context_ids.append(token_id)
        logprobs = self._for_caller(logprob)
        if ends:
            self._answer.push_end((token_id,), logprobs)
            return StepAction.EOS if token_id in settings.eos_ids else StepAction.STOP_TOKEN
        searches = self.output_tokens + 1 > settings.min_output_tokens
        self._answer.push(self._bytes(token_id), (token_id,), logprobs, searches_stops=searches)
        if self._answer.matched_stop:
            return StepAction.STOP_STRING
        if self._answer.calls_are_made:
            return StepAction.CALLS_MADE
        if self.output_tokens >= settings.max_output_tokens:
            return StepAction.MAX_OUTPUT_TOKENS
        # The engine would take what follows an opening marker for a thought, and could close it at its budget.
        return StepAction.MARKER_IN_CALL if is_marker else StepAction.GO_ON

    def _answer_marker(self, token_id: int, markers: Markers) -> StepAction:
        opens = token_id == markers.open_id
        if opens and self.may_think:
            # For a raw prompt without an open think section, the first token may open the only thought.
            self._may_open = False
            self.in_thought = True
            self._answer.trims_start = self._settings.trims_answer_start
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

    def mark(self) -> ThoughtMark | None:
        """Return a place in the thought to go back to; None inside a character. Due events have been popped before."""
        if self._thought.tokens or self._thought_text.incomplete:
            return None
        stops = self._thought_stops.state() if self._thought_stops is not None else None
        return ThoughtMark(self.thought_tokens, len(self.context_ids), self.lines, self.line_end, stops)

    def rewind(self, mark: ThoughtMark) -> None:
        """Forget what came after a mark, in the same thought. Its events must not have been sent."""
        self.thought_tokens, self.lines, self.line_end = mark.thought_tokens, mark.lines, mark.line_end
        del self.context_ids[mark.context_tokens :]
        self._thought = PendingDelta()
        self._thought_text.end()
        if self._thought_stops is not None:
            self._thought_stops.restore(mark.stops)

    def state(self) -> dict[str, Any]:
        """Return plain data from which another parser with these settings can continue."""
        return {
            "in_thought": self.in_thought,
            "may_open": self._may_open,
            "thought": [self.thought_tokens, self._thought.state()],
            "incomplete": list(self._thought_text.incomplete),
            "marker_tokens": self.marker_tokens,
            "budget": self.thought_budget_tokens,
            "context_ids": self.context_ids,
            "answer_start": self.answer_start,
            "answer": self._answer.state(),
            "stops": self._thought_stops.state() if self._thought_stops is not None else None,
            "lines": [self.lines, self.line_end],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another parser."""
        self.in_thought, self._may_open = state["in_thought"], state["may_open"]
        self.thought_tokens, thought = state["thought"]
        self._thought.restore(thought)
        self._thought_text.push(bytes(state["incomplete"]))
        self.marker_tokens, self.thought_budget_tokens = state["marker_tokens"], state["budget"]
        self.context_ids, self.answer_start = list(state["context_ids"]), state["answer_start"]
        self._answer.restore(state["answer"])
        if self._thought_stops is not None and state.get("stops") is not None:  # not in those of earlier versions
            self._thought_stops.restore(state["stops"])
        self.lines, self.line_end = state.get("lines", (0, 0))

    def close_thought(self, closing_ids: Sequence[int]) -> None:
        """Close the thought: append `closing_ids` to the context without counting them as output."""
        self.context_ids.extend(closing_ids)
        self.marker_tokens += len(closing_ids)
        self._leave_thought()

    def begin_call(self) -> StepAction:
        """Add the token that begins a tool call, which the model wrote inside its thought; close that before.

        The token is the answer's first: the caller's limits and stops apply to it.
        """
        call_id = self._settings.tool_call_id
        assert call_id is not None
        assert not self.in_thought
        return self._answer_token(call_id, self._call_logprob)

    def _leave_thought(self) -> None:
        self._thought_text.end()
        self.in_thought = False
        self.answer_start = len(self.context_ids)

    def pop_events(self, *, final: bool = False, was_cut: bool = False) -> list[Delta | ToolEvent]:
        """Return the events that are due, thought before answer. Tokens without text wait for it, unless `final`.

        `was_cut`: the output is over, and not by the model.
        """
        if final:
            self._thought_text.end()
        events: list[Delta | ToolEvent] = []
        if self._thought.is_due(final or not self.in_thought):
            events.append(self._thought.to_delta(self._index, is_thought=True))
            self._thought = PendingDelta()
        return events + self._answer.pop_events(final=final, was_cut=was_cut)
