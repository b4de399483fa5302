"""A bare grpc.aio server with a connection age, to compare with: it streams events at a pace. A program.

argv: the age in seconds, events of a stream, seconds between two. stdout: its address; killed at the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

_GRACE_MS = 60_000


class Streams(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, events: int, step_seconds: float) -> None:
        self._events = events
        self._step_seconds = step_seconds

    async def StreamGenerate(  # noqa: N802 - the protocol's name
        self, request: pb.StreamGenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        for _ in range(self._events):
            await asyncio.sleep(self._step_seconds)
            yield pb.StreamGenerateResponse(event=pb.GenerationEvent(answer=pb.Delta(text="ab")))
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(finished=pb.GenerationFinished()))


async def main() -> None:
    age_ms, events, step_seconds = int(float(sys.argv[1]) * 1000), int(sys.argv[2]), float(sys.argv[3])
    age = [("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", _GRACE_MS)]
    server = grpc.aio.server(options=[*age, ("grpc.max_concurrent_streams", 1024)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(Streams(events, step_seconds), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
