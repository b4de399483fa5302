"""Scripts that the documentation names run as they stand, with whatever Python starts them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HARMLESS = {
    "api-docs": "--check",
    "architecture": "--check",
    "configuration": "--check",
    "go-clients": "env",
    "protos": "--check",
    "published-runs": "--help",
    "reference": "--check",
    "two-nodes": "--help",
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


@pytest.mark.parametrize(("script", "argument"), _HARMLESS.items())
def test_it_starts_with_the_systems_python(script: str, argument: str) -> None:
    """That Python has none of our packages: the script takes the environment's instead."""
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, str(ROOT / "scripts" / script), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
