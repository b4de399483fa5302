"""Test that accepted JSON schemas are enforced: random texts of the compiled grammars are validated."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import json
import random
import re
import uuid
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


def named_in(schema: Any) -> set[str]:
    """Names of properties anywhere in a schema."""
    if isinstance(schema, list):
        return set().union(*map(named_in, schema))
    if not isinstance(schema, dict):
        return set()
    own = [schema.get("properties"), schema.get("required")]
    found = {name for names in own if isinstance(names, dict | list) for name in names if isinstance(name, str)}
    return found.union(*map(named_in, schema.values()))


def spellings(name: str) -> set[str]:
    """Other ways to write a name in JSON: each with one character, or all of them, escaped."""

    def escaped(text: str, digits: str) -> str:
        units = text.encode("utf-16-be", errors="surrogatepass")
        return "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):{digits}}" for at in range(0, len(units), 2))

    plain = [json.dumps(character, ensure_ascii=False)[1:-1] for character in name]
    found = {"".join(plain).replace("/", "\\/"), json.dumps(name)[1:-1]}
    for digits in ("04x", "04X"):
        every = [escaped(character, digits) for character in name]
        found.add("".join(every))
        found |= {"".join([*plain[:at], one, *plain[at + 1 :]]) for at, one in enumerate(every)}
    return found - {"".join(plain)}


def broken(schema: Any, count: int) -> list[str]:
    """Texts of the compiled grammar that the schema does not allow. At least one text must end."""
    names = [other for name in sorted(named_in(schema))[:8] for other in spellings(name)]
    texts = walks(
        compiled_schema(rewritten(json.dumps(schema))), count, endings=[f'"{name}":'.encode() for name in names]
    )
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


@pytest.mark.slow
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
    *(
        ({"$ref": f"#/anyOf/{place}", "anyOf": [BOOL]}, "$ref", "/allOf/0/$ref")
        for place in ("1", "00", "\u0660", "9" * 5000)
    ),
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
    # 1 and true are equal in Python, not in JSON.
    ({"allOf": [{"const": 1}, {"const": True}]}, "allOf", "/allOf"),
    ({"$defs": {"n": {"enum": [0]}}, "$ref": "#/$defs/n", "enum": [False]}, "allOf", "/allOf"),
    (
        {"allOf": [{"properties": {"a": {"const": 0}}}, {"properties": {"a": {"const": False}}}], "type": "object"},
        "allOf",
        "/allOf",
    ),
    (
        {"properties": {"a": {"const": [1], "$ref": "#/$defs/n"}}, "$defs": {"n": {"const": [True]}}},
        "allOf",
        "/properties/a/allOf",
    ),
    ({"type": "object", "propertyNames": 1}, "propertyNames", "/propertyNames"),
    ({"type": "array", "contains": {}, "minContains": False}, "contains", "/contains"),
    ({"type": "object", "required": [1]}, "required", "/required"),
    ({"type": "object", "properties": {"\ud800": BOOL}}, "properties", "/properties"),
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


OPEN = [
    {"type": "object", "properties": {"a": BOOL}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": BOOL}, "required": ["a"], "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": BOOL}, "required": ["b"], "additionalProperties": {"type": "integer"}},
    {"type": "object", "required": ["a", 'é/"\n'], "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": BOOL, "ab": BOOL, "é": BOOL, "𝄞": BOOL}, "additionalProperties": True},
    {"type": "object", "properties": {"a/b": BOOL, 'q"': BOOL, "\n": BOOL}, "unevaluatedProperties": {"type": "null"}},
    {"type": "object", "properties": {"": BOOL, "<x": BOOL}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": BOOL, "b": BOOL}, "additionalProperties": BOOL, "maxProperties": 2},
    {"type": "object", "properties": {"n" * 300: BOOL, "m" * 70: BOOL}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {f"name_{n}": BOOL for n in range(200)}, "additionalProperties": {"type": "null"}},
]


@pytest.mark.slow
@pytest.mark.parametrize("schema", OPEN)
def test_additional_properties_are_none_of_the_named_ones(schema: Any) -> None:
    assert broken(schema, 60) == []
    other = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
    grammar = compiled_schema(rewritten(json.dumps(schema)))
    needed = "".join(f"{json.dumps(name, ensure_ascii=False)}:5," for name in schema.get("required", ()))
    needed = "" if other is True else needed.replace('"a":5', '"a":true') if "properties" in schema else needed
    value = "true" if other == BOOL else "null" if other == {"type": "null"} else "5"
    for begins in {"", needed}:
        for name in named_in(schema):
            for spelled in spellings(name) | {json.dumps(name, ensure_ascii=False)[1:-1]}:
                text = f'{{{begins}"{spelled}":{value}}}'
                if accepts(grammar, text.encode()):
                    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
                    assert not begins or text.count(json.dumps(name, ensure_ascii=False)) <= 1
    if "required" not in schema:
        assert accepts(grammar, f'{{"x-other":{value}}}'.encode()), "other names are allowed"


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


def is_format(name: str, text: str) -> bool:
    """Whether a text has a format, by the standard library or else by the standard's own grammar."""
    try:
        match name:
            case "date":
                return datetime.date.fromisoformat(text).isoformat() == text
            case "time":
                return bool(datetime.time.fromisoformat(text).tzinfo)
            case "date-time":
                return bool(datetime.datetime.fromisoformat(text).tzinfo) and text[10] == "T"
            case "ipv4":
                return str(ipaddress.IPv4Address(text)) == text
            case "ipv6":
                return bool(ipaddress.IPv6Address(text)) and "%" not in text
            case "uuid":
                return str(uuid.UUID(text)) == text
    except ValueError:
        return False
    assert name == "duration"
    clock = r"T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S)"
    days = r"(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)"
    return re.fullmatch(rf"P(\d+W|{days}({clock})?|{clock})", text) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", json_schema.FORMATS)
def test_formats_that_are_enforced_are_kept(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": name}}, "required": ["a"]}
    for one in (schema, schema["properties"]["a"]):  # type: ignore[index]
        texts = walks(compiled_schema(rewritten(json.dumps(one))), 400)
        assert len(texts) > 300
        values = [json.loads(text) for text in texts]
        wrong = [value for value in values if not is_format(name, value["a"] if isinstance(value, dict) else value)]
        assert wrong == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31", "2026-04-30"]),
        ("time", ["23:59:59Z", "00:00:00.123+05:30"]),
        ("date-time", ["2026-11-30T03:50:00Z", "2026-11-30T03:50:00.5-08:00"]),
        ("duration", ["PT1H30M", "P1Y2M3DT4H5M6S", "P4W", "PT20S", "P1M"]),
        ("ipv4", ["127.0.0.1", "255.255.255.255", "0.0.0.0"]),
        ("ipv6", ["::", "::1", "fe80::", "2001:db8::1:2", "1:2:3:4:5:6:7:8", "::ffff:192.0.2.1"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"]),
    ],
)
def test_usual_values_of_formats_are_allowed(name: str, values: list[str]) -> None:
    grammar = compiled_schema(rewritten(json.dumps({"type": "string", "format": name})))
    for value in values:
        assert is_format(name, value)
        assert accepts(grammar, f'"{value}"'.encode()), value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("date", ["2023-02-29", "1900-02-29", "2026-04-31", "2026-00-10", "2026-13-01"]),
        ("time", ["24:00:00Z", "10:00:60Z", "10:00:00", "10:00:001Z"]),
        ("duration", ["P", "PT", "P1H", "P1YT"]),
        ("ipv4", ["041.79.101.9", "256.0.0.1", "1.2.3"]),
        ("ipv6", ["1:2:3:4:5:6:7", "1::2::3", "::9.0.1.09", "1:2:3:4:5:6:7:8:9"]),
    ],
)
def test_wrong_values_of_formats_are_not_allowed(name: str, values: list[str]) -> None:
    grammar = compiled_schema(rewritten(json.dumps({"type": "string", "format": name})))
    assert [value for value in values if accepts(grammar, f'"{value}"'.encode())] == []


def pattern_of(draw: random.Random, depth: int) -> str:
    """A random regular expression over a and b."""
    kind = draw.random()
    if depth == 0 or kind < 0.3:
        return draw.choice(("a", "b", "[ab]", "ab"))
    if kind < 0.5:
        return f"({pattern_of(draw, depth - 1)}|{draw.choice((pattern_of(draw, depth - 1), ''))})"
    if kind < 0.7:
        return pattern_of(draw, depth - 1) + pattern_of(draw, depth - 1)
    bounds = draw.choice(("?", "*", "+", "{2}", "{0,2}", "{1,2}", "{2,3}", "{2,}"))
    return f"({pattern_of(draw, depth - 1)}){bounds}"


JOINED = ["(ab+)?", "((a){2,3})?", "((ab){2,}|a){2,}", "a((a){0,2}|a)", "(a+([ab]|[ab]))?", "(a|a)(a|)|a"]


def test_a_pattern_allows_what_it_matches_and_nothing_else() -> None:
    draw = random.Random(0)
    drawn = {pattern for _ in range(600) if len(pattern := pattern_of(draw, 3)) < 24}
    texts = ["".join(letters) for length in range(6) for letters in itertools.product("ab", repeat=length)]
    wrong = []
    for pattern in [*JOINED, *sorted(drawn)]:
        string = {"type": "string", "pattern": f"^({pattern})$"}
        names = {"type": "object", "patternProperties": {f"^({pattern})$": BOOL}}
        matches = {text for text in texts if re.fullmatch(pattern, text)}
        grammar = compiled_schema(rewritten(json.dumps(string)))
        allowed = {text for text in texts if accepts(grammar, f'"{text}"'.encode())}
        wrong += [(pattern, text) for text in allowed ^ matches]
        if pattern in JOINED:
            grammar = compiled_schema(rewritten(json.dumps(names)))
            wrong += [(pattern, t) for t in texts if accepts(grammar, f'{{"{t}":true}}'.encode()) != (t in matches)]
    assert wrong == []


CONSTANTS = [0, 1, False, True, 1.0, 0.0, None, "1", "", [], [1], [True], {"a": 1}, {"a": True}]


def test_constants_of_python_that_are_equal_are_told_apart() -> None:
    for one, other in itertools.product(CONSTANTS, repeat=2):
        for schema in (
            {"allOf": [{"const": one}, {"const": other}]},
            {"oneOf": [{"const": one}, {"const": other}]},
            {"$ref": "#/$defs/n", "enum": [one], "$defs": {"n": {"enum": [other]}}},
            {"allOf": [{"properties": {"a": {"const": one}}}, {"properties": {"a": {"const": other}}}]},
        ):
            try:
                assert broken(schema, 4) == [], schema
            except RefusedSchemaError:
                continue


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
