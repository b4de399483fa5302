"""Measure the share of AUTO calls that are answered within a deadline that a full thought misses.

    python -m bench.auto_deadlines [--calls 200]

Sixteen streams run at a time, on the embedded model. Full thoughts and answers without thought are timed first; the
deadline lies between the fastest full thought and the slowest answer without one. Goal: 0.99 of AUTO's calls meet it.
Exits with 1 if the goal is missed. Exits with 1, too, if at least half of the full thoughts meet the deadline: then
the deadline is too late to measure anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

import grpc
from penstock.config.schema import DEMO_MODEL_FP8_DIR
from penstock.generation.percentiles import percentile
from penstock_bench.load.serving import served
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from bench.work import job

AIM = 0.99
_STREAMS = 16
Stub = generation_pb2_grpc.GenerationServiceStub


async def one(stub: Stub, question: str, mode: pb.ThinkingMode, deadline_seconds: float | None) -> tuple[float, bool]:
    """Return the seconds that a call took, and whether it met the deadline."""
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=question)]),
        thinking=pb.ThinkingConfig(mode=mode, answer_reserve=16),
    )
    began = time.monotonic()
    try:
        await stub.Generate(pb.GenerateRequest(spec=spec), timeout=deadline_seconds)
    except grpc.aio.AioRpcError as late:
        if late.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return time.monotonic() - began, False
    return time.monotonic() - began, True


async def many(
    stub: Stub, mode: pb.ThinkingMode, deadline_seconds: float | None, count: int
) -> list[tuple[float, bool]]:
    ((question,), *_) = job(1, 1, seed=0).questions
    slots = asyncio.Semaphore(_STREAMS)

    async def limited() -> tuple[float, bool]:
        async with slots:
            return await one(stub, question, mode, deadline_seconds)

    return await asyncio.gather(*(limited() for _ in range(count)))


async def measured(address: str, calls: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = Stub(channel)
        full = sorted(seconds for seconds, _ in await many(stub, pb.THINKING_MODE_THINKING, None, 3 * _STREAMS))
        fast = sorted(seconds for seconds, _ in await many(stub, pb.THINKING_MODE_FAST, None, 3 * _STREAMS))
        deadline = (full[0] + fast[-1]) / 2 if full[0] > fast[-1] else percentile(full, 50) * 0.8
        thinking = await many(stub, pb.THINKING_MODE_THINKING, deadline, 4 * _STREAMS)
        auto = await many(stub, pb.THINKING_MODE_AUTO, deadline, calls)
    return {
        "deadline_seconds": round(deadline, 2),
        "full_thought_seconds": round(percentile(full, 50), 2),
        "thinking_met": round(sum(met for _, met in thinking) / len(thinking), 3),
        "auto_met": round(sum(met for _, met in auto) / len(auto), 3),
        "aim": AIM,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="number of AUTO calls")
    asked = parser.parse_args()
    with served(DEMO_MODEL_FP8_DIR, ()) as address:
        found = asyncio.run(measured(address, asked.calls))
    print(json.dumps(found, indent=1))
    return int(found["auto_met"] < AIM or found["thinking_met"] >= 0.5)


if __name__ == "__main__":
    sys.exit(main())
