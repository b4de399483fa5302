"""The streams of the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from penstock_client.errors import BrokenStream, PenstockError, from_rpc_error
from penstock_client.events import Event, EventReader
from penstock_client.reconnect import Link, Recovery
from penstock_client.response import Response
from penstock_client.v1 import generation_pb2 as pb


class AsyncStream:
    """The events of one generation. Leaving the loop or the `async with` ends the generation, if it still runs.

    >>> async with client.stream("What is 17 + 25?", budget=64) as stream:
    ...     async for event in stream:
    ...         ...
    >>> stream.response.answer

    `async for event in client.stream(...)` does the same where the stream is needed by nobody else.
    """

    def __init__(self, link: Link, start: Callable[[], Any], resumed: pb.ResumeRequest | None = None) -> None:
        self._link = link
        self._reader = EventReader()
        if resumed is not None:
            self._reader.resumed(resumed)
        self._recovery = Recovery(self._reader, link.policy, link.timeout)
        self._left = False
        self._call = start()

    @property
    def response(self) -> Response:
        """What has come so far."""
        return self._reader.response

    @property
    def last_sequence(self) -> int:
        """Of the newest event; with `response.generation_id` and `.resume_token` what `client.resume` needs."""
        return self._reader.last_sequence

    @property
    def reconnections(self) -> int:
        """How often the connection was made up for."""
        return self._recovery.reconnections

    def cancel(self) -> None:
        """Ends the generation; the engine stops within one step. Harmless when it is over."""
        if self._left:
            return
        self.detach()
        if self._recovery.is_orphan:
            self._link.abandon(self._recovery.cancel_request())

    def detach(self) -> None:
        """Leaves and lets a resumable generation go on, for `client.resume` to read within the server's grace."""
        self._left = True
        self._call.cancel()
        self._link.span.end(self.response)

    def close(self) -> None:
        """Leaves: ends the generation if it still runs, without waiting for anything."""
        AsyncStream.cancel(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            failure: PenstockError = BrokenStream.cut_short()
            try:
                # read(), not iteration: gRPC's iterator keeps the call alive after the loop that held it is gone.
                reply = await self._call.read()
                if reply is not grpc.aio.EOF:
                    event = self._recovery.take(reply.event)
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
            if self._reader.finished:  # whatever happens after the last event is of no concern
                self.close()
                raise StopAsyncIteration
            last = await self._go_on(failure)
            if last is not None:
                return last

    async def _go_on(self, failure: PenstockError) -> Event | None:
        """Resumes over another connection. Raises `failure` where that cannot be; the event ends a drained stream."""
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


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


_WRITE_FAILED = "Internal error from Core"  # grpc/_cython/_cygrpc/aio/call.pyx.pxi, set_internal_error


class AsyncInteraction(AsyncStream):
    """A stream that is steered while it runs; its methods do not wait.

    >>> async with client.interact("Prove it.", budget=-1) as interaction:
    ...     async for event in interaction:
    ...         if len(interaction.response.thought) > 1000:
    ...             interaction.finish_thinking()
    """

    def __init__(self, link: Link, start: pb.InteractRequest, call: Callable[[AsyncIterator[Any]], Any]) -> None:
        self._actions: asyncio.Queue[pb.InteractRequest | None] = asyncio.Queue()
        self._actions.put_nowait(start)
        self._again: Callable[[], Any] | None = lambda: call(_until_none(self._restarted(start)))
        # Not resumable, and what another server goes on with could not be steered: no policy.
        super().__init__(link.without_policy(), lambda: call(_until_none(self._actions)))

    def _restarted(self, start: pb.InteractRequest) -> asyncio.Queue[pb.InteractRequest | None]:
        old, self._actions = self._actions, asyncio.Queue()
        self._actions.put_nowait(start)
        while not old.empty():
            self._actions.put_nowait(old.get_nowait())
        return self._actions

    async def _go_on(self, failure: PenstockError) -> Event | None:
        # gRPC says this where the server had ended the call before the start was written, and forgets the server's
        # status: nothing ran, so asking once more tells it.
        again, self._again = self._again, None
        if again is not None and failure.message == _WRITE_FAILED and not self.last_sequence and not self._left:
            self._call = again()
            return None
        return await super()._go_on(failure)

    def finish_thinking(self) -> None:
        """Ends the thought now and starts the answer. Without effect once the answer has begun."""
        self._actions.put_nowait(pb.InteractRequest(finish_thinking=pb.FinishThinking()))

    def change_budget(self, budget: int) -> None:
        """Changes the budget of the thought under way, counted from its start; -1 is no limit."""
        self._actions.put_nowait(pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget)))

    def cancel(self) -> None:
        """Ends the generation; the stream still gets its last event, with usage and cost. `close()` does not wait."""
        self._actions.put_nowait(pb.InteractRequest(cancel=pb.Cancel()))

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._actions.put_nowait(None)  # gRPC's task that waits for actions ends
        super().close()


async def _until_none(actions: asyncio.Queue[pb.InteractRequest | None]) -> AsyncIterator[pb.InteractRequest]:
    while (action := await actions.get()) is not None:
        yield action
