"""Check the rules of the code: imports, stubs that match the protos, protos that Buf accepts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from penstock.server.rpc.status import _CODES
from penstock_proto.v1 import error_reason_pb2

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


def reasons_in(source: str) -> set[str]:
    """Reasons that a module gives: to a violation, or as the `reason` of an error."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name.lower().endswith("violation"):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
            case ast.Assign(targets=[ast.Name(id="reason")], value=value):
                given = [value]
            case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="reason"), *_])], value=ast.Tuple(elts=[value, *_])):
                given = [value]
            case _:
                continue
        texts = {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        found |= {text for text in texts if re.fullmatch(r"[A-Z]+(_[A-Z]+)*", text)}
    return found


@pytest.mark.slow
def test_every_reason_that_is_given_is_documented_and_every_documented_one_is_given() -> None:
    documented = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    modules = (ROOT / "service/penstock").rglob("*.py")
    given = {error.reason for error in _CODES} | {reason for path in modules for reason in reasons_in(path.read_text())}
    never_sent = {"UNSPECIFIED", "CONFIG", "REQUEST_LOST"}  # the base class, before serving, and where nobody hears it
    assert given - never_sent == documented - {"UNSPECIFIED"}


def test_every_reason_is_documented_with_an_example() -> None:
    text = (ROOT / "protos/penstock/v1/error_reason.proto").read_text()
    reasons = re.findall(r"((?:  // .*\n)+)  ERROR_REASON_(\w+) = \d+;", text)
    assert len(reasons) == len(error_reason_pb2.ErrorReason.values())
    assert all("Example: {reason: " in comment for comment, name in reasons if name != "UNSPECIFIED")
