"""Tool calls are found in the answer's text, wherever it is cut.

A number names a way in which tool calls went wrong in other servers: docs/decisions/0033-own-parser-of-tool-calls.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.generation.tool_calls import (
    CallArguments,
    CallFinished,
    CallStarted,
    Piece,
    TextPiece,
    ToolCallParser,
    parameter_types,
)
from penstock.types import Tool, ToolCallFormat, ToolCallStatus

XML, JSON = ToolCallFormat.XML, ToolCallFormat.JSON
COMPLETE, INCOMPLETE = ToolCallStatus.COMPLETE, ToolCallStatus.INCOMPLETE
EDIT = Tool(
    "edit",
    parameters_json_schema=json.dumps(
        {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "text": {"type": "string"},
                "line": {"type": "integer"},
                "ratio": {"type": "number"},
                "force": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object"},
                "note": {"type": ["string", "null"]},
            },
        }
    ),
)
Found = list[tuple[Any, ...]]
"""Neighbouring pieces as one: ("text", TEXT) and ("call", NAME, ARGUMENTS, STATUS)."""


# ------------------------------------------------------------------------------------------------ how outputs are read


def merged(pieces: Iterable[Piece]) -> Found:
    """Return what pieces say, after checking that they come in an order that a client can follow."""
    found: Found = []
    fragments: list[str] | None = None
    started = finished = 0
    for piece in pieces:
        if isinstance(piece, TextPiece):
            assert piece.text
            assert fragments is None
            if found and found[-1][0] == "text":
                found[-1] = ("text", found[-1][1] + piece.text)
            else:
                found.append(("text", piece.text))
        elif isinstance(piece, CallStarted):
            assert (fragments, piece.index) == (None, started)
            found.append(("call", piece.name))
            fragments, started = [], started + 1
        elif isinstance(piece, CallArguments):
            assert fragments is not None
            assert piece.index == finished
            assert piece.json_fragment
            fragments.append(piece.json_fragment)
        else:
            assert fragments is not None
            assert found[-1] == ("call", piece.name)
            assert (piece.index, piece.arguments_json) == (finished, "".join(fragments))
            if piece.status is COMPLETE:
                assert isinstance(json.loads(piece.arguments_json), dict)
            found[-1] = ("call", piece.name, piece.arguments_json, piece.status)
            fragments, finished = None, finished + 1
    assert fragments is None
    return found


def parse(
    texts: Iterable[str],
    call_format: ToolCallFormat = XML,
    tools: Sequence[Tool] = (EDIT,),
    max_calls: int | None = None,
    restore_at: int | None = None,
) -> Found:
    """Return what a parser finds, which another one takes over from before text number `restore_at`."""
    parser, pieces = ToolCallParser(call_format, tools, max_calls), list[Piece]()
    for number, text in enumerate(texts):
        if number == restore_at:
            parser = taken_over(parser, ToolCallParser(call_format, tools, max_calls))
        pieces += parser.push(text)
        assert parser.calls_finished == sum(isinstance(piece, CallFinished) for piece in pieces)
        assert parser.calls_started == sum(isinstance(piece, CallStarted) for piece in pieces)
    pieces += parser.end()
    assert not parser.in_call
    assert parser.push("more") == parser.end() == []
    return merged(pieces)


def taken_over(parser: ToolCallParser, other: ToolCallParser) -> ToolCallParser:
    other.restore(json.loads(json.dumps(parser.state())))
    assert other.state() == parser.state()
    for name in ("in_call", "calls_started", "calls_finished", "is_full"):
        assert getattr(other, name) == getattr(parser, name), name
    return other


def read(text: str, call_format: ToolCallFormat = XML, **how: Any) -> Found:
    """Return what is found in `text`, after checking that it is the same wherever the text is cut or taken over.

    A long text is cut at 400 places.
    """
    found = parse([text], call_format, **how)
    assert parse(text, call_format, **how) == found
    for at in range(0, len(text) + 1, 1 + len(text) // 400):
        assert parse([text[:at], text[at:]], call_format, **how) == found, (text[:at], text[at:])
        assert parse([text[:at], text[at:]], call_format, restore_at=1, **how) == found, (text[:at], text[at:])
    return found


def xml(name: str, *parameters: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def call(arguments: str, status: ToolCallStatus = COMPLETE, name: str = "edit") -> tuple[Any, ...]:
    return ("call", name, arguments, status)


# ------------------------------------------------------------------------------------------------------------ pitfalls


def test_pitfall_02_markup_of_a_call_does_not_leak_into_the_answer() -> None:
    assert read(f"I look.\n\n{xml('edit', ('path', 'a.py'))}\n") == [("text", "I look."), call('{"path": "a.py"}')]


@pytest.mark.parametrize(
    "element",
    [
        "<parameter=\nx\n</parameter>\n",
        "<parameter=tags: [1]\n</parameter>\n",
        "<parameter=text=\n</parameter>\n",
        "<parameter=text=>\nx\n</parameter>\n",
        "<parameter=text=x</parameter>\n",
        "<parameter>\nx\n</parameter>\n",
        '<parameter name="text">\nx\n</parameter>\n',
        "<parameter\n",
    ],
)
def test_pitfall_10_a_malformed_parameter_does_not_leak_into_arguments(element: str) -> None:
    path, line = "<parameter=path>\na\n</parameter>\n", "<parameter=line>\n1\n</parameter>\n"
    for inner, arguments in (
        (path + element + line, '{"path": "a", "line": 1'),
        (path + element, '{"path": "a"'),
        (element + path, '{"path": "a"'),
        (element, ""),
    ):
        text = f"<tool_call>\n<function=edit>\n{inner}</function>\n</tool_call>\n{xml('edit', ('line', '2'))}"
        found = read(text) if inner == element + path else parse(text)
        assert found == parse([text]) == [call(arguments, INCOMPLETE), call('{"line": 2}')]


def test_pitfall_11_a_bad_value_does_not_drop_other_calls() -> None:
    text = "\n".join(xml("edit", ("line", value)) for value in ("1", "many", "3"))
    assert read(text) == [call('{"line": 1}'), call('{"line": "many"}'), call('{"line": 3}')]
    broken = '<tool_call>\n{"name": "edit", "arguments": {"a": nothing}}\n</tool_call>'
    whole = '<tool_call>\n{"name": "edit", "arguments": {"a": 1}}\n</tool_call>'
    assert read(f"{broken}\n{whole}", JSON) == [call('{"a": ', INCOMPLETE), call('{"a": 1}')]


@pytest.mark.parametrize("name", ["edit\n<parameter=path", "", "two words", "e" * 65, "édit", "a<b"])
def test_pitfall_12_an_unclosed_or_malformed_name_begins_no_call(name: str) -> None:
    text = f"<tool_call>\n<function={name}>\nx</function></tool_call>\n"
    assert read(text + xml("edit")) == [("text", text.rstrip("\n")), call("{}")]


def test_pitfall_12_calls_inside_one_block_and_unclosed_blocks_are_calls_of_their_own() -> None:
    one = "<function=edit>\n<parameter=line>\n1\n</parameter>\n</function>\n"
    for text in (f"<tool_call>\n{one}{one}</tool_call>", f"<tool_call>\n{one}<tool_call>\n{one}</tool_call>"):
        assert read(text) == [call('{"line": 1}')] * 2
    two = '{"name": "edit", "arguments": {}}\n'
    for text in (f"<tool_call>\n{two}{two}</tool_call>", f"<tool_call>\n{two}<tool_call>\n{two}</tool_call>"):
        assert read(text, JSON) == [call("{}")] * 2


@pytest.mark.parametrize("call_format", [XML, JSON])
def test_pitfall_13_arguments_of_text_stream_as_they_come(call_format: ToolCallFormat) -> None:
    start = {
        XML: "<tool_call>\n<function=edit>\n<parameter=text>\n",
        JSON: '<tool_call>\n{"name": "edit", "arguments": {"text": "',
    }[call_format]
    parser = ToolCallParser(call_format, [EDIT])
    assert parser.push(start)[0] == CallStarted(0, "edit")
    for word in ("one ", "two ", "thrée "):
        (piece,) = parser.push(word)
        assert isinstance(piece, CallArguments)
        assert piece.json_fragment.endswith(word)


def test_pitfall_13_a_value_that_may_be_null_streams_once_it_cannot_be() -> None:
    parser = ToolCallParser(XML, [EDIT])
    parser.push("<tool_call>\n<function=edit>\n<parameter=note>\n")
    assert parser.push("nu") == []
    assert parser.push("mbers") == [CallArguments(0, '{"note": "numbers')]


def test_pitfall_17_a_call_that_was_cut_is_incomplete() -> None:
    whole = xml("edit", ("path", "a"), ("line", "12"))
    for end in range(whole.index(">", 15) + 1, len(whole)):
        (found,) = parse([whole[:end]])
        assert parse(whole[:end]) == [found]
        has_ended = "</function>" in whole[:end]
        assert found[1::2] == ("edit", COMPLETE if has_ended else INCOMPLETE)
        assert '{"path": "a", "line": 12}'.startswith(found[2])
        assert "<" not in found[2]


def test_pitfall_17_a_json_call_that_was_cut_is_incomplete() -> None:
    whole = '<tool_call>\n{"name": "edit", "arguments": {"a": "b", "c": [12, true]}}\n</tool_call>'
    for end in range(whole.index("edit") + 5, len(whole)):
        (found,) = parse([whole[:end]], JSON)
        assert parse(whole[:end], JSON) == [found]
        assert found[1::2] == ("edit", COMPLETE if "}}" in whole[:end] else INCOMPLETE)
        assert '{"a": "b", "c": [12, true]}'.startswith(found[2])


MARKERS = ("</parameter>", "</function>", "</tool_call>", "<parameter=x>", "<function=f>", "<tool_call>")


@pytest.mark.slow
@pytest.mark.parametrize("marker", [*MARKERS, "<parameter", "</parameter>>", "<", "</function>\n</tool_call>"])
@pytest.mark.parametrize("around", ["{}", "a {} b", "a\n{}\nb", "{}\n\n"])
def test_pitfall_18_a_marker_inside_a_value_does_not_cut_it(marker: str, around: str) -> None:
    value = around.format(marker)
    expected = [call(json.dumps({"text": value, "path": "p"}))]
    assert read(xml("edit", ("text", value), ("path", "p"))) == expected
    arguments = json.dumps({"text": value})
    text = f'<tool_call>\n{{"name": "edit", "arguments": {arguments}}}\n</tool_call>'
    assert read(text, JSON) == [call(arguments)]


def test_pitfall_18_a_call_that_a_value_quotes_is_part_of_it() -> None:
    inner = xml("edit", ("path", "a"), ("line", "1"))
    value = f"Write this:\n{inner}\n{xml('f')}\nor {xml('write', ('text', inner))}"
    assert read(xml("edit", ("text", value), ("line", "2"))) == [call(json.dumps({"text": value, "line": 2}))]


def test_pitfall_18_a_quoted_call_that_does_not_end_is_never_executed() -> None:
    value = "<function=edit>\n<parameter=path>\nx"
    ((_, name, arguments, status),) = read(xml("edit", ("text", value)))
    assert (name, status) == ("edit", INCOMPLETE)
    assert arguments.startswith('{"text": "<function=edit>')


@pytest.mark.slow
@pytest.mark.parametrize(
    "closers",
    [
        "\n</function>\n</tool_call>",
        "\n</parameter>\n</tool_call>",
        "\n</parameter>\n</function>",
        "\n</parameter>\n</function>\n",
        "\n</parameter>\n</function>\n</function>\n</tool_call>",
        "\n</parameter>\n</function>\n</tool_call>\n</tool_call>",
        "\n</parameter>\n\n \t</function></tool_call>",
        "\n</parameter/>\n</function>\n</tool_call>",
        "\n</parameter1>\n</function>\n</tool_call>",
        "\n</parameter\n</function>\n</tool_call>",
        "\n</parameter_function>\n</tool_call>",
        "\n</parameter>\n</function\n</tool_call>",
        "\n</parameter>\n</function/>\n</tool_call>",
        "\n</parameterfunction>\n</tool_call>",
        "</parameter></function></tool_call>",
    ],
)
def test_pitfall_19_one_missing_or_malformed_closer_is_repaired(closers: str) -> None:
    text = f"<tool_call>\n<function=edit>\n<parameter=path>\na{closers}"
    assert read(text) == [call('{"path": "a"}')]
    following = [] if text.endswith("</function>\n</tool_call>") and "</parameter" not in text else [("text", "Done.")]
    if following:
        assert read(f"{text}\nDone.") == [call('{"path": "a"}'), *following]
    if "</tool_call>" in text or "</parameter>" in text:
        assert read(f"{text}\n{xml('edit')}") == [call('{"path": "a"}'), call("{}")]


@pytest.mark.parametrize(
    "closers", ["", "\n", "\n</tool_call>", "\n</function>", "\n</parameter>", "\n</parameter>\n</fun"]
)
def test_pitfall_19_two_missing_closers_are_not_repaired(closers: str) -> None:
    ((*_, arguments, status),) = read(f"<tool_call>\n<function=edit>\n<parameter=path>\na{closers}")
    assert status is INCOMPLETE
    assert '{"path": "a"}'.startswith(arguments)
    if closers.startswith("\n</"):
        text = f"<tool_call>\n<function=edit>\n<parameter=path>\na{closers}\n{xml('edit')}"
        if "fun" not in closers or closers.endswith(">"):
            assert [found[3] for found in read(text)] == [INCOMPLETE, COMPLETE]


def test_pitfall_19_a_parameter_on_a_line_of_its_own_ends_a_value_that_was_not_closed() -> None:
    text = xml("edit", ("path", "a\n<parameter=line>\n1"))
    assert read(text) == [call('{"path": "a", "line": 1}')]
    unknown = text.replace("=line>", "=other>")
    assert read(unknown) == [call(json.dumps({"path": "a\n<parameter=other>\n1"}))]


def test_pitfall_19_braces_of_the_json_format_are_repaired() -> None:
    for end in (
        '{"a": 1}\n</tool_call>',
        '{"a": 1}}}\n</tool_call>',
        '{"a": 1}}',
        '{"a": 1}}\n</tool_call></tool_call>',
    ):
        assert read(f'<tool_call>\n{{"name": "edit", "arguments": {end}', JSON) == [call('{"a": 1}')]
    assert read('<tool_call>\n{"name": "edit", "arguments": {"a": 1}', JSON) == [call('{"a": 1}', INCOMPLETE)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text", "null", '"null"'),
        ("text", "True", '"True"'),
        ("text", "12", '"12"'),
        ("text", "", '""'),
        ("text", "\n", '"\\n"'),
        ("text", ' "a"\\ ', json.dumps(' "a"\\ ')),
        ("line", "12", "12"),
        ("line", " 12 ", "12"),
        ("line", "-0", "-0"),
        ("line", "1.0", "1.0"),
        ("line", "1.5e1", "1.5e1"),
        ("line", "1.5", '"1.5"'),
        ("line", "10e-1", "10e-1"),
        ("line", "1e-1", '"1e-1"'),
        ("line", "0e-9999999999", "0e-9999999999"),
        ("line", "10e-9999999999", '"10e-9999999999"'),
        ("line", "1.5e0009999999", "1.5e0009999999"),
        ("line", "9223372036854775808", "9223372036854775808"),
        ("line", "9" * 4_300, "9" * 4_300),
        ("line", "2026-11-29", '"2026-11-29"'),
        ("line", "007", '"007"'),
        ("line", "", '""'),
        ("ratio", "1e400", "1e400"),
        ("ratio", "-0.0", "-0.0"),
        ("ratio", "0.1", "0.1"),
        ("ratio", "12", "12"),
        ("ratio", "NaN", '"NaN"'),
        ("ratio", "Infinity", '"Infinity"'),
        ("ratio", ".5", '".5"'),
        ("force", "true", "true"),
        ("force", "False", "false"),
        ("force", "1", '"1"'),
        ("tags", '["a", 1.10]', '["a", 1.10]'),
        ("tags", "[]", "[]"),
        ("tags", '["a"', json.dumps('["a"')),
        ("tags", "[NaN]", '"[NaN]"'),
        ("tags", '{"a": 1}', json.dumps('{"a": 1}')),
        ("options", '{"b": {"a": null}, "b": 2}', '{"b": {"a": null}, "b": 2}'),
        ("options", '{\n  "a": "b\nc"\n}', '{\n  "a": "b\\nc"\n}'),
        ("options", "{'a': 1}", json.dumps("{'a': 1}")),
        ("options", "[" * 101 + "]" * 101, json.dumps("[" * 101 + "]" * 101)),
        ("note", "null", "null"),
        ("note", "None", "null"),
        ("note", "nullable", '"nullable"'),
        ("note", "12", '"12"'),
        ("unknown", "12", '"12"'),
    ],
)
def test_pitfall_20_values_have_the_types_of_the_schema(key: str, value: str, expected: str) -> None:
    text = xml("edit", (key, value), ("path", "p"))
    arguments = f'{{"{key}": {expected}, "path": "p"}}'
    assert read(text) == [call(arguments)]


def test_pitfall_22_what_follows_the_last_allowed_call_is_ignored() -> None:
    text = xml("edit", ("line", "1")) + "\n" + xml("edit", ("line", "2")) + "text"
    assert read(text, max_calls=1) == [call('{"line": 1}')]
    assert read(text, max_calls=2) == [call('{"line": 1}'), call('{"line": 2}')]
    parser = ToolCallParser(XML, [], 1)
    parser.push(text)
    assert (parser.is_full, parser.calls_started, parser.in_call) == (True, 1, False)
    json_calls = '<tool_call>{"name": "a"}{"name": "b"}</tool_call>'
    assert read(json_calls, JSON, max_calls=1) == [call("{}", name="a")]
    with pytest.raises(ValueError, match="max_calls must be 1 or more, got 0"):
        ToolCallParser(XML, [], 0)


def test_pitfall_23_all_parallel_calls_survive() -> None:
    text = "\n".join(xml(f"f{number}", ("a", "x" * number)) for number in range(4))
    assert read(text) == [call(json.dumps({"a": "x" * number}), name=f"f{number}") for number in range(4)]


def test_pitfall_26_the_same_tool_may_be_called_twice() -> None:
    assert read(xml("edit", ("line", "1")) * 2) == [call('{"line": 1}')] * 2


@pytest.mark.parametrize(
    "text",
    [
        "I would write <tool_call> here.",
        "<tool_call>\n\nNo.\n</tool_call>\n\n",
        "a\n\n<tool_",
        "<tool_call>\n<fact",
        "<tool_call><function=>",
        "<tool_call><function=a b",
        "<tool_call><function=" + "e" * 65,
        "<tool_call>\n<tool_call",
        "<function=edit>\n</function>",
        "</tool_call>",
        "a < b\n\n<c",
        "\n\n",
        '<tool_call>\n{"city": "Oslo"}\n</tool_call>',
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>{}",
        '<tool_call>{"c',
        '<tool_call>{"name" ,',
        '<tool_call>{"name": "two w',
        '<tool_call>{"name": "\\u12"',
        '<tool_call>{"name": "' + "a" * 65,
        '<tool_call>{"arguments": yes',
        '<tool_call>{"arguments": {"a" 1',
        '<tool_call>{"arguments": {}}',
        '<tool_call>{"arguments": {}</tool_',
        '<tool_call>{"arguments": {"a": 1}}</tool_call> x',
        '<tool_call>{"arguments": {"a": 1}, "name": "two words"}</tool_call>',
        '<tool_call>{"name": 1}',
        '<tool_call>{"name": "\\ud800"}',
        '<tool_call>{"name": "' + "a" * 65 + '"}',
    ],
)
def test_pitfall_27_a_narrated_call_is_text(text: str) -> None:
    for call_format in (XML, JSON):
        assert read(text, call_format) == [("text", text)]


XML_HEADERS_CUT = [("<function=edit"[:end], "edit"[: max(0, end - 10)]) for end in range(1, 15)]
JSON_HEADERS_CUT = [
    ("{", ""),
    ('{"nam', ""),
    ('{"n\\u006', ""),
    ('{"name"', ""),
    ('{ "name" :\n', ""),
    ('{"name": "', ""),
    ('{"name": "edi', "edi"),
    ('{"name": "edi\\u00', "edi"),
    ('{"id": 1', ""),
    ('{"id": -', ""),
    ('{"id": 1, "x\\', ""),
    ('{"type": "function", ', ""),
    ('{"arguments": nul', ""),
    ('{"arguments": {"a": [1, "b', ""),
    ('{"arguments": {"a": 1}, "name": "e', "e"),
]


@pytest.mark.parametrize(
    ("call_format", "header", "name"),
    [
        *((call_format, white, "") for call_format in (XML, JSON) for white in ("", "\n", " \r\n")),
        *((XML, *header) for header in XML_HEADERS_CUT),
        *((JSON, *header) for header in JSON_HEADERS_CUT),
    ],
)
def test_a_call_that_is_cut_before_its_name_is_known_is_incomplete(
    call_format: ToolCallFormat, header: str, name: str
) -> None:
    cut = call("", INCOMPLETE, name)
    for between in ("", "\n"):
        assert read(f"Hi.\n\n<tool_call>{between}{header}", call_format) == [("text", "Hi."), cut]
    whole = {XML: xml("f"), JSON: '<tool_call>\n{"name": "f"}\n</tool_call>'}[call_format]
    assert read(f"{whole}\n<tool_call>{header}", call_format) == [call("{}", name="f"), cut]
    assert read(f"{whole}<tool_call>{header}", call_format, max_calls=1) == [call("{}", name="f")]


def test_a_further_call_of_a_block_that_is_cut_in_its_header_is_incomplete() -> None:
    assert read("<tool_call>\n<function=f>\n</function>\n<function=ed") == [
        call("{}", name="f"),
        call("", INCOMPLETE, "ed"),
    ]
    assert read('<tool_call>\n{"name": "f"}\n{"na', JSON) == [call("{}", name="f"), call("", INCOMPLETE, "")]
    # This may have become a closer.
    assert read("<tool_call>\n<function=f>\n</function>\n<") == [call("{}", name="f")]


def test_a_tool_call_marker_behind_another_is_cut_by_itself() -> None:
    for call_format in (XML, JSON):
        assert read("<tool_call><tool_call>", call_format) == [("text", "<tool_call>"), call("", INCOMPLETE, "")]


def test_pitfall_27_a_call_after_a_narrated_one_is_found() -> None:
    assert read(f"<tool_call>\n\n{xml('edit')}") == [("text", "<tool_call>"), call("{}")]
    text = '<tool_call>{"x": 1}</tool_call>\n<tool_call>{"name": "edit"}</tool_call>'
    assert read(text, JSON) == [("text", '<tool_call>{"x": 1}</tool_call>'), call("{}")]


# --------------------------------------------------------------------------------------------- what else a call can be


def test_white_space_that_separates_calls_is_no_text() -> None:
    text = f"\nHi \n\n{xml('edit')}\n \n{xml('edit')}\n\n  Bye\n\n"
    assert read(text) == [("text", "\nHi "), call("{}"), call("{}"), ("text", "  Bye\n\n")]


def test_a_repeated_parameter_makes_a_call_incomplete() -> None:
    text = xml("edit", ("line", "1"), ("line", "</parameter> x"), ("path", "p"))
    assert read(text) == [call('{"line": 1, "path": "p"', INCOMPLETE)]


def test_a_repeated_key_of_the_json_format_makes_a_call_incomplete() -> None:
    def status(arguments: str) -> ToolCallStatus:
        text = f'<tool_call>\n{{"name": "edit", "arguments": {arguments}}}\n</tool_call>'
        (finished,) = [one for one in ToolCallParser(JSON, []).push(text) if isinstance(one, CallFinished)]
        return finished.status

    assert status('{"line": 1, "line": 2}') is INCOMPLETE
    assert status('{"line": 1, "inner": {"line": 2}}') is ToolCallStatus.COMPLETE


def test_the_caller_sees_which_tokens_belong_to_a_call() -> None:
    parser = ToolCallParser(XML, [])
    for text, in_call in (
        ("a <tool", False),
        ("_call>", True),
        ("<function=f>", True),
        ("</function>\n", True),
        ("</tool_call>", False),
        ("\n<tool_call>", True),
        ("no", False),
    ):
        parser.push(text)
        assert parser.in_call is in_call, text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"name": "edit"}', ("{}", COMPLETE)),
        ('{"arguments": {"a": 1}, "name": "edit"}', ('{"a": 1}', COMPLETE)),
        ('{"type": "function", "id": [1, {}], "name": "edit", "parameters": {}, "x": -1.5}', ("{}", COMPLETE)),
        (json.dumps({"name": "edit", "arguments": json.dumps({"a": "é\n"})}), ('{"a": "\\u00e9\\n"}', COMPLETE)),
        (json.dumps({"arguments": '{"a": 1}', "name": "edit"}), ('{"a": 1}', COMPLETE)),
        ('{"name": "ed\\u0069t", "arguments": { "a" : [ ] } }', ('{ "a" : [ ] }', COMPLETE)),
        ('{"name": "edit", "arguments": {"a": "b\nc"}}', ('{"a": "b\\nc"}', COMPLETE)),
        ('{"name": "edit", "arguments": {"a": 9223372036854775808, "b": 1e400}}', None),
        ('{"name": "edit", "arguments": null}', ("", INCOMPLETE)),
        ('{"name": "edit", "arguments": [1]}', ("", INCOMPLETE)),
        ('{"name": "edit", "arguments": "{\\"a\\": \\"\\ud800\\"}"}', ("", INCOMPLETE)),
        ('{"name": "edit", "arguments": {"a": 01}}', ('{"a": ', INCOMPLETE)),
        ('{"name": "edit", "arguments": {"a": True}}', ('{"a": ', INCOMPLETE)),
        ('{"name": "edit", "arguments": {"a": "\\x"}}', ('{"a": "', INCOMPLETE)),
        ('{"name": "edit", "arguments": {"a": 1,}}', ('{"a": 1,', INCOMPLETE)),
        ('{"name": "edit", "arguments": {}, }', ("{}", INCOMPLETE)),
        ('{"name": "edit", "arguments": ' + '{"a":' * 200 + "}" * 201, ('{"a":' * 100, INCOMPLETE)),
        ('{"name": "edit", "arguments": {"a": "b}}', ('{"a": "b}}', INCOMPLETE)),
    ],
)
def test_a_json_call_is_read_as_written(written: str, expected: tuple[str, ToolCallStatus] | None) -> None:
    arguments, status = expected or (written[29:-1].lstrip(), COMPLETE)
    text = f'a\n<tool_call>\n{written}\n</tool_call>\n<tool_call>\n{{"name": "g"}}\n</tool_call>'
    found = [("text", "a"), call(arguments, status), call("{}", name="g")]
    assert read(text, JSON) == found


# ------------------------------------------------------------------------------------------------------ generated calls

NAMES = st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>/_ \t\r\n\f\v"), min_size=1, max_size=5)
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 0.1, 5e-324, 1.7976931348623157e308]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PLAIN = TEXTS.filter(lambda text: "<" not in text)
"""Text without a marker."""
MARKED = st.lists(st.tuples(st.sampled_from(MARKERS), WORDS), min_size=1, max_size=4).map(
    lambda parts: "".join(marker + " " + word for marker, word in parts)
)
"""Text with markers behind which the markup does not go on."""
PARAMETERS = st.one_of(
    st.tuples(st.just("string"), PLAIN | MARKED),
    st.tuples(st.just("integer"), st.integers() | st.just(2**63)),
    st.tuples(st.just("number"), NUMBERS),
    st.tuples(st.just("boolean"), st.booleans()),
    st.tuples(st.just("null"), st.none()),
    st.tuples(st.just("array"), st.lists(VALUES, max_size=3)),
    st.tuples(st.just("object"), st.dictionaries(TEXTS, VALUES, max_size=3)),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>\r\n"), min_size=1, max_size=12)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(KEYS, PARAMETERS, max_size=4)), min_size=1, max_size=3)
PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


def nested(data: st.DataObject, kind: str) -> dict[str, Any]:
    """Return a schema that allows one type, said in one of the ways in which schemas say it."""
    plain: dict[str, Any] = {"type": kind}
    ways: list[dict[str, Any]] = [
        plain,
        {"type": [kind]},
        {"anyOf": [plain]},
        {"oneOf": [plain, plain]},
        {"allOf": [{}, plain]},
        {"$ref": f"#/$defs/{kind}"},
        {"anyOf": [{"$ref": f"#/$defs/{kind}"}]},
        {"type": [kind, "string", "null"], "allOf": [plain]},
    ]
    return data.draw(st.sampled_from(ways))


def written_in_xml(value: Any, data: st.DataObject) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return data.draw(st.sampled_from([json.dumps(value), str(value)]))
    return json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))


def check_every_way(text: str, call_format: ToolCallFormat, tools: Sequence[Tool], data: st.DataObject) -> Found:
    """Return what is found, after checking that it does not depend on some cuts, and on a parser that takes over."""
    found = parse([text], call_format, tools)
    assert parse(text, call_format, tools) == found
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cuts = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert parse(cuts, call_format, tools, restore_at=data.draw(st.integers(0, len(places)))) == found
    return found


@pytest.mark.slow
@settings(max_examples=150)
@given(CALLS, PROSE, st.data())
def test_generated_xml_calls_come_back(
    calls: list[tuple[str, dict[str, Any]]], prose: str, data: st.DataObject
) -> None:
    calls = list({name: (name, parameters) for name, parameters in calls}.values())
    tools = []
    for name, parameters in calls:
        properties = {key: nested(data, kind) for key, (kind, _) in parameters.items()}
        schema = {"$defs": {kind: {"type": kind} for kind, _ in parameters.values()}, "properties": properties}
        tools.append(Tool(name, parameters_json_schema=json.dumps(schema)))
    text = prose + "\n".join(
        xml(name, *((key, written_in_xml(value, data)) for key, (_, value) in parameters.items()))
        for name, parameters in calls
    )
    found = check_every_way(text, XML, tools, data)
    shown = prose.rstrip("\n")
    assert found[: bool(shown)] == ([("text", shown)] if shown else [])
    expected = [(name, {key: value for key, (_, value) in parameters.items()}, COMPLETE) for name, parameters in calls]
    assert [(name, json.loads(json_text), status) for _, name, json_text, status in found[bool(shown) :]] == expected


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(st.tuples(NAMES, st.dictionaries(TEXTS, VALUES, max_size=4)), min_size=1, max_size=3), st.data())
def test_generated_json_calls_come_back(calls: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    def written(value: Any) -> str:
        return json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))

    blocks, expected = [], []
    for name, arguments in calls:
        raw = written(arguments)
        members = {"name": written(name), "arguments": written(raw) if data.draw(st.booleans()) else raw}
        order = data.draw(st.permutations(list(members)))
        inner = ", ".join(f'"{key}": {members[key]}' for key in order)
        blocks.append(f"<tool_call>\n{{{inner}}}\n</tool_call>")
        expected.append(call(raw, name=name))
    assert check_every_way("\n".join(blocks), JSON, (), data) == expected


PARTS = [
    *MARKERS, "</parameter", "<parameter=", "<parameter=path>", "<function=edit>", "<function=", ">", "<", "\n", " ",
    "a", "{", "}", "[", "]", '"', ":", ",", "\\", "\\u12", "1", "-", "null", '"name": "edit"', '"arguments": ',
    '{"name": "f", ', "<tool_call>\n<function=edit>\n", "<tool_call>\n{", "é", "\x00", "\r\n", "\u2028",
]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=1_000)
@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join), st.sampled_from([XML, JSON]), st.data())
def test_any_output_is_read_and_none_of_it_invented(
    text: str, call_format: ToolCallFormat, data: st.DataObject
) -> None:
    found = check_every_way(text, call_format, (EDIT,), data)
    shown = "".join(one[1] for one in found if one[0] == "text")
    characters = iter(text)
    assert all(character in characters for character in shown)
    if not any(one[0] == "call" for one in found):
        assert shown == text


# ------------------------------------------------------------------------------------------------------- bounds of work

LONG_OUTPUTS = {
    "text": (XML, "{}", "a"),
    "line breaks": (XML, "{}", "\n"),
    "angle brackets": (XML, "{}", "<"),
    "unfinished markers": (XML, "{}", "<tool_call>\n"),
    "spaces after a marker": (XML, "<tool_call>{}", " "),
    "a string": (XML, "<tool_call><function=edit><parameter=text>{}", "a"),
    "line breaks in a string": (XML, "<tool_call><function=edit><parameter=text>{}", "\n"),
    "closers in a string": (XML, "<tool_call><function=edit><parameter=text>{}", "</parameter>"),
    "spaces after a closer": (XML, "<tool_call><function=edit><parameter=text></parameter>{}", " "),
    "an integer": (XML, "<tool_call><function=edit><parameter=line>{}", "1"),
    "text or null": (XML, "<tool_call><function=edit><parameter=note>{}", " "),
    "an array": (XML, "<tool_call><function=edit><parameter=tags>[{}]</parameter></function>", "1,"),
    "no parameter": (XML, "<tool_call><function=edit>{}", "x"),
    "parameters": (XML, "<tool_call><function=edit>{}", "<parameter=a>b</parameter>"),
    "calls": (XML, "{}", "<tool_call><function=f></function>"),
    "nothing after a call": (XML, "<tool_call><function=f></function>{}", "\n"),
    "a JSON string": (JSON, '<tool_call>{{"name": "edit", "arguments": {{"a": "{}', "a"),
    "line breaks in a JSON string": (JSON, '<tool_call>{{"name": "edit", "arguments": {{"a": "{}', "\n"),
    "a JSON number": (JSON, '<tool_call>{{"name": "edit", "arguments": {{"a": {}', "1"),
    "JSON objects": (JSON, '<tool_call>{{"name": "edit", "arguments": {}', '{"a":'),
    "arguments before the name": (JSON, '<tool_call>{{"arguments": {{"a": "{}', "a"),
    "arguments in a string": (JSON, '<tool_call>{{"name": "edit", "arguments": "{}', "a"),
    "broken JSON": (JSON, '<tool_call>{{"name": "edit", "arguments": x{}', "</tool"),
}


def work(call_format: ToolCallFormat, text: str) -> tuple[int, int]:
    """Return how many functions are called for an output that comes in single characters, and the longest buffer."""
    parser, calls, longest = ToolCallParser(call_format, [EDIT]), 0, 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event.endswith("call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for character in text:
            parser.push(character)
            longest = max(longest, len(parser._source.text))
        parser.end()
    finally:
        sys.setprofile(before)
    return calls, longest


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_OUTPUTS)
def test_work_grows_with_the_output_and_no_faster(name: str) -> None:
    call_format, frame, part = LONG_OUTPUTS[name]
    (short, _), (long, longest) = (
        work(call_format, frame.format(part * (size // len(part)))) for size in (2_000, 8_000)
    )
    assert long < 4.5 * short
    assert longest < 64 + 256


def test_a_schema_is_read_once_for_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p{number}" for number in range(20)]
    schema = json.dumps(
        {
            "$defs": {"d": {"$ref": "#/$defs/" + "%41" * 17_000}, "m": {"allOf": [{"$ref": "#/$defs/d"}] * 400}},
            "properties": {name: {"$ref": "#/$defs/m"} for name in names},
        }
    )
    read_characters = nodes = 0

    def counted_unquote(step: str) -> str:
        nonlocal read_characters
        read_characters += len(step)
        return unquote(step)

    def counted_own_types(node: Mapping[str, Any]) -> frozenset[str]:
        nonlocal nodes
        nodes += 1
        return own_types(node)

    own_types = parameter_types._own_types
    monkeypatch.setattr(parameter_types, "unquote", counted_unquote)
    monkeypatch.setattr(parameter_types, "_own_types", counted_own_types)
    text = xml("f", *((name, "1") for name in names))
    found = parse([text, text], tools=[Tool("f", parameters_json_schema=schema)])
    assert found == [call(json.dumps(dict.fromkeys(names, 1)), name="f")] * 2
    assert read_characters <= len(schema)
    assert nodes == len(names) + 400 + 2


def test_types_of_schemas_in_a_circle_do_not_depend_on_which_is_asked_for_first() -> None:
    one, two = {"type": "string", "anyOf": [{"$ref": "#/$defs/two"}]}, {"$ref": "#/$defs/one"}
    properties = {"a": {"$ref": "#/$defs/one"}, "b": {"$ref": "#/$defs/two"}}
    schema = json.dumps({"$defs": {"one": one, "two": two}, "properties": properties})
    first, second = (parameter_types.ParameterTypes(schema) for _ in range(2))
    assert [first.types_of(name) for name in "ab"] == [second.types_of(name) for name in "ba"][::-1]
    assert first.types_of("a") == parameter_types.STRING


def test_a_schema_may_hold_numbers_that_python_does_not_read() -> None:
    digits = "9" * 5_000
    schema = (
        f'{{"properties": {{"line": {{"enum": [{digits}, 1]}}, "ratio": {{"type": "number", "maximum": {digits}}}}}}}'
    )
    tools = [Tool("edit", parameters_json_schema=schema)]
    assert read(xml("edit", ("line", "1"), ("ratio", "0.5")), tools=tools) == [call('{"line": 1, "ratio": 0.5}')]


def test_a_value_of_100_000_characters_is_held_one_marker_at_a_time() -> None:
    text = xml("edit", ("text", "ab</parameter> " * 7_000))
    parser, calls = ToolCallParser(XML, [EDIT]), []
    for character in text:
        calls += [piece for piece in parser.push(character) if isinstance(piece, CallFinished)]
        assert len(parser._source.text) < 64
    assert [json.loads(one.arguments_json) for one in calls] == [{"text": "ab</parameter> " * 7_000}]
