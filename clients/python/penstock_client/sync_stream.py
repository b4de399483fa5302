"""The streams of the blocking client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from penstock_client.errors import BrokenStream, Cancelled, PenstockError, from_rpc_error
from penstock_client.events import Event, EventReader
from penstock_client.reconnect import Link, Recovery
from penstock_client.response import Response
from penstock_client.v1 import generation_pb2 as pb


class Stream:
    """The events of one generation. Leaving the loop or the `with` ends the generation, if it still runs.

    >>> with client.stream("What is 17 + 25?", budget=64) as stream:
    ...     for event in stream:
    ...         ...
    >>> stream.response.answer
    """

    def __init__(self, link: Link, start: Callable[[], Any], resumed: pb.ResumeRequest | None = None) -> None:
        self._link = link
        self._reader = EventReader()
        if resumed is not None:
            self._reader.resumed(resumed)
        self._recovery = Recovery(self._reader, link.policy, link.timeout)
        self._cancelled = threading.Event()
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
        """Ends the generation, from any thread; the engine stops within one step. Harmless when it is over."""
        if self._cancelled.is_set():
            return
        self._cancelled.set()
        self._call.cancel()
        if self._recovery.is_orphan:
            self._link.abandon(self._recovery.cancel_request())
        self._link.span.end(self.response)

    def detach(self) -> None:
        """Leaves and lets a resumable generation go on, for `client.resume` to read within the server's grace."""
        self._cancelled.set()
        self._call.cancel()
        self._link.span.end(self.response)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            failure: PenstockError
            try:
                event = self._recovery.take(next(self._call).event)
            except StopIteration:
                failure = BrokenStream.cut_short()
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            except BrokenStream as broken:
                self._give_up(broken)
                raise
            else:
                if event is not None:
                    return event
                continue
            if self._reader.finished:  # whatever happens after the last event is of no concern
                self.close()
                raise StopIteration
            last = self._go_on(failure)
            if last is not None:
                return last

    def _go_on(self, failure: PenstockError) -> Event | None:
        """Resumes over another connection. Raises `failure` where that cannot be; the event ends a drained stream."""
        try:
            if self._cancelled.is_set():
                raise failure
            wait = self._recovery.wait_seconds(failure)
        except PenstockError as final:
            last = self._recovery.last_event()
            if last is None:
                self._give_up(final)
                raise
            return last
        if self._cancelled.wait(wait):
            raise Cancelled("cancelled while the connection was away")
        request = self._recovery.request()
        self._link.span.reconnected(request.last_sequence)
        self._call = self._link.resume(request, **self._link.options(self._recovery.seconds_left))
        if self._cancelled.is_set():  # by another thread, while the call was made
            self._call.cancel()
        return None

    def _give_up(self, failure: PenstockError) -> None:
        self._link.span.end(self.response, failure)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves: ends the generation if it still runs, without waiting for anything."""
        Stream.cancel(self)

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()


class Interaction(Stream):
    """A stream that is steered while it runs; its methods may be called from any thread, and do not wait.

    >>> with client.interact("Prove it.", budget=-1) as interaction:
    ...     for event in interaction:
    ...         if len(interaction.response.thought) > 1000:
    ...             interaction.finish_thinking()
    """

    def __init__(self, link: Link, start: pb.InteractRequest, call: Callable[[Iterator[Any]], Any]) -> None:
        actions: queue.SimpleQueue[pb.InteractRequest | None] = queue.SimpleQueue()
        actions.put(start)
        self._actions = actions
        # Not resumable, and what another server goes on with could not be steered: no policy.
        super().__init__(link.without_policy(), lambda: call(iter(actions.get, None)))

    def finish_thinking(self) -> None:
        """Ends the thought now and starts the answer. Without effect once the answer has begun."""
        self._actions.put(pb.InteractRequest(finish_thinking=pb.FinishThinking()))

    def change_budget(self, budget: int) -> None:
        """Changes the budget of the thought under way, counted from its start; -1 is no limit."""
        self._actions.put(pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget)))

    def cancel(self) -> None:
        """Ends the generation; the stream still gets its last event, with usage and cost. `close()` does not wait."""
        self._actions.put(pb.InteractRequest(cancel=pb.Cancel()))

    def close(self) -> None:
        self._actions.put(None)  # gRPC's thread that waits for actions ends
        super().close()
