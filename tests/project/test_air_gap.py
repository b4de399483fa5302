"""A bundle of the CPU lock, carried into an empty environment without a network, answers `make demo`'s questions."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.cli.demo import ASKED

ROOT = Path(__file__).parents[2]
PYTHON = getattr(sys, "_base_executable", sys.executable)
pytestmark = [
    pytest.mark.full,
    pytest.mark.engine,
    pytest.mark.needs("helm", "audit", "unshare", "ip"),
    pytest.mark.timeout(3600),
]
NO_NETWORK = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a command with a loopback interface alone. vLLM's processes talk to each other over it."""


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundle's folder at another place; where it was made is gone."""
    folder = tmp_path_factory.mktemp("air-gap")
    made = folder / "made"
    command = [sys.executable, str(ROOT / "scripts/bundle"), "make", f"--to={made}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    program, said = (line.rpartition(" ")[2] for line in done.stdout.splitlines()[-2:])
    assert program == hashlib.sha256((made / "bundle.pyz").read_bytes()).hexdigest()
    made.rename(folder / "bundle")
    shutil.rmtree(folder / "made.work")
    (folder / "sha256").write_text(said)
    yield folder
    shutil.rmtree(folder)


def without_network(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty environment: no variables, no home, no interface but loopback."""
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(folder / "home")}
    (folder / "home").mkdir(exist_ok=True)
    whole = [*NO_NETWORK, *command]
    return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1500)


def test_a_bundle_is_opened_and_answers_without_a_network(carried: Path) -> None:
    reach = "import socket; socket.create_connection(('192.0.2.1', 443), 5)"
    assert "Network is unreachable" in without_network(carried, PYTHON, "-c", reach).stderr

    program = [PYTHON, "-S", "-I", "bundle/bundle.pyz"]
    done = without_network(carried, *program, "open", "--sha256", (carried / "sha256").read_text())
    assert done.returncode == 0, done.stderr[-3000:]

    manifest = json.loads((carried / "penstock/manifest.json").read_text())
    bill = json.loads((carried / "penstock/sbom.cdx.json").read_text())
    assert {one["name"] for one in manifest["packages"]} == {one["name"] for one in bill["components"]}
    assert {"pytest", "triton"} <= {one["name"] for one in manifest["left_out"]}
    assert manifest["images"] == ["penstock:0.1.0-cpu"]
    assert max(one["size"] for one in manifest["slices"]) == 48 << 20

    done = without_network(carried, *program, "check")
    assert done.returncode == 0, done.stderr[-3000:]
    *_, answer = done.stdout.splitlines()
    assert answer == "What is 48 + 27 + 36 + 15? 126"
    assert "shared libraries load" in done.stdout

    done = without_network(carried, "penstock/venv/bin/penstock", "demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [title for title, _ in ASKED if title not in done.stdout] == []
    assert "126" in done.stdout  # 48 + 27 + 36 + 15
