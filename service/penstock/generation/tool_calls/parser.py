"""Find the tool calls in the text of an answer, as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from penstock.generation.tool_calls.json_calls import JsonCalls
from penstock.generation.tool_calls.pieces import Piece, PieceCollector
from penstock.generation.tool_calls.source import Reading, Source
from penstock.generation.tool_calls.xml_calls import XmlCalls
from penstock.types import Tool, ToolCallFormat

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_SPACE: Final = " \t\r\n"


class ToolCallParser:
    """Parse the answer's text of one output.

    The result does not depend on how the text is cut: neighbouring pieces concatenate to the same text and fragments.
    A call begins with `<tool_call>` and what its format demands behind it; `<tool_call>` in front of anything else is
    text. A call that the output's end cuts before its name is known is INCOMPLETE, with the start of its name. Line
    breaks between text and calls, and white space between calls and behind the last one, are markup.

    Args:
        call_format: How the checkpoint writes calls.
        tools: The tools whose schemas say how values are read. A call of another tool is a call, too.
        max_calls: Most calls of this output, at least 1; None is no limit. What follows the last one is ignored.

    Raises:
        ValueError: `max_calls` is below 1.
    """

    def __init__(self, call_format: ToolCallFormat, tools: Sequence[Tool], max_calls: int | None = None) -> None:
        if max_calls is not None and max_calls < 1:
            raise ValueError(f"max_calls must be 1 or more, got {max_calls}")
        self._max_calls = max_calls
        self._source = Source()
        self._pieces = PieceCollector()
        self._calls: JsonCalls | XmlCalls
        if call_format is ToolCallFormat.JSON:
            self._calls = JsonCalls(self._source, self._pieces)
        else:
            schemas = {tool.name: tool.parameters_json_schema for tool in tools}
            self._calls = XmlCalls(self._source, self._pieces, schemas)
        self.in_call = False
        """Whether the next character belongs to a call, its markers included."""
        self._in_text = False
        self._follows_call = False
        self._white: list[str] = []
        """White space of which the next characters decide whether it is text."""
        self._new_breaks: list[str] = []
        self._replay: list[str] = []
        """Text since the last `<tool_call>` that followed text."""
        self._replay_calls = 0
        self._replay_follows_call = False
        self._run = self._read()
        next(self._run)

    @property
    def calls_started(self) -> int:
        """Return the number of calls that have begun."""
        return self._pieces.calls_started

    @property
    def calls_finished(self) -> int:
        """Return the number of calls that have ended, complete or not."""
        return self._pieces.calls_finished

    @property
    def is_in_arguments(self) -> bool:
        """Return whether a call has begun and not ended."""
        return self.calls_started > self.calls_finished

    @property
    def is_full(self) -> bool:
        """Return whether `max_calls` calls have ended. Further text is ignored."""
        return self._max_calls is not None and self.calls_finished >= self._max_calls

    def push(self, text: str) -> list[Piece]:
        """Parse text that follows. Return what it decides."""
        if text and not self.is_full:
            self._source.add(text)
            if not self._in_text:
                self._replay.append(text)
            self._go_on()
        return self._pieces.pop()

    def pop_breaks(self) -> str:
        """Return the line breaks since the last time that are text unless a call follows them, or the output is full.

        They are not among the pieces: they are once it is known that they are text.
        """
        breaks = "".join(self._new_breaks)
        self._new_breaks.clear()
        return breaks

    def end(self, *, was_cut: bool = False) -> list[Piece]:
        """End the output. Return the text that was held back; a call that is open is INCOMPLETE.

        With `was_cut` the model did not end it: then an end of a call that must be repaired is none.
        """
        if not self._source.is_over:
            self._source.is_over, self._source.was_cut = True, was_cut
            if not self.is_full:
                self._go_on()
        return self._pieces.pop()

    def state(self) -> dict[str, Any]:
        """Return plain data from which another parser with these arguments can continue, before the `end`.

        It holds the text of the call that is open, if one is.
        """
        if self._in_text or self.is_full:
            self._keep_replay()
        return {
            "calls": self._replay_calls,
            "follows_call": self._replay_follows_call,
            "text": "" if self.is_full else "".join(self._replay),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another parser. This one must be new."""
        self._pieces.calls_started = self._pieces.calls_finished = state["calls"]
        self._follows_call = state["follows_call"]
        self.push(state["text"])

    def _keep_replay(self) -> None:
        """Keep what another parser needs to come to this place, which is between calls."""
        self._replay = [*self._white, self._source.rest]
        self._replay_calls = self.calls_finished
        self._replay_follows_call = self._follows_call

    def _go_on(self) -> None:
        try:
            next(self._run)
        except StopIteration:
            self.in_call = False

    def _read(self) -> Reading[None]:
        """Read the output: text and calls."""
        source = self._source
        while (yield from self._text()):
            self._keep_replay()
            source.record()
            source.read(len(_OPEN))
            self.in_call = True
            yield from source.space()
            if not (yield from self._calls.read()):
                self.in_call = False
                self._add_text(source.recorded())
                continue
            self._white = []
            self._new_breaks.clear()
            yield from self._after_call()
            if self.is_full:
                return

    def _text(self) -> Reading[bool]:
        """Read text up to the next `<tool_call>`. Return False at the end of the output."""
        source = self._source
        while True:
            self._add_text(source.read_until("<"))
            self._in_text = True
            found = yield from source.marker(_OPEN)
            self._in_text = False
            if found:
                return True
            if source.is_empty and source.is_over:
                if not self._follows_call:
                    self._pieces.add_text("".join(self._white))
                return False
            if source.is_at("<"):
                self._add_text(source.read(1))

    def _add_text(self, text: str) -> None:
        """Give out text, but hold back line breaks at its end, and white space that only follows a call."""
        if self._follows_call:
            if not text.strip(_SPACE):
                self._white.append(text)
                return
            text = ("".join(self._white) + text).lstrip("\r\n")
            self._follows_call, self._white = False, []
        body = text.rstrip("\n")
        if body:
            self._pieces.add_text("".join(self._white) + body)
            self._white = []
            self._new_breaks.clear()
        if len(body) < len(text):
            self._white.append(text[len(body) :])
            self._new_breaks.append(text[len(body) :])

    def _after_call(self) -> Reading[None]:
        """Read the closers of a call, and further calls before `</tool_call>`."""
        source = self._source
        self._follows_call = True
        while not self.is_full:
            source.record()
            yield from source.space()
            closers = self._calls.closers if self.in_call else self._calls.late_closers
            closer = yield from source.marker(*closers)
            if closer:
                source.read(len(closer))
                self.in_call = self.in_call and closer != _CLOSE
            elif self.in_call and source.is_cut(*closers):
                source.read_rest()
                return
            elif not self.in_call or not (yield from self._calls.read()):
                self.in_call = False
                self._add_text(source.recorded())
                return
