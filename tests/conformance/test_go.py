"""All cases through the Go client, by its driver, built with Debian's Go and gRPC."""

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

CLIENT = CLIENTS / "go"
CASES = load_cases()
_DEBIAN = Path("/usr/share/gocode/src/google.golang.org")
pytestmark = pytest.mark.skipif(
    shutil.which("go") is None or not (_DEBIAN / "grpc").exists() or not (_DEBIAN / "protobuf").exists(),
    reason="needs Go and its gRPC: apt install golang-go golang-google-grpc-dev golang-google-protobuf-dev",
)


def build() -> Path:
    """Compiles, if anything changed since the last time; the driver's path."""
    done = subprocess.run(
        ["make", "vet", "build"], cwd=CLIENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return CLIENT / ".gopath/bin/conformance"


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_driver([str(build())], CLIENT, targets, CASES, tmp_path_factory.mktemp("go"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.timeout(400)
def test_case(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


@pytest.mark.skipif(shutil.which("protoc-gen-go-grpc") is None, reason="needs protoc-gen-go-grpc")
def test_the_stubs_are_what_the_protos_say() -> None:
    check = subprocess.run(
        [sys.executable, "scripts/protos-go", "--check"],
        cwd=CLIENTS.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert check.returncode == 0, check.stderr
