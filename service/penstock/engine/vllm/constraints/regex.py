r"""Translate regular expressions into the few constructs that xgrammar reads as Python and ECMA-262 do.

The whole text has to match, as with Python's `re.fullmatch`. Where Python and ECMA-262 differ, an accepted text matches
in both: `\d`, `\w` and `\s` are ASCII, and their complements (`\D`, `[^\w]`) exclude Unicode. Anchors are
supported at the ends of the expression only; lazy quantifiers become greedy ones, since the whole text matches either
way. Everything else without an exact counterpart is refused with its text and offset: xgrammar 0.2.8 reads `\A`, `\Z`
and unknown escapes as letters and drops a `$` in the middle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, lru_cache

from penstock.engine.regex_syntax import (
    TEXT,
    Anchor,
    CharacterSet,
    Group,
    Node,
    Ranges,
    RefusedRegexError,
    Repeat,
    is_one,
    minus,
    parse,
    sorted_ranges,
)

_MAX_SIZE = 1 << 20
_OTHER_LENGTHS: tuple[Ranges, ...] = (
    ((0x800, sys.maxunicode),),
    ((0, 0x7FF), (0x10000, sys.maxunicode)),
    ((0, 0xFFFF),),
)
"""Characters that do not take one or two bytes in UTF-8, three, and four."""
_CARET = ord("^")
_LESS = ord("<")
_MAX_BEGINNINGS = 64
_LONG_ESCAPES = 27  # control characters that JSON writes as \u00XX only
_JSON_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}


@lru_cache(maxsize=16)
def translate(pattern: str) -> str:
    """Return a regular expression for xgrammar whose texts match `pattern` as a whole.

    Raise RefusedRegexError for parts that cannot be enforced, and for an invalid expression.
    """
    return _Writer(_set).whole(parse(pattern, newlines=((10, 10),)))


@lru_cache(maxsize=16)
def translate_json_pattern(pattern: str, *, in_xml: bool = False) -> str:
    """Return a regular expression for the inside of a JSON string whose value contains a match of `pattern`.

    As with the JSON-schema keyword, the match may be anywhere unless it is anchored. `in_xml`: `<` is written as
    `\\u003c`, so that no text in the string ends the XML element around it. Raise RefusedRegexError as `translate`.
    """
    return _Writer(_json_set_in_xml if in_xml else _json_set, guarded=True).whole(_found_anywhere(pattern))


def json_string_of_length(least: int, most: int | None, *, in_xml: bool = False) -> str:
    """Return a regular expression for the inside of a JSON string of `least` to `most` characters (code points).

    `in_xml` as in `translate_json_pattern`.
    """
    return _Writer(_json_set_in_xml if in_xml else _json_set).whole(
        Group(((Repeat(CharacterSet(TEXT), least, most),),))
    )


def json_string_other_than(texts: Collection[str], *, in_xml: bool = False) -> str:
    """Return a regular expression for the inside of JSON strings that are none of `texts`.

    Each character stands for itself: strings with quotation marks, backslashes or control characters are left out, with
    `in_xml` also those with `<`. So are some that differ late from the `texts`, as each of their beginnings costs the
    compiler time.
    """
    plain = minus(TEXT, ((0, 0x1F), (0x22, 0x22), *(((_LESS, _LESS),) if in_xml else ()), (0x5C, 0x5C)))
    following: dict[str, set[int]] = {"": set()}
    for length in range(max(map(len, texts), default=0)):
        longer = [text for text in texts if len(text) > length and text[:length] in following]
        for text in longer:
            following[text[:length]].add(ord(text[length]))
        begun = {text[: length + 1] for text in longer if _has(plain, ord(text[length]))}
        if not begun or len(following) + len(begun) > _MAX_BEGINNINGS:
            break
        following |= {beginning: set() for beginning in begun}
    branches: list[tuple[Node, ...]] = []
    whole: list[tuple[Node, ...]] = []
    for beginning, codes in sorted(following.items()):
        spelled = [CharacterSet(((ord(character),) * 2,)) for character in beginning]
        branches.append((*spelled, CharacterSet(minus(plain, sorted_ranges((code, code) for code in codes)))))
        if beginning not in texts:
            whole.append((*spelled,))
    anything = Repeat(CharacterSet(plain), 0, None)
    return _Writer(_text_set, guarded=True).whole(Group(((Group(tuple(branches)), anything), *whole)))


@lru_cache(maxsize=16)
def translate_raw_pattern(pattern: str, markers: tuple[str, ...]) -> str:
    """Return a regular expression for a text that contains a match of `pattern` and none of the `markers`.

    The match may be anywhere unless it is anchored. All markers begin with `<`: where the pattern has the characters of
    a marker, it is left without `<`. Raise RefusedRegexError as `translate`.
    """
    group = _found_anywhere(pattern)
    characters = sorted_ranges(_members(group))
    if any(all(_has(characters, ord(character)) for character in marker) for marker in markers):
        return _Writer(lambda ranges: _text_set(minus(ranges, ((_LESS, _LESS),)))).whole(group)
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
    return _Writer(_text_set).whole(parse(pattern, newlines=()))


_WITHOUT_MARKERS = r"(?:[^<]|<<?/?(?:[^/<pft]|p[^a<]|f[^u<]|t[^o<]))"
"""One to five characters that do not begin `<parameter=`, `<function=`, `<tool_call>` or their closing forms."""
_MAX_UNIT_CHARACTERS = 5


def _found_anywhere(pattern: str) -> Group:
    """Return a pattern as ECMA-262 reads it, for a whole text in which a match is anywhere."""
    group = parse(pattern, newlines=((10, 10), (13, 13), (0x2028, 0x2029)))
    while len(group.branches) == 1 and len(group.branches[0]) == 1 and isinstance(group.branches[0][0], Group):
        group = group.branches[0][0]
    return Group(tuple(_between_anything(branch) for branch in group.branches))


def _members(node: Node) -> Iterator[tuple[int, int]]:
    """Yield the ranges of all characters of an expression."""
    match node:
        case CharacterSet(ranges):
            yield from ranges
        case Repeat(inner):
            yield from _members(inner)
        case Group(branches):
            for branch in branches:
                for part in branch:
                    yield from _members(part)


def _has(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _between_anything(branch: tuple[Node, ...]) -> tuple[Node, ...]:
    anything = Repeat(CharacterSet(TEXT), 0, None)
    starts = bool(branch) and isinstance(branch[0], Anchor) and branch[0].at_start
    ends = bool(branch) and isinstance(branch[-1], Anchor) and not branch[-1].at_start
    return (*(() if starts else (anything,)), *branch, *(() if ends else (anything,)))


class _Writer:
    """Write a tree as an expression. `guarded`: for a `pattern` of a JSON schema, which xgrammar compiles otherwise.

    There xgrammar 0.2.8 joins automata at states that have edges of their own: `(ab+)?` also allows `b`. Empty groups
    put new states between them.
    """

    def __init__(self, write_set: Callable[[Ranges], str], *, guarded: bool = False) -> None:
        self._write_set = write_set
        self._guard = "(?:)" if guarded else ""
        self._size = 0

    def whole(self, group: Group) -> str:
        """Return the expression for a whole text. Raise RefusedRegexError."""
        return self._branches(group, starts=True, ends=True)

    def _sized(self, text: str) -> str:
        self._size += len(text)
        if self._size > _MAX_SIZE:
            raise RefusedRegexError("the regular expression is too large once its sets are written out", "", 0)
        return text

    def _branches(self, group: Group, *, starts: bool, ends: bool) -> str:
        written = [self._sequence(branch, starts=starts, ends=ends) for branch in group.branches]
        return f"(?:{'|'.join(map(self._guarded, written))})" if len(written) > 1 else written[0]

    def _guarded(self, text: str) -> str:
        return f"{self._guard}{text}{self._guard}"

    def _sequence(self, nodes: Sequence[Node], *, starts: bool, ends: bool) -> str:
        written = []
        first = next((at for at, node in enumerate(nodes) if not _is_anchor(node, at_start=True)), len(nodes))
        last = next(
            (at for at in range(len(nodes) - 1, -1, -1) if not _is_anchor(nodes[at], at_start=False)),
            -1,
        )
        for at, node in enumerate(nodes):
            if not isinstance(node, Anchor):
                written.append(self._node(node, starts=starts and at == first, ends=ends and at == last))
            elif not (starts and at < first if node.at_start else ends and at > last):
                raise RefusedRegexError("an anchor is supported at the ends only", node.part, node.offset)
        return "".join(written)

    def _node(self, node: Node, *, starts: bool, ends: bool) -> str:
        match node:
            case CharacterSet(ranges):
                return self._sized(self._write_set(ranges))
            case Repeat(inner, least, most):
                text = self._node(inner, starts=False, ends=False)
                if most == 0 or not text:
                    return ""
                inside = text if isinstance(inner, CharacterSet) else self._guarded(text)
                return self._sized(self._guarded(f"(?:{inside}){_quantifier(least, most)}"))
            case Group():
                return f"(?:{self._branches(node, starts=starts, ends=ends)})"
        raise AssertionError(node)


def _is_anchor(node: Node, *, at_start: bool) -> bool:
    return isinstance(node, Anchor) and node.at_start == at_start


def _quantifier(least: int, most: int | None) -> str:
    signs: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return signs.get((least, most)) or f"{{{least},{'' if most is None else most}}}"


def _character(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\u{{{code:x}}}"


def _set(ranges: Ranges) -> str:
    if not ranges:
        return r"[^\u{0}-\u{10ffff}]"
    if is_one(ranges):
        return _character(ranges[0][0])
    if ranges[0][0] == _CARET:
        # xgrammar reads a caret at the start as negation, even where it is written as a number.
        ranges = (*minus(ranges, ((_CARET, _CARET),)), (_CARET, _CARET))
    parts = (_character(a) if a == b else f"{_character(a)}-{_character(b)}" for a, b in ranges)
    return f"[{''.join(parts)}]"


def _by_length(ranges: Ranges) -> list[Ranges]:
    """Return one set for each length in UTF-8.

    For a set over several lengths, xgrammar also allows overlong encodings, which decoders reject.
    """
    return [part for less in _OTHER_LENGTHS if (part := minus(ranges, less))]


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
    others = minus(ranges, ((_LESS, _LESS),))
    return f"(?:{_json_set(others)}|{escaped})" if others else escaped


@lru_cache(maxsize=128)
def _json_set(ranges: Ranges) -> str:
    """Return an expression for one character of a JSON string: itself, or its shortest escape."""
    by_length = _by_length(minus(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))))
    escaped = [code for code in (*range(0x20), 0x22, 0x5C) if any(a <= code <= b for a, b in ranges)]
    short = [ord(_JSON_ESCAPES[code]) for code in escaped if code in _JSON_ESCAPES]
    written = [_set(part) for part in by_length] or ([] if escaped else [_set(())])
    if short:
        written.append(_character(0x5C) + _set(sorted_ranges((code, code) for code in short)))
    long = [code for code in escaped if code not in _JSON_ESCAPES]
    if len(long) == _LONG_ESCAPES:
        written.append(f"{_character(0x5C)}u00(?:0[0-7bef]|1[0-9a-f])")
    else:
        written += [f"{_character(0x5C)}u{code:04x}" for code in long]
    return written[0] if len(written) == 1 else f"(?:{'|'.join(written)})"
