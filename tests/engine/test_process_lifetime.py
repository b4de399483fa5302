"""The service is killed or told to stop while it starts, or an engine's shutdown fails: nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import psutil
import pytest
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.vllm.start import start
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello
from tests.engine_build import worker_title

_MAX_SECONDS = 600.0  # the engine's start takes minutes beside other work
_patient = pytest.mark.timeout(1800)


@dataclass
class Service:
    """`penstock serve` on the demo checkpoint, and every process that it was seen to have below it."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    reading: asyncio.Task[None] | None = None

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith(b"{"):
                self.said.append(json.loads(line)["phase"])

    async def until(self, phase: str) -> None:
        async with asyncio.timeout(_MAX_SECONDS):
            while not any(said.startswith(phase) for said in self.said):
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= {process.pid: process for process in found}
        return found

    async def until_engine(self, name: str) -> psutil.Process:
        """The engine's process of that title, which each of them takes after vLLM was imported."""
        async with asyncio.timeout(_MAX_SECONDS):
            while True:
                for process in self.descendants():
                    try:
                        if name in " ".join(process.cmdline()):
                            return process
                    except psutil.Error:
                        continue
                await asyncio.sleep(0.02)

    async def until_all_ended(self) -> None:
        async with asyncio.timeout(_MAX_SECONDS):
            while running := [process for process in self.seen.values() if _runs(process)]:
                assert running
                await asyncio.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def service(*options: str) -> AsyncIterator[Service]:
    command = (sys.executable, "-m", "penstock", "serve", "--json", "--listen", "127.0.0.1:0", *options)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    there = Service(process)
    there.reading = asyncio.create_task(there.read())
    try:
        yield there
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await there.reading
        for left in there.seen.values():
            if _runs(left):
                left.kill()


@_patient
async def test_a_service_that_is_killed_takes_its_engine_and_its_sandbox_along() -> None:
    """One worker is stopped, as a worker may hang: it ends, too. The sandbox is at work on a constraint."""
    async with service() as there:
        await there.until("ready on ")
        address = there.said[-1].removeprefix("ready on ").partition(";")[0]
        async with grpc.aio.insecure_channel(address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            spec = hello("What is 12 + 30?", output=pb.OutputConfig(regex="[0-9]{2}", max_output_tokens=200))
            await stub.Generate(pb.GenerateRequest(spec=spec))
            endless = hello("What is 12 + 30?", output=pb.OutputConfig(max_output_tokens=9000, min_output_tokens=9000))
            call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=endless))
            await call.read()
            worker = await there.until_engine(worker_title())
            titles = [" ".join(process.cmdline()) for process in there.descendants()]
            assert any("EngineCore" in title for title in titles)
            assert any("penstock.engine.vllm.constraints.sandbox_process" in title for title in titles)
            worker.send_signal(signal.SIGSTOP)
            there.process.kill()
            await there.process.wait()
            await there.until_all_ended()


_full = pytest.mark.full  # the whole file takes a start of the engine per case


@_patient
@pytest.mark.parametrize(
    "title",
    [pytest.param("multiprocessing.spawn", marks=_full), "EngineCore", pytest.param(worker_title(), marks=_full)],
)
async def test_a_service_that_is_killed_while_it_loads_leaves_nothing(title: str) -> None:
    async with service() as there:
        await there.until_engine(title)
        there.process.kill()
        await there.process.wait()
        await there.until_all_ended()


@_patient
@pytest.mark.parametrize("phase", ["importing", "loading"])
async def test_a_service_that_is_stopped_while_it_starts_says_so_and_leaves_nothing(phase: str) -> None:
    async with service() as there:
        await there.until(phase)
        if phase == "loading":
            await there.until_engine("multiprocessing.spawn")
        there.process.send_signal(signal.SIGINT)
        assert await there.process.wait() == 0
        await there.until_all_ended()
        assert there.reading is not None
        await there.reading
        assert there.said[-1] == "stopped while starting; nothing was served"
        assert "warming" not in there.said


@_patient
async def test_an_engine_whose_shutdown_fails_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside load, vLLM's own shutdown has failed over a process that was just ending."""
    engine = await start(EngineSettings(model=str(DEMO_MODEL_DIR), max_context_tokens=4096, kv_cache_gib=0.2))
    resources = engine._llm.engine_core.resources
    orderly, failures = resources.engine_manager.shutdown, [psutil.NoSuchProcess(1)]

    def shutdown(timeout: float | None = None) -> None:
        if timeout == 0 and failures:  # vLLM's monitor calls it, too
            raise failures.pop()
        orderly(timeout=timeout)

    monkeypatch.setattr(resources.engine_manager, "shutdown", shutdown)
    with pytest.raises(psutil.NoSuchProcess):
        await engine.close()
    await asyncio.sleep(0)  # they are closed in the event loop
    assert resources.output_socket.closed
    assert resources.input_socket.closed
    assert not any(map(_runs, engine._processes))
