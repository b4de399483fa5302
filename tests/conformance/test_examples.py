"""The examples run as they stand, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.tools import NODE, ROOT, build_go, build_typescript, needs_go, needs_node

EXAMPLES = ROOT / "examples"


def run(command: list[str], target: str) -> str:
    environment = os.environ | {"PENSTOCK_TARGET": target}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(name: str, said: str) -> None:
    if name == "stream":
        assert "48 and 27 are 75, 36 more are 111, and 15 more are 126.It is 126.\n" in said
    elif name == "steer":
        assert "finished_by_client: it is 126." in said.lower()
    elif name == "tools":
        call, answer, tokens = said.splitlines()
        assert call.replace("'", '"') == 'temperature {"city": "Oslo"} -> It is 21 degrees in Oslo.'
        assert answer == "It is warm: 21 degrees."
        assert int(tokens.removesuffix(" tokens of tool calls")) > 0
    else:
        assert said.count("scripted engine") == 8


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((EXAMPLES / "python").glob("*.py")), ids=lambda path: path.stem)
def test_python(example: Path, targets: dict[str, str]) -> None:
    check(example.stem, run([sys.executable, str(example)], targets["default"]))


@needs_node
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("example", sorted((EXAMPLES / "typescript").glob("*.mjs")), ids=lambda path: path.stem)
def test_typescript(example: Path, targets: dict[str, str]) -> None:
    build_typescript()
    check(example.stem, run([str(NODE), str(example)], targets["default"]))


@needs_go
@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", ["stream", "steer", "tools"])
def test_go(name: str, targets: dict[str, str]) -> None:
    check(name, run([str(build_go() / name)], targets["default"]))
