"""Each line of docs/reference/threat-model.md names tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/threat-model.md"
ROWS = re.findall(r"^\| (\d+) \| ([ACNS]) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)


def test_lines_are_numbered_and_each_has_a_test() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 30
    assert all(re.search(r"`test_\w+\.py::test_\w+`", held) for *_, held in ROWS)


def test_the_tests_that_are_named_exist() -> None:
    there = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named = {name for *_, held in ROWS for name in re.findall(r"`(test_\w+\.py::test_\w+)`", held)}
    assert named - there == set()
