"""The official `openai` package from npm on the gateway: `node/sdk.mjs` has the expectations."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb

from tests.conformance.tools import NODE, needs_node
from tests.gateway.conftest import Gateway, refusal, until
from tests.rpc.fake_service import FakeService
from tests.rpc.test_tool_calls import OSLO

SCRIPT = Path(__file__).parent / "node" / "sdk.mjs"
SAYS = Reply(thought="hm", answer="It is é 75.")
CALLS = (Reply("<tool_response>", thought="ok", answer="Sunny."), Reply(thought="I look.", answer=OSLO))

pytestmark = [needs_node, pytest.mark.slow]


async def run(url: object, case: str) -> None:
    command = [str(NODE), str(SCRIPT), str(url).rstrip("/"), case]
    node = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = await asyncio.wait_for(node.communicate(), 100)
    assert node.returncode == 0, out.decode()


@pytest.mark.parametrize(
    ("case", "replies"),
    [
        ("chat", (SAYS,)),
        ("chat_stream", (SAYS,)),
        ("completions", (SAYS,)),
        ("responses", (SAYS,)),
        ("tools", CALLS),
        ("tools_of_responses", CALLS),
        ("images", (SAYS,)),
        ("errors", (SAYS,)),
    ],
)
async def test_the_package_works(gateway: Gateway, case: str, replies: tuple[Reply, ...]) -> None:
    await run((await gateway(*replies)).base_url, case)


async def test_structured_output(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    fake.candidate = pb.Candidate(answer='{"value": 75}')
    await run((await gateway.in_front_of(served[1])).base_url, "structured")
    assert all('"integer"' in request.spec.output.json_schema for request in fake.generations)


async def test_the_package_repeats_what_was_refused_for_a_while(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService
) -> None:
    refused = [refusal("QUOTA_EXCEEDED", 0.005), refusal("OVERLOADED", 0.005)]
    fake.scripts = [[refused[0]], fake.script, [refused[1]]]
    await run((await gateway.in_front_of(served[1])).base_url, "retries")
    assert len(fake.generations) == 4


async def test_it_is_told_how_long_to_wait(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService
) -> None:
    fake.scripts = [[refusal("QUOTA_EXCEEDED", 1.5)], [refusal("OVERLOADED", 1.5)]]
    await run((await gateway.in_front_of(served[1])).base_url, "refusals")


async def test_leaving_ends_the_generations(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 100_000, step_seconds=0.01), window=200_000)
    await run(http.base_url, "cancellation")
    await until(lambda: gateway.engines[-1].running == 0)
