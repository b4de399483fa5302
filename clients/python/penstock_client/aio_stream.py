"""The streams of the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
import grpc.aio
from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.errors import (
    BrokenStream,
    Cancelled,
    DeadlineExceeded,
    PenstockError,
    from_rpc_error,
    rate_limits_of,
)
from penstock_client.events import AnswerDelta, Event, EventReader
from penstock_client.leaving import START_SECONDS
from penstock_client.reconnect import Link, Recovery
from penstock_client.response import Response
from penstock_client.retries import Retries
from penstock_client.values import Steered

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class BaseAsyncStream:
    """Read the events of one generation: the common part of `AsyncStream` and `AsyncInteraction`."""

    def __init__(
        self, link: Link, start: Callable[[float | None], Any], resumed: pb.ResumeRequest | None = None
    ) -> None:
        self._link = link
        self._reader = EventReader()
        if resumed is not None:
            self._reader.resumed(resumed)
        self._recovery = Recovery(self._reader, link.policy, link.timeout)
        self._left = False
        self._first: asyncio.Future[Any] | None = None
        self._start = start
        self._retries = Retries(link.retries, link.timeout, "StreamGenerate")
        self._call = start(None)
        with contextlib.suppress(RuntimeError):  # no loop runs yet
            if link.resumable and asyncio.get_running_loop():
                self._read_first()  # at once, for the token in it, whenever the user reads it

    @property
    def response(self) -> Response:
        """The reply so far; it grows with each event."""
        return self._reader.response

    @property
    def last_sequence(self) -> int:
        """Sequence number of the newest event, as `client.resume` needs it; 0 before the first."""
        return self._reader.last_sequence

    @property
    def reconnections(self) -> int:
        """Number of connections that were lost so far."""
        return self._recovery.reconnections

    def cancel(self) -> None:
        """End the generation; the engine stops within one step. Do nothing if it is over."""
        if self._left:
            return
        self._left = True
        self._accept_first()
        if self._link.resumable and not self._reader.last_sequence:
            with contextlib.suppress(RuntimeError):  # no loop runs any more
                self._link.run_apart(self._end_when_started)
                return
        self._end()

    def _end(self) -> None:
        self._call.cancel()
        if self._recovery.is_orphan:
            self._link.abandon(self._recovery.cancel_request())
        self._link.span.end(self.response)

    def _accept_first(self) -> None:
        """Process the first event if it has come and was not read yet."""
        first, self._first = self._first, None
        if first is None or not first.done():
            self._first = first
        elif not first.cancelled() and first.exception() is None and first.result() is not grpc.aio.EOF:
            with contextlib.suppress(BrokenStream):
                self._recovery.accept(first.result().event)

    def _orphan(self) -> pb.CancelRequest | None:
        """Return the request that ends the generation from outside the event loop; None if it is over."""
        if not self._left:
            self._accept_first()
        if self._left or not self._recovery.is_orphan:
            return None
        self._left = True
        return self._recovery.cancel_request()

    async def _end_when_started(self) -> None:
        """Wait at most `START_SECONDS` for the first event's resume token and end the generation with it."""
        # Cancelling the call is not enough: if the event is on its way, the server sees only a lost connection.
        try:
            async with asyncio.timeout(START_SECONDS):
                reply = await (self._first or self._read_first())
            if reply is not grpc.aio.EOF:
                self._recovery.accept(reply.event)
        except (TimeoutError, grpc.RpcError, BrokenStream, asyncio.CancelledError):
            pass
        self._end()

    def detach(self) -> None:
        """Close the stream and leave a resumable generation running.

        `client.resume` can read it within the server's grace period.
        """
        self._left = True
        self._call.cancel()
        self._link.span.end(self.response)

    def close(self) -> None:
        """Close the stream and end the generation if it still runs, without waiting."""
        BaseAsyncStream.cancel(self)

    def text(self) -> AsyncTexts:
        """Iterate over the first candidate's answer as it comes; leaving the loop ends the generation."""
        return AsyncTexts(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return _Loop(self)

    async def __anext__(self) -> Event:
        try:
            return await self._next()
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if self._left and ours is not None and not ours.cancelling():
                # gRPC raises this for a call that `close()` or `cancel()` cancelled; the task itself was not cancelled.
                raise _was_left() from None
            self.close()
            raise
        except Exception:
            raise
        except BaseException:  # Ctrl-C, where the loop does not make it a cancellation
            self.close()
            raise

    async def _next(self) -> Event:
        while True:
            if self._left and not self._reader.finished:
                raise _was_left()
            failure: PenstockError | None = None
            try:
                # read(), not iteration: gRPC's iterator keeps the call alive after the loop that held it is gone.
                reply = await (self._call.read() if self._reader.last_sequence else self._read())
                if reply is not grpc.aio.EOF:
                    event = self._recovery.accept(reply.event)
                    if event is not None:
                        return event
                    continue
                if await self._call.code() is not grpc.StatusCode.OK:
                    failure = from_rpc_error(await _error_of(self._call))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            except BrokenStream as broken:
                self._give_up(broken)
                raise
            if self._reader.finished:  # a failure after the last event loses nothing
                self.response.rate_limits = rate_limits_of(await self._call.trailing_metadata())
                self.close()
                raise StopAsyncIteration
            failure = failure or BrokenStream.cut_short()
            if not self._reader.last_sequence and (pause := self._retries.wait_seconds(failure)) is not None:
                await asyncio.sleep(pause)
                if not self._left:
                    self._call, self._first = self._start(self._recovery.seconds_left), None
                continue
            last = await self._go_on(failure)
            if last is not None:
                return last

    async def _read(self) -> Any:
        """Read the first event."""
        if not self._link.resumable:
            return await self._call.read()
        # Cancelling a task would cancel a plain read and its call, and lose the token that ends the generation.
        reply = await asyncio.shield(self._first or self._read_first())
        self._first = None
        return reply

    def _read_first(self) -> asyncio.Future[Any]:
        self._first = asyncio.ensure_future(self._call.read())
        self._first.add_done_callback(_retrieve)
        return self._first

    async def _go_on(self, failure: PenstockError) -> Event | None:
        """Resume over another connection and return None, or return the last event of a drained stream.

        Raises `failure` where the stream cannot be resumed.
        """
        try:
            if self._left:
                raise failure
            wait = self._recovery.wait_seconds(failure)
        except PenstockError as final:
            last = self._recovery.last_event()
            if last is None:
                self._give_up(final)
                raise
            return last
        await asyncio.sleep(wait)
        if self._left:
            raise _was_left()
        request = self._recovery.request()
        self._link.span.reconnected(request.last_sequence)
        self._call = self._link.resume(request, **self._link.options(self._recovery.seconds_left))
        return None

    def _give_up(self, failure: PenstockError) -> None:
        self._link.span.end(self.response, failure)
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()


class AsyncTexts:
    """The texts of the first candidate's answer. Leaving an `async for` loop over them ends the stream."""

    def __init__(self, stream: BaseAsyncStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[str]:
        return _Loop(self)

    async def __anext__(self) -> str:
        while True:
            event = await self._stream.__anext__()
            if isinstance(event, AnswerDelta) and event.candidate_index == 0 and event.text:
                return event.text

    def close(self) -> None:
        """Close the stream and end the generation if it still runs, without waiting."""
        self._stream.close()

    async def aclose(self) -> None:
        """Do what `close` does; `contextlib.aclosing` calls it."""
        self.close()


class _Source(Protocol[T_co]):
    def __anext__(self) -> Awaitable[T_co]: ...
    def close(self) -> None: ...


class _Loop(Generic[T]):
    """One `async for` loop over a stream or its texts. Dropping the iterator closes the stream."""

    def __init__(self, source: _Source[T]) -> None:
        self._source = source

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[T]:
        return self._source.__anext__()

    def __del__(self) -> None:
        self._source.close()


def _was_left() -> Cancelled:
    return Cancelled("the stream was left before its end", code=grpc.StatusCode.CANCELLED)


def _retrieve(reading: asyncio.Future[Any]) -> None:
    """Read the result, so that asyncio does not log that an exception was never retrieved."""
    if not reading.cancelled():
        reading.exception()


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


_WRITE_FAILED = "Internal error from Core"  # grpc/_cython/_cygrpc/aio/call.pyx.pxi, set_internal_error


class AsyncStream(BaseAsyncStream):
    """The events of one generation. Leaving the loop or the `async with` ends the generation if it still runs.

    Cancelling the task that reads the stream ends it too. A later loop over a stream that was left raises `Cancelled`.
    To read some events and continue later, call `anext(stream)`. `detach()` leaves the generation running.

    >>> async with client.stream("What is 48 + 27 + 36 + 15?", budget=64) as stream:
    ...     async for event in stream:
    ...         ...
    >>> stream.response.answer

    `async for event in client.stream(...)` is enough where only the loop needs the stream.

    A resumable stream can be steered once its first event was read. That is a call of its own: see
    `AsyncClient.steer`.
    """

    async def finish_thinking(self) -> Steered:
        """End the thought now and start the answer. Raise RuntimeError for a stream without a resume token."""
        return await self._steer(finish_thinking=True)

    async def change_budget(self, budget: int) -> Steered:
        """Change the budget of the current thought. Raise RuntimeError for a stream without a resume token.

        Args:
            budget: Tokens, counted from the thought's start; -1 is no limit.
        """
        return await self._steer(budget=budget)

    async def _steer(self, **action: Any) -> Steered:
        reply: Steered = await self._link.steer(*self._recovery.place(), **action)
        return reply


class AsyncInteraction(BaseAsyncStream):
    """A stream that can be controlled while it runs; its methods do not wait.

    >>> async with client.interact("What is 48 + 27 + 36 + 15?", budget=-1) as interaction:
    ...     async for event in interaction:
    ...         if len(interaction.response.thought) > 1000:
    ...             interaction.finish_thinking()
    """

    def __init__(self, link: Link, start: pb.InteractRequest, call: Callable[[AsyncIterator[Any], Any], Any]) -> None:
        self._actions: asyncio.Queue[pb.InteractRequest | None] = asyncio.Queue()
        self._actions.put_nowait(start)
        self._again: Callable[[], Any] | None = lambda: call(
            _until_none(self._restarted(start)), self._recovery.seconds_left
        )
        # No policy: the stream is not resumable, and one that another server continued could not be controlled.
        super().__init__(link.without_policy(), lambda left: call(_until_none(self._actions), left))

    def _restarted(self, start: pb.InteractRequest) -> asyncio.Queue[pb.InteractRequest | None]:
        old, self._actions = self._actions, asyncio.Queue()
        self._actions.put_nowait(start)
        while not old.empty():
            self._actions.put_nowait(old.get_nowait())
        return self._actions

    async def _go_on(self, failure: PenstockError) -> Event | None:
        # gRPC raises this where the server ended the call before the start was written, and drops the server's status.
        # Nothing ran, so a second call is safe and brings the status. It also raises this where the deadline passed.
        again, self._again = self._again, None
        if failure.message == _WRITE_FAILED and not self.last_sequence and not self._left:
            left = self._recovery.seconds_left
            if left is not None and left <= 0:
                failure = DeadlineExceeded(
                    "the deadline passed before the call was sent", code=grpc.StatusCode.DEADLINE_EXCEEDED
                )
                failure.count()
            elif again is not None:
                self._call = again()
                return None
        return await super()._go_on(failure)

    def finish_thinking(self) -> None:
        """End the thought now and start the answer. Do nothing once the answer has begun."""
        self._actions.put_nowait(pb.InteractRequest(finish_thinking=pb.FinishThinking()))

    def change_budget(self, budget: int) -> None:
        """Change the budget of the current thought.

        Args:
            budget: Tokens, counted from the thought's start; -1 is no limit.
        """
        self._actions.put_nowait(pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget)))

    def cancel(self) -> None:
        """End the generation. The stream still gets its last event, with usage and cost; `close()` does not wait."""
        self._actions.put_nowait(pb.InteractRequest(cancel=pb.Cancel()))

    def close(self) -> None:
        """Close the stream and end the generation if it still runs, without waiting."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._actions.put_nowait(None)  # gRPC's task that waits for actions ends
        super().close()


async def _until_none(actions: asyncio.Queue[pb.InteractRequest | None]) -> AsyncIterator[pb.InteractRequest]:
    while (action := await actions.get()) is not None:
        yield action
