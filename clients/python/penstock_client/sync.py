"""The client for code without an event loop: the same methods, on gRPC's own blocking stubs."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from penstock_client.card import ModelCard, TokenCount
from penstock_client.channel import ChannelOptions, Tls, credentials_for, metadata_for, options_for
from penstock_client.errors import from_rpc_error
from penstock_client.events import Event, EventReader
from penstock_client.response import Response
from penstock_client.spec import GenerationOptions, Prompt, build_spec
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


class Stream:
    """The events of one generation. Leaving the loop or the `with` cancels the call, if it still runs.

    >>> with client.stream("What is 17 + 25?", budget=64) as stream:
    ...     for event in stream:
    ...         ...
    >>> stream.response.answer
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._reader = EventReader()

    @property
    def response(self) -> Response:
        """What has come so far."""
        return self._reader.response

    def cancel(self) -> None:
        """Ends the call, from any thread; the engine stops within one step. Harmless when it is over."""
        self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            try:
                reply = next(self._call)
            except StopIteration:
                self._reader.close()
                raise
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            event = self._reader.read(reply.event)
            if event is not None:
                return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


class Client:
    """A client of one Penstock service. Threads may share it; it connects at the first call.

    >>> with Client("127.0.0.1:50051") as client:
    ...     reply = client.generate("What is 17 + 25?", thinking="thinking", budget=64)
    ...     reply.thought, reply.answer, reply.usage, reply.cost

    Parameters, deadlines and exceptions are those of `AsyncClient`.
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
        credentials, options = credentials_for(tls), options_for(target, channel_options)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._model = model_pb2_grpc.ModelServiceStub(self._channel)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        flush_interval_seconds: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Starts a generation and gives its events as they come.

        `flush_interval_seconds` gathers deltas for that long: fewer, larger events.
        """
        request = pb.StreamGenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        if flush_interval_seconds is not None:
            request.flush_interval.FromNanoseconds(round(flush_interval_seconds * 1e9))
        return Stream(self._generation.StreamGenerate(request, **self._call_options(timeout)))

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Response:
        """One reply, complete."""
        request = pb.GenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        return Response.from_proto(self._reply(self._generation.Generate, request, timeout))

    def count(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> TokenCount:
        """Counts tokens and cost without generating, and foretells what the overflow policy would drop."""
        request = pb.CountTokensRequest(spec=build_spec(prompt, spec=spec, **options))
        return TokenCount.from_proto(self._reply(self._generation.CountTokens, request, timeout))

    def model(self, name: str = "", *, timeout: float | None = None) -> ModelCard:
        """What is served: the model's card, profile, prices and limits."""
        return ModelCard.from_proto(self._reply(self._model.GetModel, model_pb2.GetModelRequest(model=name), timeout))

    def close(self) -> None:
        """Cancels what runs and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call_options(self, timeout: float | None) -> dict[str, Any]:
        return {"timeout": self.timeout if timeout is None else timeout, "metadata": self._metadata}

    def _reply(self, method: Callable[..., ReplyT], request: object, timeout: float | None) -> ReplyT:
        try:
            return method(request, **self._call_options(timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
