"""Constraints that were made to hurt: slow to compile, slow at every token, deep, or large. Data."""

from __future__ import annotations

import json
from dataclasses import dataclass

from penstock.types import StructuredKind, StructuredOutput


@dataclass(frozen=True)
class Bomb:
    """`what` says how it hurts whoever takes it: figures are of the demo model's vocabulary of 512."""

    name: str
    what: str
    constraint: StructuredOutput


def _regex(name: str, what: str, spec: str) -> Bomb:
    return Bomb(name, what, StructuredOutput(StructuredKind.REGEX, spec))


def _schema(name: str, what: str, schema: object) -> Bomb:
    return Bomb(name, what, StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema)))


def _grammar(name: str, what: str, spec: str) -> Bomb:
    return Bomb(name, what, StructuredOutput(StructuredKind.GRAMMAR, spec))


def _deep(levels: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


_THRICE = "((a{1,100}){1,100}){1,100}"

REFUSED_BY_TEXT = (
    _regex("counts of counts", "compiles in 10 ms, then 240 ms per token", _THRICE),
    _regex("six counts deep", "1.6 s per token after 22 tokens", "(" * 5 + "a" + "{1,30})" * 5 + "{1,30}"),
    _grammar("counts in a rule", "1.7 s per token after 11 tokens", 'root ::= ((("a"{0,99}){0,99}){0,99}){0,99}'),
    _schema("a pattern in a schema", "as the pattern", {"type": "string", "pattern": _THRICE}),
    _schema("a pattern of names", "as the pattern", {"type": "object", "patternProperties": {_THRICE: {}}}),
    _schema("deep", "compilers recurse", _deep(200)),
    Bomb("brackets", "parsers recurse", StructuredOutput(StructuredKind.JSON_SCHEMA, "[" * 60_000)),
)

REFUSED_BY_TRIAL = (
    _regex("plus of plus", "ways to match multiply", "((a+)+)+b"),
    _regex("optional, then not", "800 MB, minutes to compile", "a?" * 10_000 + "a" * 10_000),
    _schema("names", "minutes to compile", {"type": "object", "properties": {f"p{n}": {} for n in range(1500)}}),
    _grammar("ambiguous", "60 ms per token after 300 tokens", 'root ::= root root | "a" | ""'),
    _grammar("counts by rules", "as counts of counts", 'root ::= b{1,100}\nb ::= c{1,100}\nc ::= "a"{1,100}'),
)

HARMLESS = (
    StructuredOutput(StructuredKind.REGEX, r"(\d{1,3}\.){3}\d{1,3}"),
    StructuredOutput(StructuredKind.REGEX, r"[a-z]{0,1000000}"),
    StructuredOutput(StructuredKind.GRAMMAR, 'root ::= "x" | "(" root ")"'),
    StructuredOutput(StructuredKind.CHOICE, choices=("yes", 'no "really"')),
    StructuredOutput(
        StructuredKind.JSON_SCHEMA,
        json.dumps(
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 100},
                    "age": {"type": "integer", "minimum": 0},
                    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 8},
                    "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                },
                "required": ["name"],
            }
        ),
    ),
)
