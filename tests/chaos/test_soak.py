"""Two thousand short calls that misbehave."""

from __future__ import annotations

import asyncio
import gc
import random

import grpc
import psutil
import pytest
from penstock_proto.v1 import generation_pb2 as pb

from tests.bad_requests import hello
from tests.chaos.conftest import QUESTIONS, Patient

SOAK_CALLS = 2000
FAST = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)


async def until_idle(patient: Patient) -> None:
    async with asyncio.timeout(30):
        while (load := patient.engine.load()).running_requests or load.waiting_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await patient.server.admission.idle()


async def misbehave(patient: Patient, rng: random.Random) -> str:
    """One short call of a random kind; what became of it."""
    kind = rng.choice(["plain", "plain", "unary", "cancel", "deadline", "bad", "resumable", "sampled"])
    spec = hello(rng.choice(QUESTIONS), output=pb.OutputConfig(max_output_tokens=rng.randint(1, 12)))
    if kind == "bad":
        spec.sampling.top_p = 7
    if kind == "sampled":
        spec.sampling.temperature = 1.0
    try:
        if kind == "unary":
            await patient.stub.Generate(pb.GenerateRequest(spec=spec))
            return kind
        timeout = rng.uniform(0.01, 0.2) if kind == "deadline" else None
        request = pb.StreamGenerateRequest(spec=spec, resumable=kind == "resumable")
        call = patient.stub.StreamGenerate(request, timeout=timeout)
        for read in range(100):
            if await call.read() is grpc.aio.EOF:
                break
            if kind in ("cancel", "resumable") and read == 1:
                call.cancel()
    except asyncio.CancelledError:
        pass  # Ours: the call was cancelled under its own read.
    except grpc.aio.AioRpcError as ended:
        if ended.code() is grpc.StatusCode.INTERNAL:
            raise
    return kind


def used() -> tuple[int, int, int]:
    """Open files, tasks and resident bytes of this process: service, client and all."""
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), len(asyncio.all_tasks()), process.memory_info().rss


@pytest.mark.full
async def test_two_thousand_calls_leave_nothing_behind(patient: Patient) -> None:
    rng = random.Random(6)
    gate = asyncio.Semaphore(32)

    async def one() -> str:
        async with gate:
            return await misbehave(patient, rng)

    await asyncio.gather(*(one() for _ in range(SOAK_CALLS // 4)))  # warms caches and pools before counting
    await until_idle(patient)
    before = used()
    await asyncio.gather(*(one() for _ in range(SOAK_CALLS)))
    await until_idle(patient)
    after = used()
    print(
        f"\n{SOAK_CALLS} calls; open files {before[0]} -> {after[0]}, "
        f"tasks {before[1]} -> {after[1]}, "
        f"resident {before[2] / 2**20:.0f} -> {after[2] / 2**20:.0f} MiB"
    )
    assert after[0] <= before[0] + 4
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] * 1.05 + 16 * 2**20
