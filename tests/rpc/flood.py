"""A process of a caller who asks for far more than it may: `flood.py ADDRESS KEY CALLS_PER_SECOND SECONDS`.

Calls go out on a clock, whether or not earlier ones were answered. Prints {"sent": ..., "ok": ..., "refused": ...}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc


async def main(address: str, key: str, per_second: float, seconds: float) -> None:
    counts = {"sent": 0, "ok": 0, "refused": 0}
    message = pb.Message(role=pb.ROLE_USER, content="much " * 2000)
    request = pb.GenerateRequest(spec=pb.GenerationSpec(messages=pb.Messages(messages=[message])))
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def call() -> None:
            counts["sent"] += 1
            try:
                await stub.Generate(request, metadata=(("authorization", f"Bearer {key}"),))
                counts["ok"] += 1
            except grpc.aio.AioRpcError as error:
                counts["refused"] += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        began, calls = time.monotonic(), []
        print("flooding", flush=True)
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            calls.append(asyncio.create_task(call()))
        await asyncio.wait(calls, timeout=5)
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    os.nice(10)  # In life it runs on a machine of its own.
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
