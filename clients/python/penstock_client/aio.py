"""The asyncio client."""
# ruff: noqa: ASYNC109 - `timeout` is the deadline that the server sees, which asyncio.timeout cannot be.

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from penstock_client.card import ModelCard, TokenCount
from penstock_client.channel import ChannelOptions, Tls, credentials_for, metadata_for, options_for
from penstock_client.errors import from_rpc_error
from penstock_client.events import Event, EventReader
from penstock_client.response import Response
from penstock_client.spec import GenerationOptions, Prompt, build_spec
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

if TYPE_CHECKING:
    from penstock_client.v1.generation_pb2_grpc import GenerationServiceAsyncStub
    from penstock_client.v1.model_pb2_grpc import ModelServiceAsyncStub

ReplyT = TypeVar("ReplyT")


class AsyncStream:
    """The events of one generation. Leaving the loop or the `async with` cancels the call, if it still runs.

    >>> async with client.stream("What is 17 + 25?", budget=64) as stream:
    ...     async for event in stream:
    ...         ...
    >>> stream.response.answer

    `async for event in client.stream(...)` does the same where the stream is needed by nobody else.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._reader = EventReader()

    @property
    def response(self) -> Response:
        """What has come so far."""
        return self._reader.response

    def cancel(self) -> None:
        """Ends the call; the engine stops within one step. Harmless when it is over."""
        self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            # read(), not iteration: gRPC's iterator keeps the call alive after the loop that held it is gone.
            try:
                reply = await self._call.read()
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            if reply is grpc.aio.EOF:
                await self._end()
                raise StopAsyncIteration
            event = self._reader.read(reply.event)
            if event is not None:
                return event

    async def _end(self) -> None:
        if await self._call.code() is not grpc.StatusCode.OK:
            raise from_rpc_error(
                grpc.aio.AioRpcError(
                    await self._call.code(),
                    await self._call.initial_metadata(),
                    await self._call.trailing_metadata(),
                    await self._call.details(),
                )
            )
        self._reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


class AsyncClient:
    """A client of one Penstock service, for asyncio. Use it on one event loop; it connects at the first call.

    >>> async with AsyncClient("127.0.0.1:50051") as client:
    ...     reply = await client.generate("What is 17 + 25?", thinking="thinking", budget=64)
    ...     reply.thought, reply.answer, reply.usage, reply.cost

    `timeout` (seconds, here for all calls or at each) becomes the call's deadline: the server stops working at it, and
    thinking="auto" plans so that the answer arrives before it. Nothing is retried; see RETRY_READS_SERVICE_CONFIG.
    Every method raises the exceptions of `penstock_client.errors`, and TypeError or ValueError for wrong use.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        tls: Tls = None,
        timeout: float | None = None,
        channel_options: ChannelOptions = (),
    ) -> None:
        self.target = target
        self.timeout = timeout
        self._metadata = metadata_for(target, api_key, tls)
        self._credentials = credentials_for(tls)
        self._options = options_for(target, channel_options)
        self._channel: grpc.aio.Channel | None = None

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        flush_interval_seconds: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncStream:
        """Starts a generation and gives its events as they come.

        `flush_interval_seconds` gathers deltas for that long: fewer, larger events.
        """
        request = pb.StreamGenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        if flush_interval_seconds is not None:
            request.flush_interval.FromNanoseconds(round(flush_interval_seconds * 1e9))
        return AsyncStream(self._generation.StreamGenerate(request, **self._call_options(timeout)))

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Response:
        """One reply, complete."""
        request = pb.GenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        return Response.from_proto(await _reply(self._generation.Generate(request, **self._call_options(timeout))))

    async def count(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> TokenCount:
        """Counts tokens and cost without generating, and foretells what the overflow policy would drop."""
        request = pb.CountTokensRequest(spec=build_spec(prompt, spec=spec, **options))
        return TokenCount.from_proto(await _reply(self._generation.CountTokens(request, **self._call_options(timeout))))

    async def model(self, name: str = "", *, timeout: float | None = None) -> ModelCard:
        """What is served: the model's card, profile, prices and limits."""
        request = model_pb2.GetModelRequest(model=name)
        return ModelCard.from_proto(await _reply(self._model.GetModel(request, **self._call_options(timeout))))

    async def close(self) -> None:
        """Cancels what runs and closes the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _call_options(self, timeout: float | None) -> dict[str, Any]:
        return {"timeout": self.timeout if timeout is None else timeout, "metadata": self._metadata}

    def _connect(self) -> grpc.aio.Channel:
        # Not in __init__: an asyncio channel belongs to the loop that runs when it is made.
        if self._channel is None:
            self._channel = (
                grpc.aio.insecure_channel(self.target, self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(self.target, self._credentials, self._options)
            )
        return self._channel

    @property
    def _generation(self) -> GenerationServiceAsyncStub:
        return generation_pb2_grpc.GenerationServiceStub(self._connect())

    @property
    def _model(self) -> ModelServiceAsyncStub:
        return model_pb2_grpc.ModelServiceStub(self._connect())


async def _reply(call: Awaitable[ReplyT]) -> ReplyT:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
