"""The streams of the blocking client."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.errors import BrokenStream, Cancelled, PenstockError, from_rpc_error, rate_limits_of
from penstock_client.events import AnswerDelta, Event, EventReader
from penstock_client.leaving import START_SECONDS
from penstock_client.reconnect import Link, Recovery
from penstock_client.response import Response
from penstock_client.retries import Retries
from penstock_client.values import Steered

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class BaseStream:
    """Read the events of one generation: the common part of `Stream` and `Interaction`."""

    def __init__(
        self, link: Link, start: Callable[[float | None], Any], resumed: pb.ResumeRequest | None = None
    ) -> None:
        self._link = link
        self._reader = EventReader()
        if resumed is not None:
            self._reader.resumed(resumed)
        self._recovery = Recovery(self._reader, link.policy, link.timeout)
        self._cancelled = threading.Event()
        self._interrupted = False
        self._leaving = threading.Lock()
        self._turn = threading.Lock()  # held by the thread that reads: the user's, or the one that waits for the token
        self._start = start
        self._retries = Retries(link.retries, link.timeout, "StreamGenerate")
        self._call = start(None)

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
        """End the generation, from any thread; the engine stops within one step. Do nothing if it is over."""
        if not self._leave():
            return
        if self._link.resumable and not self._reader.last_sequence and not self._interrupted:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads
                self._link.run_apart(self._end_when_started)
                return
        self._call.cancel()
        if self._recovery.is_orphan:
            self._link.abandon(self._recovery.cancel_request())
        self._link.span.end(self.response)

    def detach(self) -> None:
        """Close the stream and leave a resumable generation running.

        `client.resume` can read it within the server's grace period.
        """
        if self._leave():
            self._call.cancel()
            self._link.span.end(self.response)

    def _leave(self) -> bool:
        """Mark the stream as left; return False if it was left before."""
        with self._leaving:
            if self._cancelled.is_set():
                return False
            self._cancelled.set()
            return True

    def _end_when_started(self) -> None:
        """Wait at most `START_SECONDS` for the first event's resume token and end the generation with it."""
        # Cancelling the call is not enough: if the event is on its way, the server sees only a lost connection.
        timer = threading.Timer(START_SECONDS, self._call.cancel)
        timer.daemon = True
        timer.start()
        with self._turn, contextlib.suppress(StopIteration, grpc.RpcError, BrokenStream):
            if not self._reader.last_sequence:
                self._recovery.accept(next(self._call).event)
        timer.cancel()
        self._call.cancel()
        if self._recovery.is_orphan:
            self._link.abandon(self._recovery.cancel_request())
        self._link.span.end(self.response)

    def text(self) -> Texts:
        """Iterate over the first candidate's answer as it comes; leaving the loop ends the generation."""
        return Texts(self)

    def __iter__(self) -> Iterator[Event]:
        return _Loop(self)

    def __next__(self) -> Event:
        try:
            return self._next()
        except Exception:
            raise
        except BaseException:  # Ctrl-C
            self._interrupted = True  # gRPC cannot read a call again after an interrupted read
            self.close()
            raise

    def _next(self) -> Event:
        while True:
            if self._cancelled.is_set() and not self._reader.finished:
                raise Cancelled("the stream was left before its end", code=grpc.StatusCode.CANCELLED)
            failure: PenstockError
            try:
                with self._turn:
                    event = self._recovery.accept(next(self._call).event)
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
            if self._reader.finished:  # a failure after the last event loses nothing
                self.response.rate_limits = rate_limits_of(self._call.trailing_metadata())
                self.close()
                raise StopIteration
            if not self._reader.last_sequence and (pause := self._retries.wait_seconds(failure)) is not None:
                if not self._cancelled.wait(pause):
                    self._call = self._start(self._recovery.seconds_left)
                continue
            last = self._go_on(failure)
            if last is not None:
                return last

    def _go_on(self, failure: PenstockError) -> Event | None:
        """Resume over another connection and return None, or return the last event of a drained stream.

        Raises `failure` where the stream cannot be resumed.
        """
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
            raise Cancelled("cancelled while the connection was away", code=grpc.StatusCode.CANCELLED)
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
        """Close the stream and end the generation if it still runs, without waiting."""
        BaseStream.cancel(self)

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()


class Texts:
    """The texts of the first candidate's answer. Leaving a `for` loop over them ends the stream, as for `Stream`."""

    def __init__(self, stream: BaseStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return _Loop(self)

    def __next__(self) -> str:
        while True:
            event = next(self._stream)
            if isinstance(event, AnswerDelta) and event.candidate_index == 0 and event.text:
                return event.text

    def close(self) -> None:
        """Close the stream and end the generation if it still runs, without waiting."""
        self._stream.close()


class _Source(Protocol[T_co]):
    def __next__(self) -> T_co: ...
    def close(self) -> None: ...


class _Loop(Generic[T]):
    """One `for` loop over a stream or its texts. Dropping the iterator closes the stream."""

    def __init__(self, source: _Source[T]) -> None:
        self._source = source

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._source)

    def __del__(self) -> None:
        self._source.close()


class Stream(BaseStream):
    """The events of one generation. Leaving the loop or the `with` ends the generation if it still runs.

    >>> with client.stream("What is 48 + 27 + 36 + 15?", budget=64) as stream:
    ...     for event in stream:
    ...         ...
    >>> stream.response.answer

    Leaving a `for` loop (by `break`, `return`, an exception or Ctrl-C) ends the stream: a later loop over it raises
    `Cancelled`. To read some events and continue later, call `next(stream)`. `detach()` leaves the generation running.

    A resumable stream can be steered once its first event was read, by any thread. That is a call of its own, which
    `AsyncClient.steer` describes.
    """

    def finish_thinking(self) -> Steered:
        """End the thought now and start the answer. Raise RuntimeError for a stream without a resume token."""
        return self._steer(finish_thinking=True)

    def change_budget(self, budget: int) -> Steered:
        """Change the budget of the current thought. Raise RuntimeError for a stream without a resume token.

        Args:
            budget: Tokens, counted from the thought's start; -1 is no limit.
        """
        return self._steer(budget=budget)

    def _steer(self, **action: Any) -> Steered:
        reply: Steered = self._link.steer(*self._recovery.place(), **action)
        return reply


class Interaction(BaseStream):
    """A stream that can be controlled while it runs; any thread may call its methods, and they do not wait.

    >>> with client.interact("What is 48 + 27 + 36 + 15?", budget=-1) as interaction:
    ...     for event in interaction:
    ...         if len(interaction.response.thought) > 1000:
    ...             interaction.finish_thinking()
    """

    def __init__(self, link: Link, start: pb.InteractRequest, call: Callable[[Iterator[Any]], Any]) -> None:
        actions: queue.SimpleQueue[pb.InteractRequest | None] = queue.SimpleQueue()
        actions.put(start)
        self._actions = actions
        # No policy: the stream is not resumable, and one that another server continued could not be controlled.
        super().__init__(link.without_policy(), lambda _: call(iter(actions.get, None)))

    def finish_thinking(self) -> None:
        """End the thought now and start the answer. Do nothing once the answer has begun."""
        self._actions.put(pb.InteractRequest(finish_thinking=pb.FinishThinking()))

    def change_budget(self, budget: int) -> None:
        """Change the budget of the current thought.

        Args:
            budget: Tokens, counted from the thought's start; -1 is no limit.
        """
        self._actions.put(pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget)))

    def cancel(self) -> None:
        """End the generation. The stream still gets its last event, with usage and cost; `close()` does not wait."""
        self._actions.put(pb.InteractRequest(cancel=pb.Cancel()))

    def close(self) -> None:
        """Close the stream and end the generation if it still runs, without waiting."""
        self._actions.put(None)  # gRPC's thread that waits for actions ends
        super().close()
