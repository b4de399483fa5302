"""mypy refuses what the Python client does not take, at its line: in an editor, before anything runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISUSE = ROOT / "tests/typing/misuse.py"


@pytest.mark.slow
def test_mypy_refuses_each_misuse_and_nothing_else(tmp_path: Path) -> None:
    expected = {
        (number, code)
        for number, line in enumerate(MISUSE.read_text().splitlines(), 1)
        for code in re.findall(r"# E: ([a-z-]+)$", line)
    }
    command = [sys.executable, "-m", "mypy", "--no-error-summary", f"--cache-dir={tmp_path}", str(MISUSE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    found = {(int(line), code) for line, code in re.findall(r":(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)}
    assert found == expected, done.stdout + done.stderr
    assert len(expected) > 55


def test_what_mypy_refuses_is_refused_when_it_runs() -> None:
    """For those who use no type checker."""
    import penstock_client as pc

    for wrong in (7, {"text": "hi"}):
        with pytest.raises(TypeError, match="prompt must be a str or a sequence of messages"):
            pc.build_spec(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean 'thinking'"):
        pc.build_spec("hi", thinkin="fast")  # type: ignore[call-arg]
