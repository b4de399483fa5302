"""Check one JSON value that arrives in pieces, and find its end: without recursion, and each character once."""

from __future__ import annotations

import re
from typing import Final

from penstock.generation.tool_calls.pieces import json_text

MAX_DEPTH: Final = 100
"""Most arrays and objects inside each other: common JSON readers refuse or fail a little above."""

NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
SPACE: Final = " \t\r\n"
"""What JSON takes for white space."""

_LITERALS: Final = ("true", "false", "null")
_ATOM = re.compile(r"[-+.0-9A-Za-z]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_START = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_SPACE = re.compile(r"[ \t\r\n]+")

# What may come next inside an array or object.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COLON, _NEXT = range(6)


class JsonScanner:
    """Scan one JSON value. `out` collects its text as far as it is certainly valid."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.is_done = False
        self.has_failed = False
        self.at_control = False
        """Whether the next character is a control character inside a string, which JSON does not allow unescaped."""
        self._closers: list[str] = []
        self._expects = _VALUE
        self._in_string = False
        self._atom: list[str] = []
        self._escape = ""

    def feed(self, text: str, at: int = 0) -> int:
        """Scan `text` from `at` on. Return where it stopped: behind the value, at a fault or a control character."""
        while at < len(text) and not (self.is_done or self.has_failed or self.at_control):
            if self._in_string:
                at = self._string(text, at)
            elif (found := _ATOM.match(text, at)) is not None:
                at = self._atom_part(found, len(text))
            elif self._atom:
                self._atom_end()
            elif (found := _SPACE.match(text, at)) is not None:
                self.out.append(found[0])
                at = found.end()
            else:
                at = self._punctuation(text, at)
        return at

    def accept_control(self, text: str) -> None:
        """Continue behind control characters inside a string: as if they had been escaped."""
        self.at_control = False
        self.out.append(json_text(text))

    def end(self) -> None:
        """End the text: a number or a literal at the top is whole now."""
        if self._atom:
            self._atom_end()

    def may_go_on(self) -> bool:
        """Return whether the text so far is the start of a value, and not a whole one."""
        atom = "".join(self._atom)
        is_start = any(literal.startswith(atom) for literal in _LITERALS)
        return not (self.is_done or self.has_failed) and (is_start or _starts_number(atom))

    def pop(self) -> str:
        """Return the valid text since the last time."""
        text = "".join(self.out)
        self.out.clear()
        return text

    def _string(self, text: str, at: int) -> int:
        if self._escape:
            return self._escape_part(text, at)
        found = _PLAIN.match(text, at)
        end = found.end() if found else at
        if end > at:
            self.out.append(text[at:end])
        if end == len(text):
            return end
        if text[end] == '"':
            self.out.append('"')
            self._in_string = False
            self._after_string()
            return end + 1
        if text[end] == "\\":
            self._escape = "\\"
            return end + 1
        self.at_control = True
        return end

    def _escape_part(self, text: str, at: int) -> int:
        self._escape += text[at]
        if _ESCAPE.fullmatch(self._escape):
            self.out.append(self._escape)
            self._escape = ""
        elif not _ESCAPE_START.fullmatch(self._escape):
            self.has_failed = True
        return at + 1

    def _after_string(self) -> None:
        if self._expects in (_KEY, _KEY_OR_END):
            self._expects = _COLON
        else:
            self._after_value()

    def _after_value(self) -> None:
        self._expects = _NEXT
        self.is_done = not self._closers

    def _atom_part(self, found: re.Match[str], length: int) -> int:
        if self._expects not in (_VALUE, _VALUE_OR_END):
            self.has_failed = True
            return found.start()
        self._atom.append(found[0])
        if found.end() < length:
            self._atom_end()
        return found.end()

    def _atom_end(self) -> None:
        atom, self._atom = "".join(self._atom), []
        if atom in _LITERALS or NUMBER.fullmatch(atom):
            self.out.append(atom)
            self._after_value()
        else:
            self.has_failed = True

    def _punctuation(self, text: str, at: int) -> int:
        character, expects = text[at], self._expects
        if character == '"' and expects in (_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END):
            self._in_string = True
        elif character in "{[" and expects in (_VALUE, _VALUE_OR_END) and len(self._closers) < MAX_DEPTH:
            self._closers.append("}" if character == "{" else "]")
            self._expects = _KEY_OR_END if character == "{" else _VALUE_OR_END
        elif character in "}]" and expects in (_NEXT, _VALUE_OR_END, _KEY_OR_END) and self._closers[-1:] == [character]:
            self._closers.pop()
            self._after_value()
        elif character == "," and expects == _NEXT and self._closers:
            self._expects = _KEY if self._closers[-1] == "}" else _VALUE
        elif character == ":" and expects == _COLON:
            self._expects = _VALUE
        else:
            self.has_failed = True
            return at
        self.out.append(character)
        return at + 1


def _starts_number(text: str) -> bool:
    return any(NUMBER.fullmatch(text + more) for more in ("", "0"))


def checked_json(text: str, opens: str) -> str | None:
    """Return `text` as JSON where it is an array or object that begins with one of `opens`, otherwise None.

    Numbers keep their digits. Control characters inside strings are escaped.
    """
    text = text.strip(SPACE)
    if text[:1] not in {*opens}:
        return None
    scanner, at = JsonScanner(), 0
    while not (scanner.is_done or scanner.has_failed) and at < len(text):
        at = scanner.feed(text, at)
        if scanner.at_control:
            scanner.accept_control(text[at])
            at += 1
    return scanner.pop() if scanner.is_done and at == len(text) else None
