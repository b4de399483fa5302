"""Read text that arrives in pieces.

What reads it is written as generators: they yield where they need more text, and go on when there is more or when the
output is over. So a format reads like its grammar, and no state is encoded by hand.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A read that yields where more text is needed, and returns T."""

_SPACE = re.compile(r"[ \t\r\n]*")


class Source:
    """Hold the text that is not read yet.

    Nothing that looks ahead looks further than one marker, so the text held here stays short: each method reads what
    it decides about, and `record` keeps what was read where it may prove to be plain text.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.is_over = False
        self.was_cut = False
        """Whether the output ended other than by the model."""
        self._record: list[str] | None = None

    def add(self, text: str) -> None:
        """Append text."""
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def rest(self) -> str:
        """Return the text that is not read yet."""
        return self.text[self.at :]

    @property
    def is_empty(self) -> bool:
        """Return whether all text that has arrived is read."""
        return self.at >= len(self.text)

    def is_at(self, character: str) -> bool:
        """Return whether `character` is next, as far as the text has arrived."""
        return self.text.startswith(character, self.at)

    def record(self) -> None:
        """Keep what is read from here on, for `recorded`."""
        self._record = []

    def recorded(self) -> str:
        """Return what was read since `record`, and stop keeping it."""
        kept, self._record = self._record or [], None
        return "".join(kept)

    def read(self, count: int) -> str:
        """Read `count` characters that are there."""
        return self.read_to(self.at + count)

    def read_to(self, end: int) -> str:
        """Read up to the index `end` of `text`."""
        taken = self.text[self.at : end]
        self.at = end
        if self._record is not None:
            self._record.append(taken)
        return taken

    def read_until(self, character: str) -> str:
        """Read up to the next `character`, or all text that is there."""
        end = self.text.find(character, self.at)
        return self.read_to(len(self.text) if end < 0 else end)

    def read_rest(self) -> str:
        """Read all text that is there."""
        return self.read_to(len(self.text))

    def unread(self, text: str) -> None:
        """Put back text that was read last."""
        self.text, self.at = text + self.rest, 0

    def peek(self) -> Reading[str]:
        """Return the next character without reading it; empty at the end of the output."""
        while self.is_empty:
            if self.is_over:
                return ""
            yield
        return self.text[self.at]

    def space(self) -> Reading[str]:
        """Read white space."""
        parts = []
        while True:
            found = _SPACE.match(self.text, self.at)
            parts.append(self.read_to(found.end() if found else self.at))
            if not self.is_empty or self.is_over:
                return "".join(parts)
            yield

    def marker(self, *markers: str) -> Reading[str]:
        """Return which of the markers comes next, without reading it; empty for none."""
        while True:
            for marker in markers:
                if self.text.startswith(marker, self.at):
                    return marker
            if self.is_over or not self._may_become(markers):
                return ""
            yield

    def is_cut(self, *markers: str) -> bool:
        """Return whether the output ends here, or inside one of the markers."""
        return self.is_over and self._may_become(markers)

    def _may_become(self, markers: Sequence[str]) -> bool:
        rest = self.text[self.at : self.at + max(map(len, markers))]
        return any(marker.startswith(rest) for marker in markers)

    def tag(self, prefix: str, inside: re.Pattern[str], longest: int) -> Reading[str]:
        """Return X where `prefix` X `>` comes next, without reading it; empty where X does not match `inside`.

        `inside` must match each prefix of what it matches. X has at most `longest` characters.
        """
        if not (yield from self.marker(prefix)):
            return ""
        while True:
            start = self.at + len(prefix)
            found = inside.match(self.text, start)
            end = found.end() if found else start
            if end - start > longest:
                return ""
            if end < len(self.text):
                return self.text[start:end] if self.text[end] == ">" else ""
            if self.is_over:
                return ""
            yield

    def run(self, inside: re.Pattern[str], longest: int) -> Reading[str]:
        """Read what `inside` matches, which is at most `longest` characters."""
        while True:
            found = inside.match(self.text, self.at)
            end = found.end() if found else self.at
            if end < len(self.text) or self.is_over or end - self.at >= longest:
                return self.read_to(end)
            yield
