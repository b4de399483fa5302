"""The asyncio client."""
# ruff: noqa: ASYNC109 - `timeout` is the deadline that the server sees, which asyncio.timeout cannot be.

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, routing_pb2_grpc

from penstock_client.aio_stream import AsyncInteraction, AsyncStream, BaseAsyncStream
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
from penstock_client.errors import Cancelled, PenstockError, from_rpc_error, rate_limits_of
from penstock_client.events import Event
from penstock_client.experts import ExpertLoad, load_request, watch_request
from penstock_client.leaving import (
    CANCEL_SECONDS,
    CLOSE_SECONDS,
    READ_SECONDS,
    cancel_apart,
    closed,
    end_at_exit,
    until_loop_ends,
    wait_for_all,
)
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
from penstock_client.tool_loop import Hooks, Run, ToolLoop
from penstock_client.tracing import CallSpan
from penstock_client.values import Steered

if TYPE_CHECKING:
    from penstock_proto.v1.generation_pb2_grpc import GenerationServiceAsyncStub
    from penstock_proto.v1.model_pb2_grpc import ModelServiceAsyncStub
    from penstock_proto.v1.routing_pb2_grpc import RoutingServiceAsyncStub

ReplyT = TypeVar("ReplyT")
StreamT = TypeVar("StreamT", bound=BaseAsyncStream)
_GENERATION, _MODEL = "penstock.v1.GenerationService", "penstock.v1.ModelService"
_ROUTING = "penstock.v1.RoutingService"


class AsyncClient:
    """A client of one Penstock service, for asyncio. Use it on one event loop; it connects at the first call.

    >>> async with AsyncClient("127.0.0.1:50051") as client:
    ...     reply = await client.generate("What is 48 + 27 + 36 + 15?", thinking="thinking", budget=64)
    ...     reply.thought, reply.answer, reply.usage, reply.cost

    Every method raises the exceptions of `penstock_client.errors`, and TypeError or ValueError for wrong use.

    Args:
        target: A gRPC target such as `host:50051`. Default: PENSTOCK_TARGET, then 127.0.0.1:50051.
        api_key: The key to authenticate with. Default: PENSTOCK_API_KEY, then the content of PENSTOCK_API_KEY_FILE.
        tls: Whether and how to use TLS, see `penstock_client.channel.Tls`. Default: PENSTOCK_CA_FILE, then
            PENSTOCK_TLS.
        timeout: Seconds, for each call that gives none itself. It becomes the call's deadline: the server stops
            working at it, and thinking="auto" plans so that the answer arrives before it. Default: no timeout for
            calls that generate, 30 seconds for the others.
        retries: How many times a call is tried again, within its timeout, after the server refused it and gave the
            time to wait. Default: never.
        metadata: gRPC metadata that is sent with every call.
        reconnect: Bounds of the attempts to resume a stream whose connection dropped. None: do not resume.
        channel_options: gRPC channel options; they override the client's own.

    Attributes:
        target: The gRPC target.
        timeout: Default timeout of a call, in seconds, or None.
        retries: Default number of retries of a call.

    Raises:
        OSError: A file that was named cannot be read.
        ValueError: A setting is invalid, or the API key would be sent without TLS to another machine.
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
        self._credentials = credentials_for(tls)
        self._options = options_for(target, channel_options)
        self._channel: grpc.aio.Channel | None = None
        self._generation_stub: GenerationServiceAsyncStub | None = None
        self._streams: weakref.WeakSet[BaseAsyncStream] = weakref.WeakSet()
        self._left: set[asyncio.Task[None]] = set()
        self._loop_end: AsyncGenerator[None] | None = None
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
    ) -> AsyncStream:
        """Start a generation and return the stream of its events.

        Args:
            prompt: One user message, or a conversation.
            spec: A complete request instead of `prompt` and `options`.
            timeout: Seconds until the deadline of the whole stream. Default: the client's.
            resumable: Whether the client resumes the stream after a dropped connection; every event still comes once,
                in order. Leaving the stream ends the generation all the same, because the client cancels it. A
                generation that the client cannot reach any more is ended by the server after its grace period. False
                saves the server from keeping the events. Default: True, unless the client has `reconnect=None`.
            flush_interval_seconds: Longest time for which the server collects deltas into one event. The first deltas
                and the last are sent at once. Default: do not collect.
            **options: The fields of `GenerationOptions`.

        Raises:
            TypeError: An option is unknown or has the wrong type.
            ValueError: An option has a value that no request can hold.
        """
        resumable = self._reconnect is not None if resumable is None else resumable
        request = stream_request(build_spec(prompt, spec=spec, **options), resumable, flush_interval_seconds)
        link = self._link("StreamGenerate", timeout, resumable)
        stream = AsyncStream(link, lambda left: self._generation.StreamGenerate(request, **link.options(left)))
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
    ) -> AsyncInteraction:
        """Start a generation that can be controlled while it runs: finish thinking, change the budget, cancel.

        Such a stream cannot be resumed: a dropped connection ends it. Parameters and errors are those of `stream`.
        """
        start = interact_request(build_spec(prompt, spec=spec, **options), flush_interval_seconds)
        link = self._link("Interact", timeout)
        interaction = AsyncInteraction(
            link, start, lambda actions, left: self._generation.Interact(actions, **link.options(left))
        )
        interaction.response.response_format = options.get("response_format")
        return self._opened(interaction)

    def resume(
        self, generation_id: str, resume_token: str, last_sequence: int = 0, *, timeout: float | None = None
    ) -> AsyncStream:
        """Resume a stream that this process or another one started.

        The stream's `response` holds only what comes after `last_sequence`. Reading the stream raises
        `GenerationNotFound` if the generation is unknown, expired or belongs to another caller.

        Args:
            generation_id: `response.generation_id` of the stream.
            resume_token: `response.resume_token` of the stream.
            last_sequence: Sequence number of the last event that was received. 0 replays all events.
            timeout: Seconds until the deadline of the resumed stream. Default: the client's.
        """
        request = resume_request(generation_id, resume_token, last_sequence)
        link = self._link("Resume", timeout)
        return self._opened(
            AsyncStream(link, lambda left: self._generation.Resume(request, **link.options(left)), request)
        )

    # One parameter for each option.
    async def steer(
        self,
        generation_id: str,
        resume_token: str,
        *,
        finish_thinking: bool = False,
        budget: int | None = None,
        cancel: bool = False,
        timeout: float | None = None,
    ) -> Steered:
        """Steer a resumable generation that runs: exactly one action, which takes effect at the next engine step.

        For a caller that cannot hold an `interact` stream, or another process than the one that reads the stream. The
        call needs the server where the generation runs.

        Args:
            generation_id: `response.generation_id` of the stream.
            resume_token: `response.resume_token` of the stream.
            finish_thinking: End the thought now and start the answer.
            budget: New budget of the thought in tokens, counted from its start; -1 is no limit.
            cancel: End the generation. Its stream still gets its last event, with usage and cost.
            timeout: Seconds. Default: the client's, or 30.

        Raises:
            GenerationNotFound: It is unknown, expired, on another server or another caller's; or it has ended, and
                `error.metadata["state"]` is "finished".
            InvalidRequest: The budget is below -1, or the generation was steered as often as the server allows.
            ValueError: Not exactly one action is given.
        """
        request = steer_request(
            generation_id, resume_token, finish_thinking=finish_thinking, budget=budget, cancel=cancel
        )
        method, timeout = self._generation.Steer, self._read_timeout(timeout)
        return await self._reply(f"{_GENERATION}/Steer", method, request, timeout, Steered.from_proto)

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Response:
        """Generate a reply and return it when it is complete. Parameters and errors are those of `stream`."""
        request = pb.GenerateRequest(spec=build_spec(prompt, spec=spec, **options))
        method = self._generation.Generate
        reply = await self._reply(f"{_GENERATION}/Generate", method, request, timeout, Response.from_proto)
        reply.response_format = options.get("response_format")
        return reply

    # One parameter for each option.
    async def run(
        self,
        prompt: Prompt,
        *,
        max_turns: int = 8,
        timeout: float | None = None,
        on_event: Callable[[Event], object] | None = None,
        on_result: Callable[[ToolCall, ToolResult], object] | None = None,
        on_tool_error: Callable[[ToolCall, Exception], str | Awaitable[str]] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Run:
        """Ask, execute the tool calls of the reply, send the results, and repeat until a reply has no calls.

        >>> run = await client.run("How warm is it in Oslo?", tools=[weather], max_turns=4)
        >>> run.answer, run.usage, run.cost

        Only complete calls of a tool in `tools` (and in `allowed_tools`) are executed, each once, also where the
        connection drops, after its arguments are checked. For other calls, and for a tool that raises, the model is
        given an error result: the text of a `ToolError`, of other exceptions the type only, because their texts may
        hold what the model must not repeat. Async functions run concurrently, other functions one after another in a
        thread. With `tool_mode="required"` the first reply must call; later ones are as with "validated".

        Args:
            prompt: One user message, or a conversation. A `Conversation` grows with the replies and the results.
            max_turns: Highest number of replies.
            timeout: Seconds for all turns and tools together. Default: no limit but the client's for each turn.
            on_event: Gets each event of each turn. The three functions may be async.
            on_result: Gets each call with its result.
            on_tool_error: Gets a call and the exception that its tool raised, and returns the text for the model. What
                it raises itself ends the run.
            **options: The fields of `GenerationOptions`; `tools` are functions.

        Returns:
            All turns, with the messages, the usage and the cost of them all.

        Raises:
            PenstockError: A turn failed; `run` of the exception has the turns before it.
            TurnLimitReached: The last turn still has calls; they were not executed.
            TypeError: A tool has no function.
        """
        hooks = Hooks(on_event, on_result, on_tool_error)
        loop = ToolLoop(prompt, options, max_turns=max_turns, timeout=timeout, hooks=hooks, allows_async=True)
        try:
            while True:
                async with self.stream(loop.messages, timeout=loop.seconds_left(), **loop.options) as stream:
                    async for event in stream:
                        told = loop.saw(event)
                        if inspect.isawaitable(told):
                            await told
                calls = loop.calls_of(stream.response)
                if not calls:
                    return loop.run
                loop.answer(stream.response, await loop.execute_all(calls))
        except PenstockError as failure:
            failure.run = loop.run
            raise

    async def count(
        self,
        prompt: Prompt | None = None,
        *,
        spec: pb.GenerationSpec | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> TokenCount:
        """Count tokens, bound the cost and predict what the overflow policy would drop, without generating.

        Parameters and errors are those of `stream`; the default timeout is 30 seconds.
        """
        request = pb.CountTokensRequest(spec=build_spec(prompt, spec=spec, **options))
        method, timeout = self._generation.CountTokens, self._read_timeout(timeout)
        return await self._reply(f"{_GENERATION}/CountTokens", method, request, timeout, TokenCount.from_proto)

    async def model(self, name: str = "", *, timeout: float | None = None) -> ModelCard:
        """Return the served model's card: profile, prices, limits and defaults.

        Args:
            name: Name of the model. Default: the served one.
            timeout: Seconds. Default: the client's, or 30.

        Raises:
            ModelNotFound: Another model is served.
        """
        request, timeout = model_pb2.GetModelRequest(model=name), self._read_timeout(timeout)
        return await self._reply(f"{_MODEL}/GetModel", self._model.GetModel, request, timeout, ModelCard.from_proto)

    async def expert_load(
        self, *, window_seconds: float | None = None, ranks: int | None = None, timeout: float | None = None
    ) -> ExpertLoad:
        """Return the number of tokens that each expert processed in the window that ends now.

        Args:
            window_seconds: Length of the window, at most 3600. Default: the server's.
            ranks: Number of expert-parallel ranks that the shares are computed for. Default: as served.
            timeout: Seconds. Default: the client's, or 30.

        Raises:
            FeatureOff: The server does not count expert load.
        """
        request, method = load_request(window_seconds, ranks), self._routing.GetExpertLoad
        timeout = self._read_timeout(timeout)
        return await self._reply(
            f"{_ROUTING}/GetExpertLoad", method, request, timeout, lambda reply: ExpertLoad.from_proto(reply.load)
        )

    async def watch_expert_load(
        self,
        *,
        window_seconds: float | None = None,
        interval_seconds: float | None = None,
        ranks: int | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[ExpertLoad, None]:
        """Yield the expert load again and again until the generator is closed.

        Args:
            window_seconds: Length of each window, at most 3600. Default: the server's.
            interval_seconds: Seconds between two values, in [0.1, 3600]. Default: 1.
            ranks: Number of expert-parallel ranks that the shares are computed for. Default: as served.
            timeout: Seconds until the stream ends. Default: the client's.

        Yields:
            One `ExpertLoad` for each interval.

        Raises:
            FeatureOff: The server does not count expert load.
        """
        self._check_open()
        span = CallSpan(f"{_ROUTING}/WatchExpertLoad", self._metadata, self.target)
        timeout = call_seconds(timeout, self.timeout)
        request = watch_request(window_seconds, interval_seconds, ranks)
        call = self._routing.WatchExpertLoad(request, timeout=timeout, metadata=span.metadata)
        try:
            async for reply in call:
                yield ExpertLoad.from_proto(reply.load)
        except asyncio.CancelledError:
            self._tell_closed()
            raise
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
        """Return a client with other defaults that shares the connection; closing one closes both.

        Args:
            timeout: Default timeout of a call, in seconds. Default: unchanged.
            retries: Default number of retries of a call. Default: unchanged.
            metadata: gRPC metadata, added to the client's own.
            api_key: The key to authenticate with, for a program that calls in the names of others; empty: no key.
                Default: unchanged.

        Raises:
            ValueError: The key is invalid, or it would be sent without TLS to another machine.
        """
        other = copy.copy(self)
        other._root = self._root or self
        other.timeout = call_seconds(timeout, self.timeout)
        other.retries = self.retries if retries is None else checked_retries(retries)
        other._metadata = (*self._metadata, *more_metadata(metadata))
        if api_key is not None:
            other._metadata = with_api_key(other._metadata, metadata_for(self.target, api_key or None, self._tls))
        return other

    async def close(self) -> None:
        """Cancel the generations that still run, wait at most one second for the server's answer, and disconnect."""
        if self._root is not None:
            await self._root.close()
            return
        self._closed = True
        closed(self)
        for stream in list(self._streams):
            stream.close()
        await wait_for_all(self._left, CLOSE_SECONDS)
        if self._channel is not None:
            await self._channel.close()
        if self._loop_end is not None:
            with contextlib.suppress(RuntimeError):  # the loop ends and waits for it already
                await self._loop_end.aclose()

    def _end_streams(self) -> None:
        """Cancel the generations that still run when the process ends, without an event loop."""
        requests = [request for stream in list(self._streams) if (request := stream._orphan()) is not None]
        if requests:
            cancel_apart(self._channel_apart, requests, self._metadata, wait=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self, stream: StreamT) -> StreamT:
        self._streams.add(stream)
        with contextlib.suppress(RuntimeError):  # no loop runs yet
            self._wait_at_loop_end()
        return stream

    def _wait_at_loop_end(self) -> None:
        """Have the event loop end the streams before it closes. Raises RuntimeError if no event loop runs."""
        if self._root is not None:
            self._root._wait_at_loop_end()
            return
        asyncio.get_running_loop()
        if self._loop_end is None:
            self._loop_end = until_loop_ends(self._streams, self._left)
            with contextlib.suppress(StopIteration):  # runs to the first `yield`, by which the loop learns of it
                self._loop_end.asend(None).send(None)

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

    def _tell_closed(self) -> None:
        """Raise Cancelled where `close()` cancelled the call: gRPC raises what asyncio raises in a cancelled task."""
        ours = asyncio.current_task()
        if (self._root or self)._closed and ours is not None and not ours.cancelling():
            raise Cancelled("the client is closed", code=grpc.StatusCode.CANCELLED) from None

    def _check_open(self) -> None:
        if (self._root or self)._closed:
            raise RuntimeError("the client is closed")

    def _run_apart(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` as a task that `close` waits for. Raises RuntimeError if no event loop runs."""
        self._wait_at_loop_end()
        task = asyncio.get_running_loop().create_task(work())
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    def _abandon(self, request: pb.CancelRequest) -> None:
        """Cancel a generation on the server without waiting for the answer."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # the loop has ended, and the stream with it
            cancel_apart(self._channel_apart, [request], self._metadata, wait=False)
        else:
            self._run_apart(lambda: self._cancel(request))

    async def _cancel(self, request: pb.CancelRequest) -> None:
        for seconds in (CANCEL_SECONDS, CLOSE_SECONDS):
            try:
                await self._generation.Cancel(request, timeout=seconds, metadata=self._metadata)
            except asyncio.CancelledError:  # the loop ends and waits a little longer: there is time for a second call
                continue
            except (grpc.RpcError, grpc.aio.UsageError):  # the server ends it after its grace period
                pass
            return

    def _channel_apart(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, self._options)
        return grpc.secure_channel(self.target, self._credentials, self._options)

    async def _reply(
        self,
        name: str,
        method: Callable[..., Any],
        request: object,
        timeout: float | None,
        read: Callable[[Any], ReplyT],
    ) -> ReplyT:
        self._check_open()
        span = CallSpan(name, self._metadata, self.target)
        attempts = Retries(self.retries, call_seconds(timeout, self.timeout), name)
        while True:
            try:
                call = method(request, timeout=attempts.seconds_left, metadata=span.metadata)
                reply = read(await call)
                if isinstance(reply, Response):
                    reply.rate_limits = rate_limits_of(await call.trailing_metadata())
                break
            except asyncio.CancelledError:
                self._tell_closed()
                raise
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                wait = attempts.wait_seconds(failure)
                if wait is None:
                    span.end(failure=failure)
                    raise failure from None
            await asyncio.sleep(wait)
            self._check_open()
        span.end(reply if isinstance(reply, Response) else None)
        return reply

    def _connect(self) -> grpc.aio.Channel:
        if self._root is not None:
            return self._root._connect()
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
        if self._root is not None:
            return self._root._generation
        if self._channel is None or self._generation_stub is None:
            self._generation_stub = generation_pb2_grpc.GenerationServiceStub(self._connect())
        return self._generation_stub

    @property
    def _model(self) -> ModelServiceAsyncStub:
        return model_pb2_grpc.ModelServiceStub(self._connect())

    @property
    def _routing(self) -> RoutingServiceAsyncStub:
        return routing_pb2_grpc.RoutingServiceStub(self._connect())
