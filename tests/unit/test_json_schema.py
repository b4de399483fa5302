"""Test that accepted JSON schemas are enforced: random texts of the compiled grammars are validated."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from penstock.engine.vllm.constraints import json_schema
from penstock.engine.vllm.constraints.json_schema import RefusedSchemaError, rewritten

from tests.tooling import json_schema_suite
from tests.unit import pydantic_models
from tests.unit.grammar_walks import accepts, compiled_schema, walks

DATA = Path(__file__).parents[1] / "data"
BOOL = {"type": "boolean"}


def suite() -> Iterator[tuple[str, Any]]:
    place = json_schema_suite()
    assert place is not None
    for path in sorted(place.glob("*.json")):
        for case in json.loads(path.read_text()):
            yield f"{path.stem}: {case['description']}", case["schema"]


def written_by_tools() -> Iterator[tuple[str, Any]]:
    for tool in ("zod", "openai_strict"):
        for name, schema in json.loads((DATA / "schemas" / f"{tool}.json").read_text()).items():
            yield f"{tool}: {name}", schema
    for name, schema in pydantic_models.schemas():
        yield f"pydantic: {name}", schema


def broken(schema: Any, count: int) -> list[str]:
    """Texts of the compiled grammar that the schema does not allow. At least one text must end."""
    texts = walks(compiled_schema(rewritten(json.dumps(schema))), count)
    assert texts
    validator = jsonschema.Draft202012Validator(schema)
    return [text for text in texts if not validator.is_valid(json.loads(text))]


def walk_all(count: int) -> tuple[Counter[str], int, list[str]]:
    """Refusals by keyword, the number of accepted schemas, and what breaks."""
    refused: Counter[str] = Counter()
    accepted, wrong = 0, []
    for name, schema in suite():
        try:
            rewritten(json.dumps(schema))
        except RefusedSchemaError as error:
            refused[error.keyword] += 1
            continue
        accepted += 1
        wrong += [f"{name}: {text[:100]!r}" for text in broken(schema, count)]
    return refused, accepted, wrong


@pytest.mark.needs("json-schema-suite")
def test_what_is_accepted_of_the_public_suite_is_kept() -> None:
    refused, accepted, wrong = walk_all(6)
    assert wrong == []
    print(accepted, refused)
    assert accepted >= 196, "a floor: 196 of 383 were accepted on 2026-11-28"
    page = (DATA.parents[1] / "docs/how-to/structured-output.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\S+)` \| (\d+) \|", page, re.M)
    assert {keyword: int(count) for keyword, count in documented} == dict(refused)


@pytest.mark.needs("json-schema-suite")
@pytest.mark.full
def test_what_is_accepted_of_the_public_suite_is_kept_in_long_walks() -> None:
    assert walk_all(200)[2] == []


def test_schemas_as_tools_write_them_are_accepted_and_kept() -> None:
    cases = list(written_by_tools())
    assert len(cases) >= 60
    wrong = []
    for name, schema in cases:
        try:
            wrong += [f"{name}: {text[:100]!r}" for text in broken(schema, 10)]
        except RefusedSchemaError as error:
            wrong.append(f"{name}: {error}")
    assert wrong == []


REFUSED = [
    ({"type": "object", "properties": {"a": BOOL}, "not": {"required": ["a"]}}, "not", "/not"),
    ({"type": "integer", "minimum": 1, "maximum": 2, "not": {"const": 1}}, "not", "/not"),
    ({"multipleOf": 7, "minimum": 1, "maximum": 50}, "multipleOf", "/multipleOf"),
    ({"items": {"enum": [1, 2]}, "uniqueItems": True}, "uniqueItems", "/uniqueItems"),
    ({"$ref": "https://example.com/s.json"}, "$ref", "/$ref"),
    ({"properties": {"a/b": {"type": "array", "contains": {}}}}, "contains", "/properties/a~1b/contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", "/dependentRequired"),
    ({"type": "string", "pattern": "(?=a)b"}, "pattern", "/pattern"),
    ({"type": "string", "pattern": "a+", "maxLength": 3}, "maxLength", "/maxLength"),
    ({"anyOf": [{"type": "string"}, False]}, "false", "/anyOf/1"),
    ({"enum": ["a", 2**60]}, "enum", "/enum"),
    ({"$ref": "#"}, "$ref", "/$ref"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "$ref", "/$ref"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf", "/oneOf/1"),
    ({"type": "nothing"}, "type", "/type"),
    ({"type": "object", "patternProperties": {"^a": BOOL, "b$": BOOL}}, "patternProperties", "/patternProperties"),
    # What a part of another schema asserts is read twice, and means the same both times.
    ({"type": "object", "allOf": [{"if": {"required": ["a"]}, "then": {"required": ["b"]}}]}, "if", "/if"),
    ({"oneOf": [{"type": "null", "if": {}, "else": False}, {"type": "string"}]}, "if", "/oneOf/0/if"),
    ({"$defs": {"a": {"if": {"type": "null"}, "then": False}}, "$ref": "#/$defs/a", "minimum": 1}, "if", "/if"),
    ({"anyOf": [{"if": {"const": 1}, "then": False}], "type": "integer"}, "if", "/anyOf/0/if"),
    # References in it would be to its own definitions.
    ({"allOf": [{"$id": "http://a/", "items": {"$ref": "#/$defs/n"}}], "$defs": {"n": BOOL}}, "$id", "/allOf/0/$id"),
    (
        {"$defs": {"a": {"$id": "http://a/", "$defs": {"b": BOOL}}}, "items": {"$ref": "#/$defs/a/$defs/b"}},
        "$ref",
        "/items/$ref",
    ),
    # The compiler's own counts begin again at 2^32.
    ({"type": "string", "minLength": 2**32 + 1}, "minLength", "/minLength"),
    ({"type": "array", "minItems": 2**32 + 1}, "minItems", "/minItems"),
    ({"type": "object", "minProperties": 2**32 + 1}, "minProperties", "/minProperties"),
]


@pytest.mark.parametrize(("schema", "keyword", "pointer"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_keyword_and_pointer(schema: Any, keyword: str, pointer: str) -> None:
    with pytest.raises(RefusedSchemaError) as raised:
        rewritten(json.dumps(schema))
    assert (raised.value.keyword, raised.value.pointer) == (keyword, pointer)
    assert keyword in str(raised.value)
    assert pointer in str(raised.value)


KEPT = [
    {"type": "object", "required": ["a"]},
    {"type": "object", "properties": {"a": BOOL}, "required": ["b"]},
    {
        "type": "object",
        "properties": {"a": BOOL},
        "required": ["a"],
        "anyOf": [{"required": ["b"]}, {"required": ["c"]}],
    },
    {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 5, "maximum": 6},
    {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "title": "a number", "description": "x", "x-mine": 1},
    {"allOf": [{"type": "string"}, {"maxLength": 3}]},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": '^["\\\\\\n]x$'},
    {"type": "number", "multipleOf": 1, "exclusiveMinimum": 1.5, "maximum": 3},
    {"type": ["string", "integer"], "enum": [1, "a", None, 2.5]},
    {"enum": ['a"b\\c\n', {"a": [1, None]}, "é☃𝄞"]},
    {"minLength": 2, "minimum": 3},
    {"type": "array", "prefixItems": [BOOL], "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
    {"type": "object", "propertyNames": {"maxLength": 2}},
    {"oneOf": [{"type": "string", "maxLength": 1}, {"type": "integer"}]},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": "array", "items": BOOL, "minItems": 2, "maxItems": 2**63},
    {"type": "object", "properties": {"a": BOOL}, "additionalProperties": BOOL, "maxProperties": 2**64},
]


@pytest.mark.parametrize("schema", KEPT)
def test_combinations_that_the_compiler_ignores_are_kept(schema: Any) -> None:
    assert broken(schema, 20) == []


def test_a_bound_beyond_all_answers_is_none() -> None:
    assert rewritten('{"type": "string", "maxLength": 4294967297}') == rewritten('{"type": "string"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 1},
        {"type": "string", "pattern": "^.{1}$"},
        {"type": "string", "pattern": r"^[\u0020-\uffff]$"},
        {"type": "string", "pattern": r"^[^a]$"},
        {"type": "object", "propertyNames": {"maxLength": 1}},
    ],
)
def test_a_character_that_is_counted_is_spelled_in_one_way(schema: Any) -> None:
    """Tokens may be single bytes: what is no UTF-8 would be several replacement characters to its reader."""
    grammar = compiled_schema(rewritten(json.dumps(schema)))
    before, after = ('{"', '":1}') if schema["type"] == "object" else ('"', '"')
    for spelling in (b"\xc3\xa9", b"\xe2\x82\xac", b"\xef\xbf\xbf", "é".encode()):
        assert accepts(grammar, before.encode() + spelling + after.encode())
    for spelling in (
        b"\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xc3",
    ):
        assert not accepts(grammar, before.encode() + spelling + after.encode()), spelling


def test_an_object_is_never_answered_with_a_number() -> None:
    schema = {"type": "object", "properties": {"a": BOOL}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert all(isinstance(json.loads(text), dict) for text in walks(compiled_schema(rewritten(json.dumps(schema))), 20))


def test_merges_that_lead_to_themselves_end() -> None:
    schema = {"$defs": {"a": {"properties": {"x": {"$ref": "#/$defs/a", "minProperties": 1}}}}, "$ref": "#/$defs/a"}
    with pytest.raises(RefusedSchemaError):
        rewritten(json.dumps(schema))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"type": 3}', '{"properties": []}', '{"type": [["a"]]}', "{", '{"enum": 1}']
)
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        rewritten(text)


def test_formats_that_are_enforced_are_kept() -> None:
    checks = {
        "date": r"\d{4}-\d\d-\d\d",
        "time": r"\d\d:\d\d:\d\d.*",
        "date-time": r"\d{4}-\d\d-\d\dT.*",
        "duration": r"P.+",
        "ipv4": r"(\d{1,3}\.){3}\d{1,3}",
        "ipv6": r"[0-9A-Fa-f:.%a-z]+",
        "uuid": r"[0-9A-Fa-f-]{36}",
    }
    for name, pattern in checks.items():
        texts = walks(compiled_schema(rewritten(json.dumps({"type": "string", "format": name}))), 20)
        assert texts
        assert all(re.fullmatch(pattern, json.loads(text)) for text in texts), texts


def tagged(count: int) -> list[dict[str, Any]]:
    return [
        {"type": "object", "properties": {"kind": {"const": n}, "x": {"type": "string"}}, "required": ["kind"]}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [{"const": n} for n in range(4000)],
        [{"enum": [f"a{n}" for n in range(3000)]}, {"enum": [f"b{n}" for n in range(3000)]}],
        [{"enum": [[n] * 30 for n in range(250)]}, {"enum": [[n] * 30 for n in range(250, 500)]}],
        tagged(550),
    ],
    ids=["parts", "values", "lists", "objects"],
)
def test_alternatives_that_take_long_to_compare_are_refused_soon(
    parts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    equal = json_schema._equal

    def counting(one: Any, other: Any) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, other)

    monkeypatch.setattr(json_schema, "_equal", counting)
    schema = json.dumps({"oneOf": parts}, separators=(",", ":"))
    assert len(schema) < 1 << 16
    with pytest.raises(RefusedSchemaError, match="its alternatives compared"):
        rewritten(schema)
    assert compared < 400_000  # all of them are millions


def test_a_hundred_tagged_alternatives_are_taken() -> None:
    assert len(json.loads(rewritten(json.dumps({"oneOf": tagged(100)})))["anyOf"]) == 100
