"""The examples run as they stand, against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import test_go, test_typescript
from tests.conformance.drivers import ROOT

EXAMPLES = ROOT / "examples"


def run(command: list[str], target: str) -> str:
    environment = os.environ | {"PENSTOCK_TARGET": target}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(name: str, said: str) -> None:
    if name == "stream":
        assert "17 and 25 are 42, and 8 more are 50.It is 50.\n" in said
    elif name == "steer":
        assert "finished_by_client: it is 50." in said.lower()
    else:
        assert said.count("scripted engine") == 8


@pytest.mark.parametrize("example", sorted((EXAMPLES / "python").glob("*.py")), ids=lambda path: path.stem)
def test_python(example: Path, targets: dict[str, str]) -> None:
    check(example.stem, run([sys.executable, str(example)], targets["default"]))


@pytest.fixture(scope="module")
def node() -> str:
    for reason in [mark.kwargs["reason"] for mark in test_typescript.pytestmark if mark.args[0]]:
        pytest.skip(reason)
    test_typescript.build()
    return str(shutil.which("node"))


@pytest.mark.parametrize("example", sorted((EXAMPLES / "typescript").glob("*.mjs")), ids=lambda path: path.stem)
def test_typescript_examples(example: Path, node: str, targets: dict[str, str]) -> None:
    check(example.stem, run([node, str(example)], targets["default"]))


@pytest.mark.parametrize("name", ["stream", "steer"])
def test_go_examples(name: str, targets: dict[str, str]) -> None:
    if test_go.pytestmark.args[0]:
        pytest.skip(test_go.pytestmark.kwargs["reason"])
    check(name, run([str(test_go.build().parent / name)], targets["default"]))
