"""Each threat of docs/reference/threat-model.md has tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/threat-model.md").read_text(encoding="utf-8")
THREATS = [int(number) for number, _ in re.findall(r"^\| (\d+) \| ([ACNS]) \| .+ \|$", PAGE, re.M)]
TESTS = [(int(number), held) for number, held in re.findall(r"^\| (\d+) \| `(test\S+)` \|$", PAGE, re.M)]


def test_threats_are_numbered_and_each_has_a_test() -> None:
    assert list(range(1, len(THREATS) + 1)) == THREATS
    assert len(THREATS) >= 30
    named = [number for number, held in TESTS if re.fullmatch(r"test_\w+\.py::test_\w+", held)]
    assert set(named) == set(THREATS)
    assert [number for number, _ in TESTS] == sorted(number for number, _ in TESTS)


def test_the_tests_that_are_named_exist() -> None:
    there = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    files = {f"tests/{path.relative_to(ROOT / 'tests')}" for path in (ROOT / "tests").rglob("test_*.py")}
    assert {held for _, held in TESTS} - there - files == set()


def test_no_line_holds_several_tests() -> None:
    assert max(len(line) for line in PAGE.splitlines()) <= 160
