"""SIGTERM under load, to the real command: no stream is lost, and the exit code is 0."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello
from tests.chaos.conftest import QUESTIONS, THINKING


async def test_sigterm_under_load_loses_no_stream(tmp_path: Path) -> None:
    ready = tmp_path / "address"
    command = (sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready))
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(300):
            while not ready.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.2)
        async with grpc.aio.insecure_channel(ready.read_text().strip()) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)

            async def one(number: int) -> pb.GenerationEvent:
                spec = hello(QUESTIONS[number % len(QUESTIONS)], thinking=THINKING)
                call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec))
                events = [(await call.read()).event]
                started.release()
                while (reply := await call.read()) is not grpc.aio.EOF:
                    events.append(reply.event)
                return events[-1]

            started = asyncio.Semaphore(0)
            streams = [asyncio.create_task(one(number)) for number in range(16)]
            for _ in streams:
                await started.acquire()
            process.send_signal(signal.SIGTERM)
            lasts = await asyncio.gather(*streams)
        assert all(last.finished.results[0].finish_reason == pb.FINISH_REASON_STOP for last in lasts)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
