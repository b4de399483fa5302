"""Where the client's own clock is first, it makes the error that the service would have sent, from what has arrived."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from penstock_client import AnswerDelta, AsyncClient, DeadlineExceeded, Started, ThoughtDelta, ToolCallStarted
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc


class Silent(generation_pb2_grpc.GenerationServiceServicer):
    """Says a little, and nothing of the deadline: as a service that is stuck, or a proxy, would."""

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=1, started=pb.GenerationStarted()))
        thought, answer = pb.Delta(text="t", token_count=3), pb.Delta(text="a", token_count=2)
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=2, thought=thought))
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=3, answer=answer))
        call = pb.ToolCallStarted(id="c", name="f", token_count=4)
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=4, tool_call_started=call))
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> pb.GenerateResponse:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        raise AssertionError


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_a_stream_tells_what_has_arrived(address: str) -> None:
    async with AsyncClient(address) as client:
        stream = client.stream("x")
        kinds = [type(await anext(stream)) for _ in range(4)]
        assert kinds == [Started, ThoughtDelta, AnswerDelta, ToolCallStarted]
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(stream)
    assert caught.value.reason == "DEADLINE_PASSED"
    assert caught.value.metadata == {"thought_tokens": "3", "answer_tokens": "2", "tool_tokens": "4"}


async def test_a_unary_call_has_counted_nothing(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(DeadlineExceeded) as caught:
            await client.generate("x")
    assert caught.value.reason == "DEADLINE_PASSED"
    assert caught.value.metadata == {"thought_tokens": "0", "answer_tokens": "0", "tool_tokens": "0"}
