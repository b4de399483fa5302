"""Read tool calls of the JSON format: `{"name": NAME, "arguments": {...}}` between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from penstock.generation.tool_calls.json_scanner import JsonScanner, checked_json
from penstock.generation.tool_calls.pieces import PieceCollector
from penstock.generation.tool_calls.source import Reading, Source

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_STRING_START: Final = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*'
_SHORT_STRING: Final = re.compile(_STRING_START + '"')
_CUT_STRING: Final = re.compile(rf"({_STRING_START})(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?")
_MAX_STRING: Final = 400
"""Longest name of a member, and of a tool, as written: 64 characters may all be escaped."""
_ARGUMENTS: Final = ("arguments", "parameters")
_FIRST_MEMBERS: Final = frozenset({"name", "id", "type", *_ARGUMENTS})
"""Members with which a call may begin. An object that begins with another one is text."""


class JsonCalls:
    """Read calls from `source` into `pieces`."""

    closers: Final = ("</tool_call>", "}")
    """Markup that is dropped where it follows a call."""
    late_closers: Final = ("</tool_call>",)
    """Markup that is dropped where it follows a call's `</tool_call>`."""

    def __init__(self, source: Source, pieces: PieceCollector) -> None:
        self._source = source
        self._pieces = pieces
        self._name = ""
        self._held: list[str] = []
        self._has_arguments = False
        self._is_sound = True
        """Whether all that was read of the call is what a call may have."""
        self._is_cut = False
        """Whether the output ended before the call's name was known, and so far the call is what it may be."""
        self._cut_name = ""

    def read(self) -> Reading[bool]:
        """Read one call, which may be cut. Return False where none begins here; then what was read is text."""
        self._name, self._held, self._has_arguments, self._is_sound = "", [], False, True
        self._is_cut, self._cut_name = False, ""
        is_whole = yield from self._object()
        if not self._name:
            if self._is_cut:
                self._source.read_rest()
                self._source.recorded()
                self._pieces.add_cut_call(self._cut_name)
            return self._is_cut
        if is_whole and not self._has_arguments:
            self._pieces.add_arguments("{}")
        if not is_whole:
            yield from self._skip_rest()
        self._pieces.finish(is_complete=is_whole and self._is_sound and not self._pieces.repeats_a_key())
        return True

    def _object(self) -> Reading[bool]:
        """Read the call's object. Return whether it is one that ended as it may."""
        if not (yield from self._is_next("{")):
            return False
        self._source.read(1)
        return (yield from self._members())

    def _is_next(self, character: str) -> Reading[bool]:
        """Return whether `character` comes next. The call is cut where nothing does."""
        found = yield from self._source.peek()
        self._is_cut = not found
        return found == character

    def _members(self) -> Reading[bool]:
        """Read the members of the call's object. Return whether it ended as it may."""
        is_first = True
        while True:
            yield from self._source.space()
            if is_first and (yield from self._source.peek()) == "}":
                break
            if not (yield from self._member(is_first)):
                return False
            is_first = False
            yield from self._source.space()
            if not (yield from self._is_next(",")):
                break
            self._source.read(1)
        if (yield from self._source.marker("}")):
            self._source.read(1)
            return True
        # The last brace is missing, but the end of the call is there.
        return self._has_arguments and bool((yield from self._source.marker("</tool_call>")))

    def _member(self, is_first: bool) -> Reading[bool]:
        key = yield from self._short_string()
        if key is None:
            start = self._cut_string()
            self._is_cut = start is not None and (not is_first or any(one.startswith(start) for one in _FIRST_MEMBERS))
            return False
        if is_first and key not in _FIRST_MEMBERS:
            return False
        yield from self._source.space()
        if not (yield from self._is_next(":")):
            return False
        self._source.read(1)
        yield from self._source.space()
        if key == "name" and not self._name:
            return (yield from self._read_name())
        if key in _ARGUMENTS and not self._has_arguments:
            self._has_arguments = True
            return (yield from self._read_arguments())
        return (yield from self._value(_ignore))

    def _read_name(self) -> Reading[bool]:
        name = yield from self._short_string()
        if name is None:
            start = self._cut_string()
            if start is not None and (not start or NAME.fullmatch(start)):
                self._is_cut, self._cut_name = True, start
            return False
        if not NAME.fullmatch(name):
            return False
        self._name = name
        self._source.recorded()
        self._pieces.start(name)
        self._add("".join(self._held))
        return True

    def _read_arguments(self) -> Reading[bool]:
        first = yield from self._source.peek()
        if first == "{":
            return (yield from self._value(self._add))
        parts: list[str] = []
        is_value = yield from self._value(parts.append)
        # Some models write the object into a string.
        inner = checked_json(_unquoted("".join(parts)), "{") if is_value and first == '"' else None
        self._is_sound = inner is not None
        self._add(inner or "")
        return is_value

    def _add(self, text: str) -> None:
        if self._name:
            self._pieces.add_arguments(text)
        else:
            self._held.append(text)

    def _short_string(self) -> Reading[str | None]:
        source = self._source
        while (found := _SHORT_STRING.match(source.text, source.at)) is None:
            is_open = source.is_empty or (source.is_at('"') and len(source.text) - source.at <= _MAX_STRING)
            if source.is_over or not is_open:
                return None
            yield
        if found.end() - found.start() > _MAX_STRING:
            return None
        return str(json.loads(source.read_to(found.end())))

    def _cut_string(self) -> str | None:
        """Return the start of a short string inside which the output ends, or before it; otherwise None."""
        source = self._source
        if not source.is_over or len(source.text) - source.at > _MAX_STRING:
            return None
        if source.is_empty:
            return ""
        found = _CUT_STRING.fullmatch(source.text, source.at)
        return str(json.loads(found[1] + '"')) if found else None

    def _value(self, add: Callable[[str], None]) -> Reading[bool]:
        """Read a JSON value and give its text to `add`. Return whether it is one."""
        source, scanner = self._source, JsonScanner()
        while True:
            end = scanner.feed(source.text, source.at)
            source.read_to(end)
            if scanner.at_control:
                yield from self._control(scanner)
            elif source.is_empty and source.is_over:
                self._is_cut = scanner.may_go_on()
                scanner.end()
                add(scanner.pop())
                return scanner.is_done
            add(scanner.pop())
            if scanner.is_done or scanner.has_failed:
                return scanner.is_done
            if source.is_empty and not source.is_over:
                yield

    def _control(self, scanner: JsonScanner) -> Reading[None]:
        """Read control characters inside a string. A marker behind a line break shows that it was not closed."""
        white = yield from self._source.space()
        if "\n" in white and (yield from self._source.marker("<tool_call>", "</tool_call>")):
            scanner.has_failed = True
        else:
            scanner.accept_control(white or self._source.read(1))

    def _skip_rest(self) -> Reading[None]:
        """Read up to where the next call may begin, or this one's markup ends."""
        source = self._source
        while (yield from source.peek()):
            source.read_until("<")
            if (yield from source.marker("<tool_call>", "</tool_call>")):
                return
            if not source.is_empty:
                source.read(1)


def _ignore(_text: str) -> None:
    pass


def _unquoted(text: str) -> str:
    """Return the text of a JSON string; empty where it is none, or holds half a character."""
    try:
        inner = str(json.loads(text))
        inner.encode()
    except ValueError:
        return ""
    return inner
