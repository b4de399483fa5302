"""Read tool calls of the XML format: `<function=NAME>`, `<parameter=KEY>` VALUE `</parameter>`..., `</function>`.

The format has no escapes: a value may contain its markers. So a marker inside a value counts only where what follows
it continues the markup:

    </parameter>      before <parameter, </function, </tool_call>, the next call or the end of the output
    </function>       without </parameter>: before </tool_call> and then <tool_call> or the end of the output; the call
                      is then not complete if the output was cut there
    </tool_call>      without both: before <tool_call> or the end of the output; the call is then not complete
    <parameter=KEY>   without </parameter>: on a line of its own, where the tool has KEY and the call has it not yet

A call that a value quotes, from `<function=NAME>` with parameters to its `</function>`, is part of the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from penstock.generation.tool_calls.parameter_types import STRING, ParameterTypes, json_of, may_only_be_text
from penstock.generation.tool_calls.pieces import PieceCollector, json_text
from penstock.generation.tool_calls.source import Reading, Source

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]*")
_MAX_NAME: Final = 64
_KEY: Final = re.compile(r"[^<>\r\n]*")
_MAX_KEY: Final = 256
_CLOSER_REST: Final = re.compile(r"[A-Za-z0-9_/]{0,16}>?")
_MAX_CLOSER_REST: Final = 17

_FUNCTION, _FUNCTION_END, _FUNCTION_END_START = "<function=", "</function>", "</function"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter"
_BLOCK, _BLOCK_END = "<tool_call>", "</tool_call>"
_AFTER_PARAMETER: Final = ("<parameter", _FUNCTION_END_START, _BLOCK_END, _BLOCK, _FUNCTION)
_MAX_HEAD: Final = 8
"""Characters of a value by which text is told from other types."""
_CUT_NAME: Final = re.compile(f"{_FUNCTION}([A-Za-z0-9_.-]{{1,{_MAX_NAME}}})")
_IN_VALUE: Final = (_PARAMETER_END, _FUNCTION_END, _BLOCK_END, _PARAMETER, _FUNCTION)


class XmlCalls:
    """Read calls from `source` into `pieces`. `schemas` has each tool's JSON schema by its name."""

    closers: Final = (_BLOCK_END, _FUNCTION_END, "</parameter>")
    """Markup that is dropped where it follows a call."""
    late_closers: Final = (_BLOCK_END,)
    """Markup that is dropped where it follows a call's `</tool_call>`."""

    def __init__(self, source: Source, pieces: PieceCollector, schemas: Mapping[str, str]) -> None:
        self._source = source
        self._pieces = pieces
        self._schemas = schemas
        self._types_of_tools: dict[str, ParameterTypes] = {}
        self._types = ParameterTypes("")
        self._keys: set[str] = set()
        self._is_sound = True

    def read(self) -> Reading[bool]:
        """Read one call, which may be cut. Return False where none begins here; then nothing was read."""
        name = yield from self._source.tag(_FUNCTION, _NAME, _MAX_NAME)
        if not name:
            return self._read_cut()
        self._source.read(len(_FUNCTION) + len(name) + 1)
        self._source.recorded()
        self._pieces.start(name)
        self._types = self._types_of(name)
        self._keys, self._is_sound = set(), True
        has_ended = yield from self._parameters()
        is_complete = has_ended and self._is_sound
        if is_complete:
            self._pieces.add_arguments("}" if self._keys else "{}")
        self._pieces.finish(is_complete=is_complete)
        return True

    def _read_cut(self) -> bool:
        """Read a call that was cut before its name was known. Return False where what is there is no start of one."""
        source = self._source
        if not source.is_over:
            return False
        name = ""
        if not _FUNCTION.startswith(source.rest):
            found = _CUT_NAME.fullmatch(source.text, source.at)
            if not found:
                return False
            name = found[1]
        source.read_rest()
        source.recorded()
        self._pieces.add_cut_call(name)
        return True

    def _types_of(self, name: str) -> ParameterTypes:
        if name not in self._schemas:
            return ParameterTypes("")
        if name not in self._types_of_tools:
            self._types_of_tools[name] = ParameterTypes(self._schemas[name])
        return self._types_of_tools[name]

    def _parameters(self) -> Reading[bool]:
        """Read parameters up to the end of the call. Return whether the model ended it."""
        source = self._source
        while True:
            yield from source.space()
            key = yield from source.tag(_PARAMETER, _KEY, _MAX_KEY)
            if key and self._is_key(key):
                source.read(len(_PARAMETER) + len(key) + 1)
                yield from self._parameter(key)
                continue
            found = yield from source.marker(_FUNCTION_END_START, _BLOCK_END, _BLOCK, _FUNCTION)
            if found == _FUNCTION_END_START:
                return (yield from self._function_end())
            if found:
                return found == _BLOCK_END
            if not (yield from source.peek()):
                return False
            # Not what a call may have here, such as `<parameter` without a name: the rest of the call is still read.
            self._is_sound = False
            source.read(1)
            source.read_until("<")

    def _function_end(self) -> Reading[bool]:
        """Read `</function>`. Return whether it is one; without its `>` it is, where the markup goes on."""
        source = self._source
        source.read(len(_FUNCTION_END_START))
        if (yield from source.run(_CLOSER_REST, _MAX_CLOSER_REST)).endswith(">"):
            return True
        yield from source.space()
        return bool((yield from source.marker(_BLOCK_END, _BLOCK)))

    def _is_key(self, key: str) -> bool:
        """Return whether `key` can be a name. `<parameter=KEY=>` is KEY without its value."""
        return key in self._types or key.rstrip("=") not in self._types

    def _parameter(self, key: str) -> Reading[None]:
        start = f'{", " if self._keys else "{"}"{json_text(key)}": '
        value = _Value(self._pieces, start, self._types.types_of(key))
        if key in self._keys:
            # JSON readers differ about which of two members counts, so the call must not be executed.
            self._is_sound = False
            value = _Value(PieceCollector(), "", STRING)
        self._keys.add(key)
        if (yield from self._value(value)):
            value.end()

    def _value(self, value: _Value) -> Reading[bool]:
        """Read a value and its closer. Return False where the output ends before that."""
        source, quoted, follows_quote = self._source, 0, False
        while True:
            value.add(source.read_until("<"))
            if not (yield from source.peek()):
                return False
            found = yield from source.marker(*_IN_VALUE)
            if found == _FUNCTION:
                quoted += yield from self._quoted_call(value)
            elif found and (quoted or (follows_quote and found == _BLOCK_END)):
                quoted -= quoted > 0 and found == _FUNCTION_END
                follows_quote = found == _FUNCTION_END
                value.add(source.read(len(found)))
            elif found:
                follows_quote = False
                if (yield from self._is_end(found, value)):
                    return True
            elif source.is_cut(*_IN_VALUE):
                # The output was cut inside a marker, which is no part of the value.
                return False
            elif source.is_at("<"):
                value.add(source.read(1))

    def _quoted_call(self, value: _Value) -> Reading[bool]:
        """Read `<function=` inside a value. Return whether it begins a call that the value quotes."""
        source = self._source
        name = yield from source.tag(_FUNCTION, _NAME, _MAX_NAME)
        value.add(source.read(len(_FUNCTION)))
        if not name:
            return False
        value.add(source.read(len(name) + 1))
        value.add((yield from source.space()))
        return bool((yield from source.marker(_PARAMETER, _FUNCTION_END)))

    def _is_end(self, found: str, value: _Value) -> Reading[bool]:
        """Read a marker inside a value. Return whether the value ends here; otherwise the marker is added to it."""
        source = self._source
        if found == _PARAMETER:
            ends = yield from self._is_next_parameter(value)
            if not ends:
                value.add(source.read(1))
            return ends
        read = [source.read(len(found))]
        if found == _PARAMETER_END:
            read.append((yield from source.run(_CLOSER_REST, _MAX_CLOSER_REST)))
        read.append((yield from source.space()))
        if found == _PARAMETER_END:
            ends = bool((yield from source.marker(*_AFTER_PARAMETER)))
            if not ends and source.is_cut(*_AFTER_PARAMETER):
                ends, value.is_whole = True, False
        else:
            ends = yield from self._is_end_of_call(found, read, value)
            if ends:
                source.unread("".join(read))
        if not ends:
            value.add("".join(read))
        return ends

    def _is_next_parameter(self, value: _Value) -> Reading[bool]:
        if not value.is_at_line_start:
            return False
        key = yield from self._source.tag(_PARAMETER, _KEY, _MAX_KEY)
        if key not in self._types or key in self._keys:
            return False
        return bool((yield from self._source.marker(f"{_PARAMETER}{key}>\n")))

    def _is_end_of_call(self, found: str, read: list[str], value: _Value) -> Reading[bool]:
        """Return whether a call ends at `found`, although its last value was not closed. Extends what was `read`."""
        source, is_sound = self._source, False
        if found == _FUNCTION_END and (yield from source.marker(_BLOCK_END)):
            read.append(source.read(len(_BLOCK_END)))
            read.append((yield from source.space()))
            is_sound = True
        ends = bool((yield from source.marker(_BLOCK)))
        if not ends and source.is_cut(_BLOCK, _BLOCK_END):
            ends, is_sound = True, is_sound and not source.was_cut
        if ends and not is_sound:
            # Two closers are missing, or the output was cut: the value may have gone on.
            self._is_sound = value.is_whole = False
        return ends


class _Value:
    """Write one value: text as it comes, other types when they are whole.

    The line break behind `<parameter=KEY>` and the one before `</parameter>` are markup.
    """

    def __init__(self, pieces: PieceCollector, start: str, types: frozenset[str]) -> None:
        self.is_whole = True
        """Whether it ends where it seems to."""
        self._pieces = pieces
        self._start = start
        self._types = types
        self._is_first = True
        self._is_text = False
        self._line_break = ""
        self._held: list[str] = []
        self._head = ""

    @property
    def is_at_line_start(self) -> bool:
        """Return whether nothing was added since the last line break."""
        return bool(self._line_break) or not (self._held or self._is_text)

    def add(self, text: str) -> None:
        """Add text of the value."""
        if not text:
            return
        if self._is_first:
            text = text.removeprefix("\n")
            self._is_first = False
        text = self._line_break + text
        self._line_break = "\n" if text.endswith("\n") else ""
        self._write(text.removesuffix("\n"))

    def end(self) -> None:
        """End the value. Of one that may go on, nothing more is written."""
        if not self.is_whole:
            return
        if not self._is_text and self._types == STRING:
            self._begin_text()
        if self._is_text:
            self._pieces.add_arguments('"')
        else:
            self._pieces.add_arguments(self._start + json_of("".join(self._held), self._types))

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._is_text:
            self._pieces.add_arguments(json_text(text))
            return
        self._held.append(text)
        self._head = (self._head + text[:_MAX_HEAD]).lstrip()[:_MAX_HEAD] if self._head else text.lstrip()[:_MAX_HEAD]
        if may_only_be_text(self._head, self._types):
            self._begin_text()

    def _begin_text(self) -> None:
        self._is_text = True
        self._pieces.add_arguments(f'{self._start}"{json_text("".join(self._held))}')
        self._held.clear()
