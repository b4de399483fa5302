"""The process that tries constraints: it starts once, outlives impatient callers, and is never left behind."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator

import psutil
import pytest
import xgrammar
from penstock.engine.child_environment import ALLOWED
from penstock.engine.vllm.constraints import sandbox as sandbox_module
from penstock.engine.vllm.constraints.sandbox import ConstraintSandbox
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.errors import BadRequest, Overloaded
from penstock.types import StructuredKind, StructuredOutput

from tests.clock import stopped

CONSTRAINT = StructuredOutput(StructuredKind.REGEX, "[ab]{3}")


def tokenizer_json() -> str:
    vocabulary = [bytes([byte]) for byte in range(256)] + [b""]
    return str(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256]).serialize_json())


class Counted(ConstraintSandbox):
    """Counts the processes and trials."""

    def __init__(self, **fields: float) -> None:
        super().__init__(tokenizer_json, lambda structured: (structured.kind.value, structured.spec), 20.0, **fields)
        self.starts = self.trials = 0
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def _start(self) -> asyncio.subprocess.Process:
        self.starts += 1
        await self.may_start.wait()
        return await super()._start()

    async def _try(self, kind: str, spec: str) -> int:
        self.trials += 1
        return await super()._try(kind, spec)


@pytest.fixture
async def sandbox() -> AsyncIterator[Counted]:
    sandbox = Counted()
    yield sandbox
    await sandbox.close()


@pytest.mark.slow
async def test_the_process_knows_nothing_of_the_services_environment(
    sandbox: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    await sandbox.check(CONSTRAINT, "a")
    assert sandbox._process is not None
    seen = psutil.Process(sandbox._process.pid).environ()
    assert set(seen) <= ALLOWED | {"MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert "a-secret" not in seen.values()


@pytest.mark.slow
async def test_callers_that_leave_while_the_compiler_starts_leave_it_for_the_next(sandbox: Counted) -> None:
    sandbox.may_start.clear()
    for caller in "abc":
        asking = asyncio.create_task(sandbox.check(CONSTRAINT, caller))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    sandbox.may_start.set()
    await sandbox.check(CONSTRAINT, "patient")
    assert (sandbox.starts, sandbox.trials) == (1, 1)
    await sandbox.check(CONSTRAINT, "later")
    assert (sandbox.starts, sandbox.trials) == (1, 1)


async def test_a_start_that_is_given_up_leaves_no_process(sandbox: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    start = asyncio.create_subprocess_exec

    async def remembered(*arguments: object, **fields: object) -> asyncio.subprocess.Process:
        process = await start(*arguments, **fields)  # type: ignore[arg-type]
        begun.put_nowait(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remembered)
    sandbox.start_ahead()
    process = await begun.get()
    await sandbox.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.slow
async def test_a_compiler_that_cannot_start_is_told_and_tried_again(
    sandbox: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/bin/false")
        with pytest.raises(Overloaded):
            await sandbox.check(CONSTRAINT, "a")
    said = re.compile(r"the constraint sandbox did not start: \w+, exit status 1")
    assert [bool(said.fullmatch(message)) for message in caplog.messages] == [True, True]
    await sandbox.check(CONSTRAINT, "a")
    assert sandbox.starts == 2
    assert sandbox._process is not None
    assert os.readlink(f"/proc/{sandbox._process.pid}/fd/2") == os.devnull


@pytest.mark.slow
async def test_a_compiler_that_died_is_started_again(sandbox: Counted) -> None:
    await sandbox.check(CONSTRAINT, "a")
    assert sandbox._process is not None
    sandbox._process.kill()
    await sandbox._process.wait()
    await sandbox.check(StructuredOutput(StructuredKind.REGEX, "c"), "a")
    assert sandbox.starts == 2


@pytest.mark.slow
@pytest.mark.parametrize("spec", [r"a[^\x00-\U0010FFFF]", r"[^\x00-\U0010FFFF]"])
async def test_a_constraint_without_a_way_to_go_on_is_refused(sandbox: Counted, spec: str) -> None:
    with pytest.raises(BadRequest) as raised:
        await sandbox.check(StructuredOutput(StructuredKind.REGEX, spec), "a")
    assert raised.value.reason == "INVALID_FIELD"


@pytest.mark.slow
async def test_what_the_engine_found_holds_for_its_caller_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stopped(monkeypatch, sandbox_module)
    sandbox = Counted(costly_seconds=60.0)
    await sandbox.check(CONSTRAINT, "a")
    sandbox.block(CONSTRAINT, "a")
    with pytest.raises(BadRequest):
        await sandbox.check(CONSTRAINT, "a")
    await sandbox.check(CONSTRAINT, "b")
    clock.now += 61
    await sandbox.check(CONSTRAINT, "a")
    await sandbox.close()


class HeldTrials(ConstraintSandbox):
    """Trials that last until they are let go, without a process."""

    def __init__(self) -> None:
        super().__init__(lambda: "", lambda structured: ("regex", structured.spec), 5.0)
        self.tried: list[str] = []
        self.release = asyncio.Event()

    async def _try(self, kind: str, spec: str) -> int:
        self.tried.append(spec)
        await self.release.wait()
        return SandboxResult.GOOD


async def test_a_caller_that_leaves_keeps_its_turn_until_its_trial_ends() -> None:
    sandbox = HeldTrials()
    for number in range(3):
        asking = asyncio.create_task(sandbox.check(StructuredOutput(StructuredKind.REGEX, str(number)), "impatient"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert sandbox.tried == ["0"]
    other = asyncio.create_task(sandbox.check(StructuredOutput(StructuredKind.REGEX, "other"), "b"))
    sandbox.release.set()
    await other
    assert sandbox.tried == ["0", "other"]
    await sandbox.close()


async def test_one_caller_cannot_fill_the_queue() -> None:
    sandbox = HeldTrials()
    asking = [
        asyncio.create_task(sandbox.check(StructuredOutput(StructuredKind.REGEX, str(number)), "greedy"))
        for number in range(80)
    ]
    await asyncio.sleep(0)
    sandbox.release.set()
    await sandbox.check(StructuredOutput(StructuredKind.REGEX, "modest"), "modest")
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 48
    await sandbox.close()
