"""All cases through the TypeScript client, by its driver. `make clients` sets up what it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.drivers import CLIENTS, run_driver
from tests.conformance.harness import load_cases
from tests.conformance.judge import judge

CLIENT = CLIENTS / "typescript"
TSC = CLIENT / "node_modules/typescript/bin/tsc"
NODE = shutil.which("node")
CASES = load_cases()
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs Node 20 or newer: install it, then `make clients`"),
    pytest.mark.skipif(not TSC.exists(), reason="needs its packages from npm: `make clients`"),
]


def build() -> Path:
    """Compiles, if anything changed since the last time."""
    assert NODE
    done = subprocess.run([NODE, str(TSC)], cwd=CLIENT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    return CLIENT


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    assert NODE
    return run_driver([NODE, "test/conformance.mjs"], build(), targets, CASES, tmp_path_factory.mktemp("typescript"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


def test_the_messages_are_what_the_protos_say() -> None:
    check = subprocess.run(
        [sys.executable, "scripts/protos-typescript", "--check"],
        cwd=CLIENTS.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert check.returncode == 0, check.stderr
