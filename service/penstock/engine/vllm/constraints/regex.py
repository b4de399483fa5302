r"""Translate regular expressions into the few constructs that xgrammar reads as Python and ECMA-262 do.

The whole text has to match, as with Python's `re.fullmatch`. Where Python and ECMA-262 differ, an accepted text matches
in both: `\d`, `\w` and `\s` are ASCII, and their complements (`\D`, `[^\w]`) exclude Unicode. Anchors are
supported at the ends of the expression only; lazy quantifiers become greedy ones, since the whole text matches either
way. Everything else without an exact counterpart is refused with its text and offset: xgrammar 0.2.8 reads `\A`, `\Z`
and unknown escapes as letters and drops a `$` in the middle.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint ranges of code points, both ends inclusive."""

_MAX_DEPTH = 64
_MAX_SIZE = 1 << 20
MAX_COUNT = 1_000_000_000
"""Maximum repetitions: xgrammar counts in 32 bits and overflows above them."""
_TEXT: Ranges = ((0, 0xD7FF), (0xE000, sys.maxunicode))  # surrogates are not characters
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_COUNT = re.compile(r"\{(?:(\d+)(,?)(\d*)|,(\d+))\}")
_GROUP_NAME = re.compile(r"\?(?:P?<([A-Za-z_]\w*)>|:)")
_HEX = {
    "x": re.compile(r"[0-9A-Fa-f]{2}"),
    "u": re.compile(r"[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\}"),
    "U": re.compile(r"[0-9A-Fa-f]{8}"),
}
_OTHER_LENGTHS: tuple[Ranges, ...] = (
    ((0x800, sys.maxunicode),),
    ((0, 0x7FF), (0x10000, sys.maxunicode)),
    ((0, 0xFFFF),),
)
"""Characters that do not take one or two bytes in UTF-8, three, and four."""
_CARET = ord("^")
_LESS = ord("<")
_LONG_ESCAPES = 27  # control characters that JSON writes as \u00XX only
_JSON_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}


class RefusedRegexError(ValueError):
    """A part of a regular expression that cannot be enforced: `part` at `offset` (characters from 0)."""

    def __init__(self, why: str, part: str, offset: int) -> None:
        super().__init__(f"{why}: {part!r} at offset {offset}")
        self.part = part
        self.offset = offset


@dataclass(frozen=True, slots=True)
class _Set:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class _Anchor:
    at_start: bool
    part: str
    offset: int


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Group:
    branches: tuple[tuple[_Node, ...], ...]


_Node = _Set | _Anchor | _Repeat | _Group


@lru_cache(maxsize=16)
def translate(pattern: str) -> str:
    """Return a regular expression for xgrammar whose texts match `pattern` as a whole.

    Raise RefusedRegexError for parts that cannot be enforced, and for an invalid expression.
    """
    return _Writer(_set).whole(_Parser(pattern, newlines=((10, 10),)).parse())


@lru_cache(maxsize=16)
def translate_json_pattern(pattern: str, *, in_xml: bool = False) -> str:
    """Return a regular expression for the inside of a JSON string whose value contains a match of `pattern`.

    As with the JSON-schema keyword, the match may be anywhere unless it is anchored. `in_xml`: `<` is written as
    `\\u003c`, so that no text in the string ends the XML element around it. Raise RefusedRegexError as `translate`.
    """
    return _Writer(_json_set_in_xml if in_xml else _json_set).whole(_found_anywhere(pattern))


def json_string_of_length(least: int, most: int | None, *, in_xml: bool = False) -> str:
    """Return a regular expression for the inside of a JSON string of `least` to `most` characters (code points).

    `in_xml` as in `translate_json_pattern`.
    """
    return _Writer(_json_set_in_xml if in_xml else _json_set).whole(_Group(((_Repeat(_Set(_TEXT), least, most),),)))


@lru_cache(maxsize=16)
def translate_raw_pattern(pattern: str, markers: tuple[str, ...]) -> str:
    """Return a regular expression for a text that contains a match of `pattern` and none of the `markers`.

    The match may be anywhere unless it is anchored. All markers begin with `<`: where the pattern has the characters of
    a marker, it is left without `<`. Raise RefusedRegexError as `translate`.
    """
    group = _found_anywhere(pattern)
    characters = _sorted(_members(group))
    if any(all(_has(characters, ord(character)) for character in marker) for marker in markers):
        return _Writer(lambda ranges: _text_set(_minus(ranges, ((_LESS, _LESS),)))).whole(group)
    return _Writer(_text_set).whole(group)


def raw_text_of_length(least: int, most: int | None) -> str:
    """Return a regular expression for a text of `least` to `most` characters without the markers of tool calls.

    Some other texts with `<` are left out too: those that end with it, that have it three times in a row or that have
    it in more than about every fifth character beside a maximum.
    """
    plain, unit = _raw(r"[^<]"), _raw(_WITHOUT_MARKERS)
    if most is None:
        return f"(?:{unit}){_quantifier(least, None)}"
    units = most // _MAX_UNIT_CHARACTERS
    written = f"(?:{plain}){_quantifier(least, most)}"
    return f"(?:{written}|(?:{unit}){_quantifier(least, units)})" if units and units >= least else written


def raw_start_without(excluded: str) -> str:
    """Return a regular expression for the start of a text: one of some short texts that no marker of calls begins.

    The first character is none of `excluded`.
    """
    others = "".join(f"\\u{ord(character):04x}" for character in dict.fromkeys(excluded))
    return _raw(_WITHOUT_MARKERS.replace("[^<]", f"[^<{others}]", 1))


@cache
def _raw(pattern: str) -> str:
    return _Writer(_text_set).whole(_Parser(pattern, newlines=()).parse())


_WITHOUT_MARKERS = r"(?:[^<]|<<?/?(?:[^/<pft]|p[^a<]|f[^u<]|t[^o<]))"
"""One to five characters that do not begin `<parameter=`, `<function=`, `<tool_call>` or their closing forms."""
_MAX_UNIT_CHARACTERS = 5


def _found_anywhere(pattern: str) -> _Group:
    """Return a pattern as ECMA-262 reads it, for a whole text in which a match is anywhere."""
    group = _Parser(pattern, newlines=((10, 10), (13, 13), (0x2028, 0x2029))).parse()
    while len(group.branches) == 1 and len(group.branches[0]) == 1 and isinstance(group.branches[0][0], _Group):
        group = group.branches[0][0]
    return _Group(tuple(_between_anything(branch) for branch in group.branches))


def _members(node: _Node) -> Iterator[tuple[int, int]]:
    """Yield the ranges of all characters of an expression."""
    match node:
        case _Set(ranges):
            yield from ranges
        case _Repeat(inner):
            yield from _members(inner)
        case _Group(branches):
            for branch in branches:
                for part in branch:
                    yield from _members(part)


def _has(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _between_anything(branch: tuple[_Node, ...]) -> tuple[_Node, ...]:
    anything = _Repeat(_Set(_TEXT), 0, None)
    starts = bool(branch) and isinstance(branch[0], _Anchor) and branch[0].at_start
    ends = bool(branch) and isinstance(branch[-1], _Anchor) and not branch[-1].at_start
    return (*(() if starts else (anything,)), *branch, *(() if ends else (anything,)))


class _Parser:
    def __init__(self, pattern: str, newlines: Ranges) -> None:
        self._pattern = pattern
        self._dot = _minus(_TEXT, newlines)
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()

    def parse(self) -> _Group:
        """Return the whole expression as a group. Raise RefusedRegexError."""
        group = self._group_body()
        if self._at < len(self._pattern):
            raise self._refused("unmatched closing parenthesis", self._at, 1)
        return group

    def _refused(self, why: str, offset: int, length: int) -> RefusedRegexError:
        return RefusedRegexError(why, self._pattern[offset : offset + length], offset)

    def _next_is(self, text: str) -> bool:
        return self._pattern.startswith(text, self._at)

    def _group_body(self) -> _Group:
        branches: list[tuple[_Node, ...]] = []
        while True:
            branches.append(self._sequence())
            if not self._next_is("|"):
                return _Group(tuple(branches))
            self._at += 1

    def _sequence(self) -> tuple[_Node, ...]:
        nodes: list[_Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            nodes.append(self._repeated())
        return tuple(nodes)

    def _repeated(self) -> _Node:
        offset = self._at
        node = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return node
        if isinstance(node, _Anchor):
            raise self._refused("an anchor cannot be repeated", offset, self._at - offset)
        if self._next_is("+"):
            raise self._refused("possessive quantifiers are not supported", self._at - 1, 2)
        if self._next_is("?"):
            self._at += 1  # lazy: the same texts
        again = self._at
        if self._bounds() is not None:
            raise self._refused("nothing to repeat", again, self._at - again)
        return _Repeat(node, *bounds)

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
        least = int(count[1] or 0)
        most = int(count[4]) if count[4] else int(count[3]) if count[3] else None if count[2] else least
        if max(least, most or 0) > MAX_COUNT or (most is not None and most < least):
            raise self._refused(f"a count must be in [0, {MAX_COUNT}] and rise", self._at, len(count[0]))
        self._at = count.end()
        return least, most

    def _atom(self) -> _Node:
        offset, character = self._at, self._pattern[self._at]
        self._at += 1
        match character:
            case "(":
                return self._group(offset)
            case "[":
                return _Set(self._set(offset))
            case "\\":
                return self._escape(offset)
            case "^" | "$":
                return _Anchor(character == "^", character, offset)
            case ".":
                return _Set(self._dot)
            case "*" | "+" | "?":
                raise self._refused("nothing to repeat", offset, 1)
            case "{" if _COUNT.match(self._pattern, offset) or self._next_is(",}"):
                raise self._refused("nothing to repeat", offset, 1)
        return _Set(self._one(ord(character), offset))

    def _group(self, offset: int) -> _Group:
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

    def _escape(self, offset: int) -> _Node:
        letter = self._pattern[self._at : self._at + 1]
        if letter and letter in "AZz":
            self._at += 1
            return _Anchor(letter == "A", "\\" + letter, offset)
        return _Set(self._escaped(offset, excludes=False))

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
                if not (_is_one(left) and _is_one(right) and left[0][0] <= right[0][0]):
                    raise self._refused("invalid range of characters", begin, self._at - begin)
                left = ((left[0][0], right[0][0]),)
            found.extend(left)
        self._at += 1
        ranges = _sorted(found)
        return _minus(_TEXT, ranges) if excludes else _minus(ranges, ((0xD800, 0xDFFF),))

    def _member(self, offset: int, *, excludes: bool) -> Ranges:
        if self._at >= len(self._pattern):
            raise self._refused("this set is not closed", offset, 1)
        at, character = self._at, self._pattern[self._at]
        self._at += 1
        if character == "\\":
            return self._escaped(at, excludes=excludes, in_set=True)
        return self._one(ord(character), at)


class _Writer:
    def __init__(self, write_set: Callable[[Ranges], str]) -> None:
        self._write_set = write_set
        self._size = 0

    def whole(self, group: _Group) -> str:
        """Return the expression for a whole text. Raise RefusedRegexError."""
        return self._branches(group, starts=True, ends=True)

    def _sized(self, text: str) -> str:
        self._size += len(text)
        if self._size > _MAX_SIZE:
            raise RefusedRegexError("the regular expression is too large once its sets are written out", "", 0)
        return text

    def _branches(self, group: _Group, *, starts: bool, ends: bool) -> str:
        written = [self._sequence(branch, starts=starts, ends=ends) for branch in group.branches]
        return f"(?:{'|'.join(written)})" if len(written) > 1 else written[0]

    def _sequence(self, nodes: Sequence[_Node], *, starts: bool, ends: bool) -> str:
        written = []
        first = next((at for at, node in enumerate(nodes) if not _is_anchor(node, at_start=True)), len(nodes))
        last = next(
            (at for at in range(len(nodes) - 1, -1, -1) if not _is_anchor(nodes[at], at_start=False)),
            -1,
        )
        for at, node in enumerate(nodes):
            if not isinstance(node, _Anchor):
                written.append(self._node(node, starts=starts and at == first, ends=ends and at == last))
            elif not (starts and at < first if node.at_start else ends and at > last):
                raise RefusedRegexError("an anchor is supported at the ends only", node.part, node.offset)
        return "".join(written)

    def _node(self, node: _Node, *, starts: bool, ends: bool) -> str:
        match node:
            case _Set(ranges):
                return self._sized(self._write_set(ranges))
            case _Repeat(inner, least, most):
                text = self._node(inner, starts=False, ends=False)
                return self._sized(f"(?:{text}){_quantifier(least, most)}") if most != 0 and text else ""
            case _Group():
                return f"(?:{self._branches(node, starts=starts, ends=ends)})"
        raise AssertionError(node)


def _is_anchor(node: _Node, *, at_start: bool) -> bool:
    return isinstance(node, _Anchor) and node.at_start == at_start


def _quantifier(least: int, most: int | None) -> str:
    signs: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return signs.get((least, most)) or f"{{{least},{'' if most is None else most}}}"


def _character(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\u{{{code:x}}}"


def _set(ranges: Ranges) -> str:
    if not ranges:
        return r"[^\u{0}-\u{10ffff}]"
    if _is_one(ranges):
        return _character(ranges[0][0])
    if ranges[0][0] == _CARET:
        # xgrammar reads a caret at the start as negation, even where it is written as a number.
        ranges = (*_minus(ranges, ((_CARET, _CARET),)), (_CARET, _CARET))
    parts = (_character(a) if a == b else f"{_character(a)}-{_character(b)}" for a, b in ranges)
    return f"[{''.join(parts)}]"


def _by_length(ranges: Ranges) -> list[Ranges]:
    """Return one set for each length in UTF-8.

    For a set over several lengths, xgrammar also allows overlong encodings, which decoders reject.
    """
    return [part for less in _OTHER_LENGTHS if (part := _minus(ranges, less))]


@lru_cache(maxsize=128)
def _text_set(ranges: Ranges) -> str:
    """Return an expression for one character as it is, in valid UTF-8."""
    written = [_set(part) for part in _by_length(ranges)] or [_set(())]
    return written[0] if len(written) == 1 else f"(?:{'|'.join(written)})"


def _json_set_in_xml(ranges: Ranges) -> str:
    r"""Return an expression for one character of a JSON string in which `<` is `\u003c`."""
    if not _has(ranges, _LESS):
        return _json_set(ranges)
    escaped = f"{_character(0x5C)}u{_LESS:04x}"
    others = _minus(ranges, ((_LESS, _LESS),))
    return f"(?:{_json_set(others)}|{escaped})" if others else escaped


@lru_cache(maxsize=128)
def _json_set(ranges: Ranges) -> str:
    """Return an expression for one character of a JSON string: itself, or its shortest escape."""
    by_length = _by_length(_minus(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))))
    escaped = [code for code in (*range(0x20), 0x22, 0x5C) if any(a <= code <= b for a, b in ranges)]
    short = [ord(_JSON_ESCAPES[code]) for code in escaped if code in _JSON_ESCAPES]
    written = [_set(part) for part in by_length] or ([] if escaped else [_set(())])
    if short:
        written.append(_character(0x5C) + _set(_sorted((code, code) for code in short)))
    long = [code for code in escaped if code not in _JSON_ESCAPES]
    if len(long) == _LONG_ESCAPES:
        written.append(f"{_character(0x5C)}u00(?:0[0-7bef]|1[0-9a-f])")
    else:
        written += [f"{_character(0x5C)}u{code:04x}" for code in long]
    return written[0] if len(written) == 1 else f"(?:{'|'.join(written)})"


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _sorted(found: Iterable[tuple[int, int]]) -> Ranges:
    ranges: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if ranges and begin <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
        else:
            ranges.append((begin, end))
    return tuple(ranges)


def _minus(ranges: Ranges, less: Ranges) -> Ranges:
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
        return _minus(_TEXT, _named(letter.lower(), unicode=not unicode))
    flags = re.NOFLAG if unicode else re.ASCII
    text = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1)))) if unicode else _ascii()
    found = (match[0] for match in re.finditer(f"\\{letter}", text, flags))
    extra = [(0xFEFF, 0xFEFF)] if letter == "s" and unicode else []  # white space in ECMA-262
    return _sorted([*((ord(one), ord(one)) for one in found), *extra])


def _ascii() -> str:
    return "".join(map(chr, range(128)))
