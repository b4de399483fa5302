"""Hostile constraints on the real engine: refused in bounded time, while a stream beside them hardly notices."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import grpc
import pytest
from penstock.engine.base import Engine
from penstock.engine.vllm.constraints import sandbox as sandbox_module
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.errors import BadRequest, Overloaded
from penstock.types import StructuredKind, StructuredOutput
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello
from tests.clock import stopped
from tests.engine.conftest import run
from tests.engine.test_bad_requests import details, refusal
from tests.hostile.bombs import HARMLESS, REFUSED_BY_TEXT, REFUSED_BY_TRIAL, Bomb

_HANG_SECONDS = 100.0
"""Before a test gives up on a refusal; the bound itself is 5 s, and a busy machine takes longer."""


def output_of(constraint: StructuredOutput, **fields: object) -> pb.OutputConfig:
    if constraint.kind is StructuredKind.CHOICE:
        return pb.OutputConfig(choices=pb.Choices(choices=constraint.choices), **fields)
    return pb.OutputConfig(**{constraint.kind.value: constraint.spec}, **fields)


class Ticking:
    """A stream that goes on until told to stop, and how many events with text came."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self.count = 0
        self.is_steady = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            output = pb.OutputConfig(max_output_tokens=800, min_output_tokens=800)
            spec = hello(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST), output=output)
            async for reply in self._stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec)):
                if reply.event.WhichOneof("event") == "answer":
                    self.count += 1
                    if self.count >= 20:
                        self.is_steady.set()

    async def steady(self) -> None:
        """Returns once it runs; raises what ended it."""
        waiting = asyncio.create_task(self.is_steady.wait())
        await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiting.cancel()
            self._task.result()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def refused(channel: grpc.aio.Channel, bomb: Bomb) -> str:
    """Return what is wrong with how a bomb was refused; empty where nothing is."""
    async with asyncio.timeout(_HANG_SECONDS):
        error = await refusal(channel, hello(output=output_of(bomb.constraint)))
    _, bad = details(error)
    got = [(violation.field, violation.reason) for violation in bad.field_violations]
    print(f"{bomb.name:24} {got}")
    wanted = [(f"spec.output.{bomb.constraint.kind.value}", "LIMIT_EXCEEDED")]
    return "" if got == wanted else f"{bomb.name}: {got}"


async def test_bombs_are_refused_in_bounded_time_beside_a_stream_that_goes_on(
    engine: Engine, channel: grpc.aio.Channel
) -> None:
    await engine.check_constraint(HARMLESS[0], "warm-up")  # starts the process that tries them
    stream = Ticking(channel)
    await stream.steady()
    wrong = [fault for bomb in REFUSED_BY_TEXT if (fault := await refused(channel, bomb))]
    for bomb in REFUSED_BY_TRIAL:
        before = stream.count
        if fault := await refused(channel, bomb):
            wrong.append(fault)
        if stream.count == before:
            wrong.append(f"{bomb.name}: the stream beside stood still while it was tried")
    await stream.stop()
    assert wrong == []


async def test_what_people_write_passes(engine: Engine, channel: grpc.aio.Channel) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    for constraint in HARMLESS:
        thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
        spec = hello(thinking=thinking, output=output_of(constraint, max_output_tokens=20))
        reply = await stub.Generate(pb.GenerateRequest(spec=spec))
        assert reply.usage.output_tokens > 0


async def test_a_verdict_is_remembered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = REFUSED_BY_TRIAL[0].constraint
    with pytest.raises(BadRequest):
        await engine.check_constraint(bomb, "a")

    async def no_trial(*_: object) -> int:
        raise AssertionError("tried again")

    monkeypatch.setattr(sandbox_module.ConstraintSandbox, "_sandbox_result", no_trial)
    with pytest.raises(BadRequest):
        await engine.check_constraint(bomb, "b")


async def test_what_the_trial_did_not_find_the_engine_ends_and_remembers(engine: Engine, fast_prompt, request_for):
    """Straight to the engine, as a bomb would come whose fuse is longer than the trial's texts."""
    bomb = StructuredOutput(StructuredKind.REGEX, "(" * 5 + "[a-z]" + "{1,30})" * 5 + "{1,30}")
    beside = asyncio.create_task(run(engine, request_for(fast_prompt, 30, min_tokens=30)))
    with pytest.raises(BadRequest) as raised:
        await run(engine, request_for(fast_prompt, 500, min_tokens=500, structured=bomb, caller_id="a"))
    assert raised.value.violations[0].reason == "LIMIT_EXCEEDED"
    assert len((await beside)[0]) == 30
    with pytest.raises(BadRequest):
        await engine.check_constraint(bomb, "a")
    await engine.check()


class SlowTrials(sandbox_module.ConstraintSandbox):
    """Trials that take a moment, without a process."""

    def __init__(self, doubted_seconds: float = 60.0) -> None:
        super().__init__(lambda: "", lambda structured: ("regex", structured.spec), 5.0, doubted_seconds)
        self.order: list[str] = []
        self.verdict: int = SandboxResult.GOOD

    async def _try(self, kind: str, spec: str) -> int:
        await asyncio.sleep(0.02)
        self.order.append(spec)
        return self.verdict


async def test_a_caller_of_many_waits_for_itself() -> None:
    sandbox = SlowTrials()
    base = StructuredOutput(StructuredKind.REGEX)
    greedy = [asyncio.create_task(sandbox.check(replace(base, spec=f"greedy {n}"), "greedy")) for n in range(20)]
    await asyncio.sleep(0)
    await sandbox.check(replace(base, spec="modest"), "modest")
    assert sandbox.order.index("modest") <= 2
    await asyncio.gather(*greedy)


async def test_what_only_ran_out_of_time_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stopped(monkeypatch, sandbox_module)
    sandbox = SlowTrials(doubted_seconds=60.0)
    sandbox.verdict = -signal.SIGALRM
    constraint = StructuredOutput(StructuredKind.REGEX, "a")
    for _ in range(2):
        with pytest.raises(BadRequest):
            await sandbox.check(constraint, "a")
    assert len(sandbox.order) == 1
    clock.now += 61
    sandbox.verdict = SandboxResult.GOOD
    await sandbox.check(constraint, "a")
    assert len(sandbox.order) == 2


async def test_a_queue_for_trials_ends() -> None:
    sandbox = SlowTrials()
    base = StructuredOutput(StructuredKind.REGEX)
    tasks = [asyncio.create_task(sandbox.check(replace(base, spec=str(n)), str(n))) for n in range(80)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 16
