r"""Read regular expressions into a tree, in the one notation that the API has for them.

Where Python and ECMA-262 differ, the tree holds what both read: `\d`, `\w` and `\s` are ASCII, and their complements
(`\D`, `[^\w]`) exclude Unicode. Lookarounds, back references, flags and possessive quantifiers are refused.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint ranges of code points, both ends inclusive."""
_MAX_DEPTH = 64
MAX_COUNT = 1_000_000_000
"""Maximum repetitions: xgrammar counts in 32 bits and overflows above them."""
TEXT: Ranges = ((0, 0xD7FF), (0xE000, sys.maxunicode))  # surrogates are not characters
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_COUNT = re.compile(r"\{(?:([0-9]+)(,?)([0-9]*)|,([0-9]+))\}")
_GROUP_NAME = re.compile(r"\?(?:P?<([A-Za-z_]\w*)>|:)")
_HEX = {
    "x": re.compile(r"[0-9A-Fa-f]{2}"),
    "u": re.compile(r"[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\}"),
    "U": re.compile(r"[0-9A-Fa-f]{8}"),
}


class RefusedRegexError(ValueError):
    """A part of a regular expression that cannot be enforced: `part` at `offset` (characters from 0)."""

    def __init__(self, why: str, part: str, offset: int) -> None:
        super().__init__(f"{why}: {part!r} at offset {offset}")
        self.part = part
        self.offset = offset


@dataclass(frozen=True, slots=True)
class CharacterSet:
    """Hold one character of a set of ranges."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Anchor:
    r"""Hold `^`, `$` or one of `\A`, `\Z`, `\z`: `part` at `offset`."""

    at_start: bool
    part: str
    offset: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """Hold `node`, `least` to `most` times; None is no limit."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """Hold alternatives, each a sequence."""

    branches: tuple[tuple[Node, ...], ...]


Node = CharacterSet | Anchor | Repeat | Group


def parse(pattern: str, newlines: Ranges) -> Group:
    """Return the tree of a whole expression. `.` is every character but `newlines`.

    Raise RefusedRegexError for parts that are not supported, and for an invalid expression.
    """
    return _Parser(pattern, newlines).parse()


class _Parser:
    def __init__(self, pattern: str, newlines: Ranges) -> None:
        self._pattern = pattern
        self._dot = minus(TEXT, newlines)
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()

    def parse(self) -> Group:
        """Return the whole expression as a group. Raise RefusedRegexError."""
        group = self._group_body()
        if self._at < len(self._pattern):
            raise self._refused("unmatched closing parenthesis", self._at, 1)
        return group

    def _refused(self, why: str, offset: int, length: int) -> RefusedRegexError:
        return RefusedRegexError(why, self._pattern[offset : offset + length], offset)

    def _next_is(self, text: str) -> bool:
        return self._pattern.startswith(text, self._at)

    def _group_body(self) -> Group:
        branches: list[tuple[Node, ...]] = []
        while True:
            branches.append(self._sequence())
            if not self._next_is("|"):
                return Group(tuple(branches))
            self._at += 1

    def _sequence(self) -> tuple[Node, ...]:
        nodes: list[Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            nodes.append(self._repeated())
        return tuple(nodes)

    def _repeated(self) -> Node:
        offset = self._at
        node = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return node
        if isinstance(node, Anchor):
            raise self._refused("an anchor cannot be repeated", offset, self._at - offset)
        if self._next_is("+"):
            raise self._refused("possessive quantifiers are not supported", self._at - 1, 2)
        if self._next_is("?"):
            self._at += 1  # lazy: the same texts
        again = self._at
        if self._bounds() is not None:
            raise self._refused("nothing to repeat", again, self._at - again)
        return Repeat(node, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._next_is(sign):
                self._at += 1
                return bounds
        if self._next_is("{,}"):
            raise self._refused("a repetition in Python, but text in ECMA-262", self._at, 3)
        count = _COUNT.match(self._pattern, self._at)
        if count is None:
            return None
        least = _count(count[1] or "0")
        most = _count(count[4] or count[3]) if count[4] or count[3] else None if count[2] else least
        if max(least, most or 0) > MAX_COUNT or (most is not None and most < least):
            raise self._refused(f"a count must be in [0, {MAX_COUNT}] and rise", self._at, len(count[0]))
        self._at = count.end()
        return least, most

    def _atom(self) -> Node:
        offset, character = self._at, self._pattern[self._at]
        self._at += 1
        match character:
            case "(":
                return self._group(offset)
            case "[":
                return CharacterSet(self._set(offset))
            case "\\":
                return self._escape(offset)
            case "^" | "$":
                return Anchor(character == "^", character, offset)
            case ".":
                return CharacterSet(self._dot)
            case "*" | "+" | "?":
                raise self._refused("nothing to repeat", offset, 1)
            case "{" if _COUNT.match(self._pattern, offset) or self._next_is(",}"):
                raise self._refused("nothing to repeat", offset, 1)
        return CharacterSet(self._one(ord(character), offset))

    def _group(self, offset: int) -> Group:
        if self._next_is("?"):
            name = _GROUP_NAME.match(self._pattern, self._at)
            if name is None:
                raise self._refused(
                    "lookarounds, back references, flags, comments and atomic groups are not supported", offset, 4
                )
            if name[1] in self._names:
                raise self._refused("a group of this name exists already", offset, name.end() - offset)
            if name[1]:
                self._names.add(name[1])
            self._at = name.end()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._refused(f"groups are nested more than {_MAX_DEPTH} deep", offset, 1)
        group = self._group_body()
        if not self._next_is(")"):
            raise self._refused("this group is not closed", offset, 1)
        self._at += 1
        self._depth -= 1
        return group

    def _escape(self, offset: int) -> Node:
        letter = self._pattern[self._at : self._at + 1]
        if letter and letter in "AZz":
            self._at += 1
            return Anchor(letter == "A", "\\" + letter, offset)
        return CharacterSet(self._escaped(offset, excludes=False))

    def _escaped(self, offset: int, *, excludes: bool, in_set: bool = False) -> Ranges:
        """Return the code points of what follows a backslash; `excludes`: inside a negated set."""
        letter = self._pattern[self._at : self._at + 1]
        self._at += 1
        if letter and letter in "dwsDWS":
            return _named(letter, unicode=excludes)
        if letter in _CONTROLS:
            return ((_CONTROLS[letter],) * 2,)
        if letter in _HEX:
            digits = _HEX[letter].match(self._pattern, self._at)
            if digits is not None:
                self._at = digits.end()
                return self._one(int(digits[0].strip("{}"), 16), offset)
        if letter == "0" and not self._pattern[self._at : self._at + 1].isdigit():
            return ((0, 0),)
        if letter == "b" and in_set:
            return ((8, 8),)
        if not letter or (letter.isascii() and letter.isalnum()):
            raise self._refused("this escape is not supported", offset, max(2, self._at - offset))
        return self._one(ord(letter), offset)

    def _one(self, code: int, offset: int) -> Ranges:
        if 0xD800 <= code <= 0xDFFF or code > sys.maxunicode:
            raise self._refused("surrogates and numbers beyond U+10FFFF are not characters", offset, self._at - offset)
        return ((code, code),)

    def _set(self, offset: int) -> Ranges:
        excludes = self._next_is("^")
        self._at += excludes
        found: list[tuple[int, int]] = []
        first = self._at
        while not self._next_is("]") or self._at == first:
            begin = self._at
            left = self._member(offset, excludes=excludes)
            if self._next_is("-") and not self._next_is("-]"):
                self._at += 1
                right = self._member(offset, excludes=excludes)
                if not (is_one(left) and is_one(right) and left[0][0] <= right[0][0]):
                    raise self._refused("invalid range of characters", begin, self._at - begin)
                left = ((left[0][0], right[0][0]),)
            found.extend(left)
        self._at += 1
        ranges = sorted_ranges(found)
        return minus(TEXT, ranges) if excludes else minus(ranges, ((0xD800, 0xDFFF),))

    def _member(self, offset: int, *, excludes: bool) -> Ranges:
        if self._at >= len(self._pattern):
            raise self._refused("this set is not closed", offset, 1)
        at, character = self._at, self._pattern[self._at]
        self._at += 1
        if character == "\\":
            return self._escaped(at, excludes=excludes, in_set=True)
        return self._one(ord(character), at)


def _count(digits: str) -> int:
    """Return a count; more than MAX_COUNT for all that Python would refuse to read for their length."""
    digits = digits.lstrip("0")
    return int(digits or 0) if len(digits) <= len(str(MAX_COUNT)) else MAX_COUNT + 1


def is_one(ranges: Ranges) -> bool:
    """Return whether a set has exactly one character."""
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def sorted_ranges(found: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges sorted and joined."""
    ranges: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if ranges and begin <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
        else:
            ranges.append((begin, end))
    return tuple(ranges)


def minus(ranges: Ranges, less: Ranges) -> Ranges:
    """Return a set without the characters of another one."""
    left = []
    for begin, end in ranges:
        for low, high in less:
            if low > end:
                break
            if high >= begin:
                if low > begin:
                    left.append((begin, low - 1))
                begin = high + 1
        if begin <= end:
            left.append((begin, end))
    return tuple(left)


@cache
def _named(letter: str, *, unicode: bool) -> Ranges:
    r"""Return the characters of `\d` and the like: by the narrower of two readings, or with `unicode` the wider one."""
    if letter.isupper():
        return minus(TEXT, _named(letter.lower(), unicode=not unicode))
    flags = re.NOFLAG if unicode else re.ASCII
    # A million characters, in runs: one by one they hold up the event loop four times as long.
    text = _all_characters() if unicode else _ascii()
    found = ((match.start(), match.end() - 1) for match in re.finditer(f"\\{letter}+", text, flags))
    extra = [(0xFEFF, 0xFEFF)] if letter == "s" and unicode else []  # white space in ECMA-262
    return sorted_ranges([*found, *extra])


def _all_characters() -> str:
    """Return a text of all characters, each at the place of its code point."""
    return array("I", range(sys.maxunicode + 1)).tobytes().decode(f"utf-32-{sys.byteorder[0]}e", "surrogatepass")


def _ascii() -> str:
    return "".join(map(chr, range(128)))
