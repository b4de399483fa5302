"""Find the patterns that end a thought, one character at a time.

A pattern is found at the same token however the text is cut into tokens and engine steps, because the search keeps its
state between them. A regular expression becomes an automaton without back-tracking (one bit for each position, as
Glushkov made them), so that a character costs at most `MAX_REGEX_POSITIONS` operations whatever the text is, and the
state is one number, which moves to another server with the thought.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from penstock.engine.regex_syntax import Anchor, CharacterSet, Group, Node, Ranges, RefusedRegexError, Repeat, parse
from penstock.types import StopPatterns

MAX_REGEX_POSITIONS = 256
"""Maximum characters of a regular expression once its counts are written out: `(ab){1,3}c` has seven."""

_NEWLINE: Ranges = ((10, 10),)
_MANY = 1_000_000
_MAX_CACHED_STEPS = 1024


def regex_fault(pattern: str) -> str:
    """Return why a regular expression is refused; empty where it is not."""
    try:
        _automaton(pattern)
    except (RefusedRegexError, _UnusableError) as error:
        return str(error)
    return ""


class ThoughtStops:
    """Search a thought for stop patterns."""

    def __init__(self, patterns: StopPatterns) -> None:
        """Take patterns that `validation` accepted."""
        self._strings = patterns.strings
        self._kept = max(map(len, patterns.strings), default=1) - 1
        self._tail = ""
        self._automaton = _automaton(patterns.regex) if patterns.regex else None
        self._active = 0

    def push(self, text: str) -> bool:
        """Return whether a pattern ends in this text, which goes on where the last one ended."""
        return self._finds_string(text) or self._finds_regex(text)

    def _finds_string(self, text: str) -> bool:
        if not self._strings:
            return False
        text = self._tail + text
        self._tail = text[-self._kept :] if self._kept else ""
        return any(string in text for string in self._strings)

    def _finds_regex(self, text: str) -> bool:
        automaton = self._automaton
        if automaton is None:
            return False
        for character in text:
            self._active = automaton.step(self._active, character)
            if self._active & automaton.last:
                return True
        return False

    def state(self) -> list[Any]:
        """Return plain data from which another instance with these patterns can continue."""
        return [self._tail, f"{self._active:x}"]

    def restore(self, state: Any) -> None:
        """Continue from the `state` of another instance."""
        self._tail, active = state
        self._active = int(active, 16)


class _UnusableError(ValueError):
    """An expression that is read but cannot be searched for."""


@dataclass(slots=True)
class _Part:
    """Hold a part of an expression: whether it matches the empty text, and where its matches begin and end (bits)."""

    is_optional: bool
    first: int
    last: int


@dataclass(slots=True)
class _Automaton:
    """Hold the positions of an expression: the characters at each, and which may follow (bits)."""

    sets: list[Ranges] = field(default_factory=list)
    follows: list[int] = field(default_factory=list)
    first: int = 0
    last: int = 0
    _at: dict[str, int] = field(default_factory=dict)
    _steps: dict[tuple[int, str], int] = field(default_factory=dict)

    def step(self, active: int, character: str) -> int:
        """Return the positions that are reached with one more character, a match that begins at it included."""
        key = active, character
        found = self._steps.get(key)
        if found is None:
            # Both caches are emptied when full: texts repeat, so that one of any size would grow with each caller.
            if len(self._steps) >= _MAX_CACHED_STEPS:
                self._steps.clear()
            found = self._steps[key] = self._reached(active) & self._positions_of(character)
        return found

    def _reached(self, active: int) -> int:
        reached = self.first
        while active:
            lowest = active & -active
            reached |= self.follows[lowest.bit_length() - 1]
            active ^= lowest
        return reached

    def _positions_of(self, character: str) -> int:
        found = self._at.get(character)
        if found is None:
            if len(self._at) >= _MAX_CACHED_STEPS:
                self._at.clear()
            code = ord(character)
            found = sum(
                1 << position
                for position, ranges in enumerate(self.sets)
                if any(low <= code <= high for low, high in ranges)
            )
            self._at[character] = found
        return found

    def add(self, node: Node) -> _Part:
        """Add a part of the expression behind those that are there."""
        match node:
            case CharacterSet(ranges):
                self.sets.append(ranges)
                self.follows.append(0)
                bit = 1 << (len(self.sets) - 1)
                return _Part(False, bit, bit)
            case Group(branches):
                parts = [self._sequence([self.add(one) for one in branch]) for branch in branches]
                return _Part(
                    any(part.is_optional for part in parts),
                    _union(part.first for part in parts),
                    _union(part.last for part in parts),
                )
            case Repeat():
                return self._repeated(node)
        raise AssertionError(node)

    def _repeated(self, node: Repeat) -> _Part:
        if _positions(node.node) == 0 or node.most == 0:
            return _Part(True, 0, 0)
        copies = max(node.least, 1) if node.most is None else node.most
        parts = []
        for copy in range(copies):
            part = self.add(node.node)
            if node.most is None and copy == copies - 1:
                self._link(part.last, part.first)
            part.is_optional = part.is_optional or copy >= node.least
            parts.append(part)
        return self._sequence(parts)

    def _sequence(self, parts: list[_Part]) -> _Part:
        whole = _Part(True, 0, 0)
        for part in parts:
            self._link(whole.last, part.first)
            whole = _Part(
                whole.is_optional and part.is_optional,
                whole.first | (part.first if whole.is_optional else 0),
                part.last | (whole.last if part.is_optional else 0),
            )
        return whole

    def _link(self, before: int, after: int) -> None:
        for position in range(before.bit_length()):
            if before >> position & 1:
                self.follows[position] |= after


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


@lru_cache(maxsize=64)
def _automaton(pattern: str) -> _Automaton:
    """Return the automaton of an expression. Raise RefusedRegexError or _UnusableError."""
    tree = parse(pattern, _NEWLINE)
    size = _positions(tree)
    if size > MAX_REGEX_POSITIONS:
        got = size if size < _MANY else f"more than {_MANY}"
        raise _UnusableError(
            f"must have at most {MAX_REGEX_POSITIONS} characters with its counts written out, got {got}"
        )
    automaton = _Automaton()
    whole = automaton.add(tree)
    if whole.is_optional:
        raise _UnusableError("must not match the empty text, which every thought begins with")
    automaton.first, automaton.last = whole.first, whole.last
    return automaton


def _positions(node: Node) -> int:
    """Return the number of positions of a part. Raise _UnusableError for an anchor."""
    match node:
        case CharacterSet():
            return 1
        case Repeat(inner, least, most):
            return _positions(inner) * (max(least, 1) if most is None else most)
        case Group(branches):
            return sum(_positions(one) for branch in branches for one in branch)
        case Anchor(_, part, offset):
            raise _UnusableError(
                f"must have no anchors: a thought is searched while it grows, and has no end yet; "
                f"write \\n for the end of a line, got {part!r} at offset {offset}"
            )
