"""Python of the READMEs runs as it stands, and what it prints can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpc.scripted_service import scripted_service

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quick-start.md", "clients/python/README.md")
CODE = [
    pytest.param(block, id=f"{page} {number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S), 1)
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted_service(tmp_path_factory.mktemp("service"), [{"thought": "summing\n", "answer": "126"}]) as address:
        yield address


def test_there_is_code() -> None:
    assert len(CODE) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE)
def test_code_of_a_readme_runs(code: str, service: str) -> None:
    assert "127.0.0.1:50051" in code
    command = [sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:50051", service)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "126" in done.stdout.splitlines(), "the streamed answer stands on a line of its own"
