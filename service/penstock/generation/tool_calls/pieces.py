"""Define what a parser of tool calls finds in the text of an answer, and collect it in order."""

from __future__ import annotations

import json

from msgspec import Struct

from penstock.types import ToolCallStatus


class TextPiece(Struct, frozen=True):
    """Hold text of the answer that belongs to no call."""

    text: str


class CallStarted(Struct, frozen=True):
    """Report that a call began. `index` counts the calls of this output from 0."""

    index: int
    name: str


class CallArguments(Struct, frozen=True):
    """Hold the next text of a call's arguments: all fragments of a call concatenate to its `arguments_json`."""

    index: int
    json_fragment: str


class CallFinished(Struct, frozen=True):
    """Report the end of a call. `arguments_json` is a JSON object where the status is COMPLETE."""

    index: int
    name: str
    arguments_json: str
    status: ToolCallStatus


Piece = TextPiece | CallStarted | CallArguments | CallFinished


class PieceCollector:
    """Collect pieces, neighbouring text and neighbouring fragments of a call as one piece each."""

    def __init__(self) -> None:
        self.calls_started = 0
        self.calls_finished = 0
        self._pieces: list[Piece] = []
        self._text: list[str] = []
        self._fragments: list[str] = []
        self._name = ""
        self._arguments: list[str] = []

    def add_text(self, text: str) -> None:
        """Add text of the answer."""
        if text:
            self._text.append(text)

    def start(self, name: str) -> None:
        """Begin a call. The one before it must be finished."""
        self._flush()
        self._name, self._arguments = name, []
        self._pieces.append(CallStarted(self.calls_started, name))
        self.calls_started += 1

    def add_arguments(self, fragment: str) -> None:
        """Add text to the open call's arguments."""
        if fragment:
            self._fragments.append(fragment)
            self._arguments.append(fragment)

    def repeats_a_key(self) -> bool:
        """Return whether a key stands twice in the open call's arguments: readers differ about which one counts."""
        keys: list[str] = []

        def note(pairs: list[tuple[str, object]]) -> None:
            # The object itself comes last, after those inside it.
            keys[:] = [key for key, _ in pairs]

        json.loads("".join(self._arguments), object_pairs_hook=note, parse_int=str, parse_float=str)
        return len(set(keys)) < len(keys)

    def finish(self, *, is_complete: bool) -> None:
        """End the open call."""
        self._flush()
        status = ToolCallStatus.COMPLETE if is_complete else ToolCallStatus.INCOMPLETE
        self._pieces.append(CallFinished(self.calls_finished, self._name, "".join(self._arguments), status))
        self.calls_finished += 1
        self._arguments = []

    def add_cut_call(self, name: str) -> None:
        """Add a call that was cut before its name was known. `name` is the start of it, maybe empty."""
        self.start(name)
        self.finish(is_complete=False)

    def pop(self) -> list[Piece]:
        """Return the pieces since the last time."""
        self._flush()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _flush(self) -> None:
        if self._text:
            self._pieces.append(TextPiece("".join(self._text)))
            self._text = []
        if self._fragments:
            self._pieces.append(CallArguments(self.calls_finished, "".join(self._fragments)))
            self._fragments = []


def json_text(text: str) -> str:
    """Return `text` as the inside of a JSON string. Parts of a text may be converted one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
