"""The Python of the page on tools runs as it stands; the other languages' code there is the examples'."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.fake_service import ANSWER, FakeService, calling, tool_call

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/call-tools.md").read_text(encoding="utf-8")
CALL = tool_call("temperature", '{"city": "Oslo"}')


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def lines(command: list[str], target: str) -> list[str]:
    environment = os.environ | {"PENSTOCK_TARGET": target}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_of_the_page_runs(number: int, served: tuple[FakeService, str], fake: FakeService) -> None:
    code = blocks("python")[number]
    fake.scripts = [list(calling(CALL))]
    if "response_format" in code:
        fake.candidate = pb.Candidate(answer='{"city": "Oslo", "celsius": 21}')
    assert "127.0.0.1:50051" in code
    command = [sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:50051", served[1])]
    said = lines(command, served[1])
    assert "".join(ANSWER) in said or "city='Oslo' celsius=21" in said


@pytest.mark.parametrize(
    ("language", "example"), [("js", "examples/typescript/tools.mjs"), ("go", "examples/go/tools/main.go")]
)
def test_the_page_shows_the_examples(language: str, example: str) -> None:
    """tests/conformance/test_examples.py runs them."""
    [block] = blocks(language)
    _, _, code = (ROOT / example).read_text(encoding="utf-8").partition("\n")
    assert block == code.replace("../../clients/typescript/dist/index.js", "penstock-client")
