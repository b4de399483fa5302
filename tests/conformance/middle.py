"""gRPC servers that do what a real one does not: other methods, lost events, silence in the middle, large messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

LARGE = 4_500_000
"""Bytes, above the 4 MiB that gRPC's clients receive by default."""


class _Middle(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, lost_reply: int | None, renames: bool) -> None:
        self._channel, self._lost_reply, self._renames = channel, lost_reply, renames

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = f"{details.method}OfTomorrow" if self._renames else str(details.method)

        async def pass_on(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            first = await anext(requests)  # all that these cases send
            call = self._channel.unary_stream(method)(first, timeout=context.time_remaining())
            number = 0
            try:
                async for reply in call:
                    number += 1
                    if number != self._lost_reply:
                        await context.write(reply)
            except grpc.aio.AioRpcError as error:
                trailers = tuple(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details() or "", trailers)

        return grpc.stream_stream_rpc_method_handler(pass_on)


class _Stuck(generation_pb2_grpc.GenerationServiceServicer):
    """Begins each stream and says nothing more. It never answers a unary call."""

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        for event in _beginning():
            yield pb.StreamGenerateResponse(event=event)
        await asyncio.Event().wait()

    async def Interact(self, requests: Any, context: Any) -> AsyncIterator[pb.InteractResponse]:  # noqa: N802
        for event in _beginning():
            yield pb.InteractResponse(event=event)
        await asyncio.Event().wait()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        await asyncio.Event().wait()
        raise AssertionError

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:  # noqa: N802
        return pb.CancelResponse()


def _beginning() -> Iterator[pb.GenerationEvent]:
    yield pb.GenerationEvent(sequence=1, started=pb.GenerationStarted(generation_id="g", resume_token="t"))
    yield pb.GenerationEvent(sequence=2, thought=pb.Delta(text="t", token_count=3))
    yield pb.GenerationEvent(sequence=3, answer=pb.Delta(text="a", token_count=2))
    call = pb.ToolCallStarted(id="c", name="f", token_count=4)
    yield pb.GenerationEvent(sequence=4, tool_call_started=call)


class _Large(generation_pb2_grpc.GenerationServiceServicer):
    """Drains in the middle of each stream, and goes on with who brings back the state that it gave."""

    _text, _state = "x" * LARGE, "s" * LARGE

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        end = _end(pb.FINISH_REASON_STOP)
        candidate = pb.Candidate(answer=self._text, result=end.results[0])
        return pb.GenerateResponse(generation_id="g", candidates=[candidate], usage=end.usage)

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        drained = _end(pb.FINISH_REASON_DRAINED)
        drained.resume_token = self._state
        started = pb.GenerationStarted(generation_id="g", resume_token="t")
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=1, started=started))
        answer = pb.Delta(text=self._text, token_count=1)
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=2, answer=answer))
        yield pb.StreamGenerateResponse(event=pb.GenerationEvent(sequence=3, finished=drained))

    async def Resume(  # noqa: N802
        self, request: pb.ResumeRequest, context: Any
    ) -> AsyncIterator[pb.ResumeResponse]:
        if (request.resume_token, request.last_sequence) != (self._state, 3):
            await context.abort(grpc.StatusCode.NOT_FOUND, "another state")
        finished = _end(pb.FINISH_REASON_STOP)
        yield pb.ResumeResponse(event=pb.GenerationEvent(sequence=4, finished=finished))


def _end(reason: pb.FinishReason) -> pb.GenerationFinished:
    usage = pb.Usage(answer_tokens=1, output_tokens=1)
    return pb.GenerationFinished(results=[pb.CandidateResult(finish_reason=reason, usage=usage)], usage=usage)


def middle(server: str, *, lost_reply: int | None = None, renames: bool = False) -> AbstractContextManager[str]:
    """Give an address that passes calls on to `server`.

    `lost_reply` is the number of a message of each stream that is dropped, from 1. With `renames` every method is one
    that the server does not have, as those of a newer version of the API would be.
    """

    @asynccontextmanager
    async def between() -> AsyncIterator[grpc.aio.Server]:
        async with grpc.aio.insecure_channel(server) as channel:
            made = grpc.aio.server()
            made.add_generic_rpc_handlers((_Middle(channel, lost_reply, renames),))
            yield made

    return _served(between)


def stuck() -> AbstractContextManager[str]:
    """Give the address of a server that stops in the middle and does not look at deadlines."""
    return _served(lambda: _playing(_Stuck(), ("grpc.enable_deadline_checking", 0)))


def large() -> AbstractContextManager[str]:
    """Give the address of a server whose answers and whose state of a drained conversation are above 4 MiB."""
    return _served(lambda: _playing(_Large(), ("grpc.max_receive_message_length", -1)))


@asynccontextmanager
async def _playing(
    service: generation_pb2_grpc.GenerationServiceServicer, option: tuple[str, int]
) -> AsyncIterator[grpc.aio.Server]:
    made = grpc.aio.server(options=[option])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, made)
    yield made


@contextmanager
def _served(made: Callable[[], AbstractAsyncContextManager[grpc.aio.Server]]) -> Iterator[str]:
    loop, ready, stop, address = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), ""

    async def serve() -> None:
        nonlocal address
        async with made() as server:
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            ready.set()
            await stop.wait()
            await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
