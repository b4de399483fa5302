"""The whole service over a real, supervised vLLM engine, to be hurt. Loopback only, bounded, ends by itself."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from penstock.config.schema import Config
from penstock.engine.supervisor import SupervisedEngine
from penstock.server.app import start_engine
from penstock.server.server import Server
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello

_SHIPPED = Path(__file__).parents[2] / "bench/penstock_bench/evaluation/questions.jsonl"
_NEAR_TIES = {
    *("chain-de-1001000001", "chain-de-1001000002", "chain-en-1001000000", "chain-en-1001000001"),
    *("shop-de-1001000000", "shop-de-1001000002", "shop-en-1001000001", "shop-en-1001000004"),
    *("shop-en-1001000006",),
    *("steps-de-1001000001", "steps-de-1001000002", "steps-en-1001000001", "steps-en-1001000002"),
    *("steps-en-1001000004", "steps-en-1001000006"),
    *("units-de-1001000002", "units-en-1001000000"),
}
"""Ids of questions in whose reply two tokens are about as likely. test_questions.py finds them."""


def questions(*kinds: str, count: int) -> tuple[str, ...]:
    """Held-out questions that the demo model is sure of: near-ties would make greedy replies differ by batch."""
    rows = [json.loads(line) for line in _SHIPPED.read_text(encoding="utf-8").splitlines()]
    sure = [row for row in rows if row["id"] not in _NEAR_TIES]
    by_kind = [[row["question"] for row in sure if row["kind"] == kind] for kind in kinds]
    return tuple(itertools.islice(itertools.chain.from_iterable(zip(*by_kind, strict=False)), count))


QUESTIONS = questions("chain", "units", "shop", "steps", count=16)
THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


@dataclass
class Patient:
    """The service under test, and what was seen of its health."""

    server: Server
    engine: SupervisedEngine
    channel: grpc.aio.Channel
    downs: list[float] = field(default_factory=list)
    recoveries_seconds: list[float] = field(default_factory=list)

    @property
    def stub(self) -> generation_pb2_grpc.GenerationServiceStub:
        return generation_pb2_grpc.GenerationServiceStub(self.channel)


@pytest.fixture(scope="package")
def chaos_config() -> Config:
    return Config.model_validate(
        {
            "server": {"listen": "127.0.0.1:0"},
            "thinking": {"early_exit_interval_tokens": 2, "early_exit_share": 64.0},
            "supervision": {"hang_seconds": 6, "max_restarts": 1000, "backoff_seconds": 0.1},
            "engine": {"extra_args": {"worker_cls": "tests.chaos.poison.PoisonableWorker"}},
        }
    )


@pytest.fixture(scope="package")
async def patient(chaos_config: Config) -> AsyncIterator[Patient]:
    server = Server(chaos_config)
    address = await server.listen()
    downs: list[float] = []
    recoveries: list[float] = []

    async def on_change(alive: bool) -> None:
        if alive:
            recoveries.append(time.monotonic() - downs[-1])
        else:
            downs.append(time.monotonic())
        await server.set_ready(alive)

    engine = await start_engine(chaos_config, print, on_change)
    assert isinstance(engine, SupervisedEngine)
    await server.serve_with(engine)
    async with grpc.aio.insecure_channel(address) as channel:
        yield Patient(server, engine, channel, downs, recoveries)
    await server.drain(0)
    await engine.close()


async def ask(
    patient: Patient, question: str, thinking: pb.ThinkingConfig = THINKING, **fields: object
) -> list[pb.GenerationEvent]:
    """One greedy stream, complete and gapless, else an assertion or the call's error."""
    spec = hello(question, thinking=thinking, sampling=pb.SamplingConfig(temperature=0.0), **fields)
    call = patient.stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec))
    events = [reply.event async for reply in call]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


def said(events: list[pb.GenerationEvent]) -> tuple[str, str, int, int]:
    """Return what a stream said and counted: thought, answer, and tokens of each."""
    usage = events[-1].finished.usage
    thought = "".join(event.thought.text for event in events)
    answer = "".join(event.answer.text for event in events)
    assert sum(event.thought.token_count for event in events) == usage.reasoning_tokens
    assert sum(event.answer.token_count for event in events) == usage.answer_tokens
    return thought, answer, usage.reasoning_tokens, usage.answer_tokens
