"""The house keeps its own laws: who imports whom, stubs that are what the protos say, protos that Buf likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from penstock.status import _CODES
from penstock_client.v1 import error_reason_pb2

from tests.tooling import program

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100)


def test_the_import_law_holds() -> None:
    result = run(str(Path(sys.executable).parent / "lint-imports"))
    assert result.returncode == 0, result.stdout


def test_the_stubs_are_what_the_protos_say() -> None:
    result = run(sys.executable, "scripts/protos", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.needs("buf")
def test_buf_finds_nothing_in_the_protos() -> None:
    for command in (("lint",), ("format", "--diff", "--exit-code")):
        result = run(program("buf"), *command, cwd=ROOT / "protos")
        assert result.returncode == 0, result.stdout


def test_every_error_has_a_documented_reason() -> None:
    documented = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {error.reason for error in _CODES} <= documented
    source = (ROOT / "service/penstock").glob("*.py")
    used = {reason for path in source for reason in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"\)', path.read_text())}
    assert {reason for reason in used if reason in documented} >= {"CONFLICTING_FIELDS", "LIMIT_EXCEEDED"}


def test_every_reason_is_documented_with_an_example() -> None:
    text = (ROOT / "protos/penstock/v1/error_reason.proto").read_text()
    reasons = re.findall(r"((?:  // .*\n)+)  ERROR_REASON_(\w+) = \d+;", text)
    assert len(reasons) == len(error_reason_pb2.ErrorReason.values())
    assert all("Example: {reason: " in comment for comment, name in reasons if name != "UNSPECIFIED")
