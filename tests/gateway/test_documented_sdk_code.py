"""The code of "Use OpenAI's SDKs" runs as it stands, and prints what it should."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb

from tests.conformance.tools import NODE, needs_node
from tests.gateway.conftest import Gateway
from tests.rpc.fake_service import FakeService
from tests.rpc.test_tool_calls import OSLO

PAGE = Path(__file__).parents[2] / "docs/how-to/use-openai-sdks.md"
URL = "http://127.0.0.1:8080"
REPLIES = (
    Reply("<tool_response>", thought="ok", answer="It is 21 degrees."),
    Reply("Oslo", thought="I look.", answer=OSLO),
    Reply(thought="I add them.", answer="126"),
)
SHOWN = re.compile(r"\b126\b|It is 21 degrees|temperature invalid_value INVALID_FIELD")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


async def run(gateway: Gateway, command: list[str], code: str, folder: Path | None = None) -> str:
    """Run a block against a new gateway, and return what it printed."""
    assert URL in code
    url = str((await gateway(*REPLIES)).base_url).rstrip("/")
    return await run_at(url, command, code, folder)


async def run_at(url: str, command: list[str], code: str, folder: Path | None = None) -> str:
    done = await asyncio.create_subprocess_exec(
        *command, code.replace(URL, url), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(done.communicate(), 100)
    assert done.returncode == 0, err.decode()
    return out.decode()


PYTHON = [sys.executable, "-c"]
PYTHON_BLOCKS = blocks("python")
STRUCTURED = [code for code in PYTHON_BLOCKS if "response_format" in code]


@pytest.mark.slow
@pytest.mark.parametrize("number", [at for at, code in enumerate(PYTHON_BLOCKS) if code not in STRUCTURED])
async def test_python(gateway: Gateway, number: int) -> None:
    assert SHOWN.search(await run(gateway, PYTHON, PYTHON_BLOCKS[number]))


async def test_structured_output(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    """The scripted engine has no grammars: the service answers what a grammar would have held."""
    fake.candidate = pb.Candidate(answer='{"value": 126}')
    url = str((await gateway.in_front_of(served[1])).base_url).rstrip("/")
    (code,) = STRUCTURED
    assert await run_at(url, PYTHON, code) == "126\n"
    assert '"integer"' in fake.generations[-1].spec.output.json_schema


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("javascript"))))
async def test_node(gateway: Gateway, number: int) -> None:
    command = [str(NODE), "--input-type=module", "--eval"]
    folder = Path(__file__).parent / "node"
    assert SHOWN.search(await run(gateway, command, blocks("javascript")[number], folder))


def test_there_is_code() -> None:
    assert (len(PYTHON_BLOCKS), len(STRUCTURED), len(blocks("javascript"))) == (8, 1, 4)
