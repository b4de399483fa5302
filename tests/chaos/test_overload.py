"""Ten times more calls than there is room for: each is answered, or refused with a time to come back.

How many are answered, and how soon a refusal comes, is a benchmark: `python -m bench.overload`.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from penstock.engine.vllm.concurrency import MIN_REQUESTS
from penstock_proto.v1 import generation_pb2 as pb

from tests.bad_requests import hello
from tests.chaos.conftest import QUESTIONS, Patient, ask

# So long that no engine answers as fast as the calls come, also where the client shares its core. Beside others,
# 622 of 640 answers of three tokens were given before the queue was full.
LONG = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=32)
_CALLERS = MIN_REQUESTS  # at once, by default on a CPU


async def test_ten_times_too_much_is_answered_or_refused_with_a_time_to_come_back(patient: Patient) -> None:
    """All at once, and twice: what the first flood held is given back for the second."""

    async def one(number: int) -> str:
        spec = hello(QUESTIONS[number % len(QUESTIONS)], thinking=LONG, output=pb.OutputConfig(max_output_tokens=64))
        try:
            reply = await patient.stub.Generate(pb.GenerateRequest(spec=spec))
        except grpc.aio.AioRpcError as refused:
            if refused.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                return f"{refused.code().name}: {refused.details()}"
            return "refused" if _retry_seconds(refused) > 0 else "refused without RetryInfo"
        return "answered" if reply.usage.output_tokens > 0 else "answered with nothing"

    deaths = len(patient.downs)
    for _ in range(2):
        ends = Counter(await asyncio.gather(*(one(number) for number in range(10 * _CALLERS))))
        print(f"\n{dict(ends)}")
        assert set(ends) == {"answered", "refused"}
        assert ends["answered"] >= _CALLERS
        assert ends["refused"] >= _CALLERS
    assert (await ask(patient, QUESTIONS[0]))[-1].HasField("finished")
    assert len(patient.downs) == deaths, "no engine was lost in the flood"


def _retry_seconds(refused: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(refused)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return 0.0
