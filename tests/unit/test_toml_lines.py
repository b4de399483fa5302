"""The line of each key of a TOML file, whatever stands around it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from penstock.config.file import read
from penstock.config.toml_lines import KeyPath, toml_lines

TEXT = '''\
# a comment
title = "x"

[engine]  # another
mtp = "on"
"quoted.key" = 1
a.b.c = 3
message = """
not = "a key"
[nor a header]
"""
list = [
  1,
  { k = 2 },
]
[[tiers]]
inputs = 1

  [tiers.sub]
  z = 1
[[tiers]]
inputs = 2
[deep.er]
q = 1
[engine.extra]
r = 1
[deep]
s = 2
'''
LINES: dict[KeyPath, int] = {
    ("title",): 2,
    ("engine",): 4,
    ("engine", "mtp"): 5,
    ("engine", "quoted.key"): 6,
    ("engine", "a"): 7,
    ("engine", "a", "b"): 7,
    ("engine", "a", "b", "c"): 7,
    ("engine", "message"): 8,
    ("engine", "list"): 12,
    ("tiers",): 16,
    ("tiers", 0): 16,
    ("tiers", 0, "inputs"): 17,
    ("tiers", 0, "sub"): 19,
    ("tiers", 0, "sub", "z"): 20,
    ("tiers", 1): 21,
    ("tiers", 1, "inputs"): 22,
    ("deep", "er"): 23,
    ("deep", "er", "q"): 24,
    ("engine", "extra"): 25,
    ("engine", "extra", "r"): 26,
    ("deep",): 27,
    ("deep", "s"): 28,
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_should_count_what_stands_between_keys(end: str) -> None:
    text = TEXT.replace("\n", end)
    assert toml_lines(text) == LINES


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
VALUES = st.integers(-9, 9) | st.booleans() | st.text(st.sampled_from("ab\n\"'\\#[=] "), max_size=12)
TABLES = st.recursive(
    VALUES, lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(VALUES, max_size=3), max_leaves=8
)


@given(st.dictionaries(KEYS, TABLES, max_size=4), st.integers(0, 3))
def test_should_know_every_key_and_keep_to_the_text(values: dict[str, Any], blank: int) -> None:
    text = "\n" * blank + tomlkit.dumps(values)
    found = toml_lines(text)
    rows = text.split("\n")
    assert set(_paths(tomllib.loads(text), ())) == set(found)
    for path, line in found.items():
        assert tomlkit.key(str(path[-1])).as_string() in rows[line - 1], (path, line, text)


def test_should_know_no_lines_where_tomlkit_moves_a_table() -> None:
    """tomlkit puts tables of one array together that stand apart. A wrong line would be worse than none."""
    assert toml_lines("[[a]]\nx = 1\n[b]\ny = 2\n[[a]]\nx = 3\n") == {}


def _paths(values: dict[str, Any], above: KeyPath) -> Iterator[KeyPath]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def test_should_tell_the_line_in_the_words_of_an_error(tmp_path: Any) -> None:
    file = tmp_path / "a.toml"
    file.write_text(TEXT)
    values = read(file)
    assert values.where(("engine", "message")) == f"{file}, line 8"
    assert values.where(("tiers", 1, "inputs", "deeper")) == f"{file}, line 22"
