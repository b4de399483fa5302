"""The blocking client: the same methods as the asyncio client, on gRPC's own blocking stubs."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, routing_pb2_grpc

from penstock_client.card import ModelCard, TokenCount
from penstock_client.channel import (
    ChannelOptions,
    Metadata,
    Tls,
    credentials_for,
    metadata_for,
    more_metadata,
    options_for,
    resolve,
    with_api_key,
)
from penstock_client.errors import PenstockError, from_rpc_error, rate_limits_of
from penstock_client.events import Event
from penstock_client.experts import ExpertLoad, load_request, watch_request
from penstock_client.leaving import CANCEL_SECONDS, CLOSE_SECONDS, READ_SECONDS, closed, end_at_exit
from penstock_client.messages import ToolCall, ToolResult
from penstock_client.reconnect import Link, Reconnect, checked
from penstock_client.response import Response
from penstock_client.retries import Retries, checked_retries
from penstock_client.seconds import call_seconds
from penstock_client.spec import (
    GenerationOptions,
    Prompt,
    build_spec,
    interact_request,
    resume_request,
    steer_request,
    stream_request,
)
from penstock_client.sync_stream import BaseStream, Interaction, Stream
from penstock_client.tool_loop import Hooks, Run, ToolLoop
from penstock_client.tracing import CallSpan
from penstock_client.values import Steered

ReplyT = TypeVar("ReplyT")
StreamT = TypeVar("StreamT", bound=BaseStream)
_GENERATION, _MODEL = "penstock.v1.GenerationService", "penstock.v1.ModelService"
_ROUTING = "penstock.v1.RoutingService"


class Client:
    """A client of one Penstock service. Threads may share it; it connects at the first call.

    >>> with Client("127.0.0.1:50051") as client:
    ...     reply = client.generate("What is 48 + 27 + 36 + 15?", thinking="thinking", budget=64)
    ...     reply.thought, reply.answer, reply.usage, reply.cost

    Parameters, attributes, deadlines and exceptions are those of `AsyncClient`.
    """

    # One parameter for each option.
    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls = None,
        timeout: float | None = None,
        retries: int = 0,
        metadata: Metadata = (),
        reconnect: Reconnect | None = Reconnect(),  # noqa: B008 - frozen
        channel_options: ChannelOptions = (),
    ) -> None:
        target, api_key, tls = resolve(target, api_key, tls)
        self.target = target
        self.timeout = call_seconds(timeout)
        self.retries = checked_retries(retries)
        self._reconnect = checked(reconnect)
        self._tls = tls
        self._metadata = metadata_for(target, api_key, tls) + more_metadata(metadata)
        credentials, options = credentials_for(tls), options_for(target, channel_options)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._model = model_pb2_grpc.ModelServiceStub(self._channel)
        self._routing = routing_pb2_grpc.RoutingServiceStub(self._channel)
        self._streams: weakref.WeakSet[BaseStream] = weakref.WeakSet()
        self._cancelling: set[Any] = set()
        self._apart: set[threading.Thread] = set()
        self._closed = False
        self._root: Self | None = None
        end_at_exit(self)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        resumable: bool | None = None,
        flush_interval_seconds: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Start a generation and return the stream of its events. See `AsyncClient.stream`."""
        resumable = self._reconnect is not None if resumable is None else resumable
        request = stream_request(build_spec(prompt, spec=spec, **options), resumable, flush_interval_seconds)
        link = self._link("StreamGenerate", timeout, resumable)
        stream = Stream(link, lambda left: self._generation.StreamGenerate(request, **link.options(left)))
        stream.response.response_format = options.get("response_format")
        return self._opened(stream)

    def interact(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        flush_interval_seconds: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Interaction:
        """Start a generation that can be controlled while it runs. See `AsyncClient.interact`."""
        start = interact_request(build_spec(prompt, spec=spec, **options), flush_interval_seconds)
        link = self._link("Interact", timeout)
        interaction = Interaction(link, start, lambda actions: self._generation.Interact(actions, **link.options()))
        interaction.response.response_format = options.get("response_format")
        return self._opened(interaction)

    def resume(
        self, generation_id: str, resume_token: str, last_sequence: int = 0, *, timeout: float | None = None
    ) -> Stream:
        """Resume a stream that this process or another one started. See `AsyncClient.resume`."""
        request = resume_request(generation_id, resume_token, last_sequence)
        link = self._link("Resume", timeout)
        return self._opened(Stream(link, lambda left: self._generation.Resume(request, **link.options(left)), request))

    # One parameter for each option.
    def steer(
        self,
        generation_id: str,
        resume_token: str,
        *,
        finish_thinking: bool = False,
        budget: int | None = None,
        cancel: bool = False,
        timeout: float | None = None,
    ) -> Steered:
        """Steer a resumable generation that runs. See `AsyncClient.steer`."""
        request = steer_request(
            generation_id, resume_token, finish_thinking=finish_thinking, budget=budget, cancel=cancel
        )
        method, timeout = self._generation.Steer, self._read_timeout(timeout)
        return self._reply(f"{_GENERATION}/Steer", method, request, timeout, Steered.from_proto)

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Response:
        """Generate a reply and return it when it is complete. See `AsyncClient.generate`."""
        request = pb.GenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        method = self._generation.Generate
        reply = self._reply(f"{_GENERATION}/Generate", method, request, timeout, Response.from_proto)
        reply.response_format = options.get("response_format")
        return reply

    # One parameter for each option.
    def run(
        self,
        prompt: Prompt,
        *,
        max_turns: int = 8,
        timeout: float | None = None,
        on_event: Callable[[Event], object] | None = None,
        on_result: Callable[[ToolCall, ToolResult], object] | None = None,
        on_tool_error: Callable[[ToolCall, Exception], str] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Run:
        """Ask and execute tool calls until a reply has none. See `AsyncClient.run`; the tools are not async."""
        hooks = Hooks(on_event, on_result, on_tool_error)
        loop = ToolLoop(prompt, options, max_turns=max_turns, timeout=timeout, hooks=hooks, allows_async=False)
        try:
            while True:
                with self.stream(loop.messages, timeout=loop.seconds_left(), **loop.options) as stream:
                    for event in stream:
                        loop.saw(event)
                calls = loop.calls_of(stream.response)
                if not calls:
                    return loop.run
                loop.answer(stream.response, [loop.execute(call) for call in calls])
        except PenstockError as failure:
            failure.run = loop.run
            raise

    def count(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> TokenCount:
        """Count tokens and bound the cost without generating. See `AsyncClient.count`."""
        request = pb.CountTokensRequest(spec=build_spec(prompt, spec=spec, **options))
        method, timeout = self._generation.CountTokens, self._read_timeout(timeout)
        return self._reply(f"{_GENERATION}/CountTokens", method, request, timeout, TokenCount.from_proto)

    def model(self, name: str = "", *, timeout: float | None = None) -> ModelCard:
        """Return the served model's card: profile, prices, limits and defaults. See `AsyncClient.model`."""
        request, timeout = model_pb2.GetModelRequest(model=name), self._read_timeout(timeout)
        return self._reply(f"{_MODEL}/GetModel", self._model.GetModel, request, timeout, ModelCard.from_proto)

    def expert_load(
        self, *, window_seconds: float | None = None, ranks: int | None = None, timeout: float | None = None
    ) -> ExpertLoad:
        """Return the number of tokens that each expert processed. See `AsyncClient.expert_load`."""
        request, method = load_request(window_seconds, ranks), self._routing.GetExpertLoad
        timeout = self._read_timeout(timeout)
        return self._reply(
            f"{_ROUTING}/GetExpertLoad", method, request, timeout, lambda reply: ExpertLoad.from_proto(reply.load)
        )

    def watch_expert_load(
        self,
        *,
        window_seconds: float | None = None,
        interval_seconds: float | None = None,
        ranks: int | None = None,
        timeout: float | None = None,
    ) -> Generator[ExpertLoad, None, None]:
        """Yield the expert load again and again. See `AsyncClient.watch_expert_load`."""
        self._check_open()
        span = CallSpan(f"{_ROUTING}/WatchExpertLoad", self._metadata, self.target)
        timeout = call_seconds(timeout, self.timeout)
        request = watch_request(window_seconds, interval_seconds, ranks)
        call = self._routing.WatchExpertLoad(request, timeout=timeout, metadata=span.metadata)
        try:
            for reply in call:
                yield ExpertLoad.from_proto(reply.load)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            span.end(failure=failure)
            raise failure from None
        finally:
            call.cancel()
            span.end()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        metadata: Metadata = (),
        api_key: str | None = None,
    ) -> Self:
        """Return a client with other defaults that shares the connection. See `AsyncClient.with_options`."""
        other = copy.copy(self)
        other._root = self._root or self
        other.timeout = call_seconds(timeout, self.timeout)
        other.retries = self.retries if retries is None else checked_retries(retries)
        other._metadata = (*self._metadata, *more_metadata(metadata))
        if api_key is not None:
            other._metadata = with_api_key(other._metadata, metadata_for(self.target, api_key or None, self._tls))
        return other

    def close(self) -> None:
        """Cancel the generations that still run, wait at most one second for the server's answer, and disconnect."""
        if self._root is not None:
            self._root.close()
            return
        self._end_streams()
        self._closed = True
        closed(self)
        self._channel.close()

    def _end_streams(self) -> None:
        """Close every open stream and wait at most one second for the server's answer."""
        for stream in list(self._streams):
            stream.close()
        ends = time.monotonic() + CLOSE_SECONDS
        for thread in list(self._apart):
            thread.join(max(0.0, ends - time.monotonic()))
        for call in list(self._cancelling):
            with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, ends - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, stream: StreamT) -> StreamT:
        self._streams.add(stream)
        return stream

    def _link(self, method: str, timeout: float | None, resumable: bool = False) -> Link:
        self._check_open()
        return Link(
            span=CallSpan(f"{_GENERATION}/{method}", self._metadata, self.target),
            timeout=call_seconds(timeout, self.timeout),
            policy=self._reconnect,
            resume=self._generation.Resume,
            abandon=self._abandon,
            steer=self.steer,
            resumable=resumable,
            retries=self.retries,
            run_apart=self._run_apart,
        )

    def _read_timeout(self, timeout: float | None) -> float | None:
        return READ_SECONDS if timeout is None and self.timeout is None else timeout

    def _check_open(self) -> None:
        if (self._root or self)._closed:
            raise RuntimeError("the client is closed")

    def _run_apart(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            work()
            self._apart.discard(thread)

        thread = threading.Thread(target=run, daemon=True, name="penstock-leave")
        self._apart.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._apart.discard(thread)
            raise

    def _abandon(self, request: pb.CancelRequest) -> None:
        """Cancel a generation on the server without waiting for the answer."""
        with contextlib.suppress(ValueError):  # the channel is closed already
            call = self._generation.Cancel.future(request, timeout=CANCEL_SECONDS, metadata=self._metadata)
            self._cancelling.add(call)
            call.add_done_callback(self._cancelling.discard)

    def _reply(
        self,
        name: str,
        method: Any,
        request: object,
        timeout: float | None,
        read: Callable[[Any], ReplyT],
    ) -> ReplyT:
        self._check_open()
        span = CallSpan(name, self._metadata, self.target)
        attempts = Retries(self.retries, call_seconds(timeout, self.timeout), name)
        while True:
            try:
                raw, call = method.with_call(request, timeout=attempts.seconds_left, metadata=span.metadata)
                reply = read(raw)
                if isinstance(reply, Response):
                    reply.rate_limits = rate_limits_of(call.trailing_metadata())
                break
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                wait = attempts.wait_seconds(failure)
                if wait is None:
                    span.end(failure=failure)
                    raise failure from None
            time.sleep(wait)
            self._check_open()
        span.end(reply if isinstance(reply, Response) else None)
        return reply
