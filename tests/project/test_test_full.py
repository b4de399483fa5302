"""The report of `make test-full` has what tests recorded: how many requests, by which seed, and the restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.script_modules import ROOT, load

TESTS = """
def test_that_records(record_property):
    record_property("requests", 2500)
    record_property("engine_restarts", 0)

def test_that_does_not():
    pass
"""


@pytest.mark.slow
def test_what_a_test_recorded_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    (tmp_path / "test_some.py").write_text(TESTS)
    # By the project's own settings, which make warnings errors.
    part = load("test-full").run(["-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", str(tmp_path)])
    assert part["counts"] == {"passed": 2}
    (recorded,) = part["recorded"].items()
    assert recorded[0].endswith("::test_that_records")
    assert recorded[1] == {"requests": "2500", "engine_restarts": "0"}
