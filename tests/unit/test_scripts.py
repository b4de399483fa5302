"""Scripts that the documentation names run as they stand, with whatever Python starts them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HARMLESS = {
    "api-docs": "--check",
    "bundle": "--help",
    "architecture": "--check",
    "configuration": "--check",
    "go-clients": "env",
    "playground-pictures": "--help",
    "protos": "--check",
    "published-runs": "--help",
    "reference": "--check",
    "two-nodes": "--help",
    "test-repeatedly": "--help",
    "version": "--check",
    "words": "--help",
    "vllm-compare": "--help",
    "decisions": "--check",
}
"""What shows that a script starts, and changes nothing."""
_LONG = {"protos-go", "protos-typescript"}
"""Tests in tests/conformance run them, where their tools are."""


def test_each_script_that_is_named_is_tried() -> None:
    docs = (page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions")
    pages = [
        *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "DEVELOPMENT.md")),
        *docs,
        *(ROOT / "clients").glob("*/README.md"),
    ]
    named = {name for page in pages for name in re.findall(r"scripts/([a-z][a-z-]*)", page.read_text(encoding="utf-8"))}
    assert named
    assert named <= _HARMLESS.keys() | _LONG


@pytest.mark.slow
@pytest.mark.parametrize(("script", "argument"), _HARMLESS.items())
def test_it_starts_with_the_systems_python(script: str, argument: str) -> None:
    """That Python has none of our packages: the script takes the environment's instead."""
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, str(ROOT / "scripts" / script), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def _checkout(folder: Path) -> list[str]:
    """A checkout with one script that needs the environment. Returns the command that starts it."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "_environment.py", folder / "scripts")
    probe = folder / "scripts" / "probe"
    probe.write_text("import _environment, sys, grpc\nprint(sys.prefix, *sys.argv[1:])\n")
    return [getattr(sys, "_base_executable", sys.executable), str(probe), "an argument"]


@pytest.mark.parametrize("name", [".venv", ".venv-gpu"])
def test_an_environment_that_is_a_link_to_another_checkouts_is_used(name: str, tmp_path: Path) -> None:
    command = _checkout(tmp_path)
    (tmp_path / name).symlink_to(sys.prefix)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / name} an argument\n"), done.stderr


@pytest.mark.parametrize("is_foreign", [False, True], ids=["no environment", "a Python that belongs to another one"])
def test_without_an_environment_of_its_own_a_script_says_what_to_do(is_foreign: bool, tmp_path: Path) -> None:
    command = _checkout(tmp_path)
    if is_foreign:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "ready").touch()
        (tmp_path / ".venv" / "bin" / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("probe: ")
    assert "run `make setup`" in done.stderr
    assert done.stderr.count("\n") == 1
