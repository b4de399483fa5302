"""Turn bytes into text piece by piece: whole characters, and nothing that may be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


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
