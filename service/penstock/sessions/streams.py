"""Keep resumable streams: they run without their connection, keep their events, and can be read again.

Bounded by the number of streams, the bytes of each, and the seconds without a reader. Only a client with the token may
read a stream and, where callers are authenticated, only the caller who started it.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from penstock import tasks
from penstock.auth.identity import ANONYMOUS, Principal
from penstock.config.schema import ResumeSettings
from penstock.errors import BadRequest, FieldViolation, GenerationNotFound, Overloaded
from penstock.generation.control import GenerationControl
from penstock.generation.usage import UsageMeter
from penstock.telemetry.hooks import NO_CALL_HOOKS, CallHooks


class SequencedEvent(Protocol):
    """Describe the events that are kept: messages with their number in the stream and their size."""

    sequence: int

    def ByteSize(self) -> int:  # noqa: N802  (protobuf's name)
        """Return the bytes of the event on the wire."""


EventT = TypeVar("EventT", bound=SequencedEvent)


def _new_token() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class StreamOrigin:
    """Where a stream comes from.

    Attributes:
        owner: The caller's name that only it may read the stream by; empty where callers are not known.
        token: What a reader has to show.
        sequence: The last event that another server sent of it; 0 for a new generation.
        hooks: Telemetry of the call that started it.
    """

    generation_id: str
    owner: str = ""
    token: str = field(default_factory=_new_token)
    sequence: int = 0
    hooks: CallHooks = NO_CALL_HOOKS


class ResumableStream(Generic[EventT]):
    """Keep the events of one stream for its readers. A slow reader delays itself only.

    Each event costs each reader the same, however long the stream is. Where no reader has taken an event or waited for
    the next one for `grace_seconds`, the stream ends and frees its memory; `on_end` is then called once.
    """

    def __init__(
        self,
        origin: StreamOrigin,
        max_bytes: int,
        *,
        grace_seconds: float = math.inf,
        on_end: Callable[[ResumableStream[EventT]], None] = lambda _: None,
    ) -> None:
        self.generation_id = origin.generation_id
        self.owner = origin.owner
        self.token = origin.token
        self.hooks = origin.hooks
        self._max_bytes = max_bytes
        # By sequence number, which grows by one: the next event is found without a search.
        self._events: dict[int, tuple[EventT, int]] = {}
        self._oldest = self._newest = 0
        self._bytes = 0
        self._over = False
        self._failure: Exception | None = None
        self._read_to = self._began_after = origin.sequence
        self._waiting: set[asyncio.Future[None]] = set()
        self._has_ended = False
        self._on_end = on_end
        self._grace_seconds = grace_seconds
        self._idle_since = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self.meter = UsageMeter()
        self.control = GenerationControl()
        self._watch_for_readers()

    async def feed(self, events: AsyncGenerator[EventT, None]) -> None:
        """Keep all events until `events` ends. A failure is kept for the readers too."""
        try:
            async with aclosing(events) as source:
                async for event in source:
                    if self._has_ended:
                        return
                    self._keep(event)
                    self._notify()
        except Exception as error:
            if not self._over:
                self._failure = error
        finally:
            self._over = True
            self._notify()

    def _keep(self, event: EventT) -> None:
        size = event.ByteSize()
        self._newest = event.sequence
        self._oldest = self._oldest or event.sequence
        self._events[event.sequence] = event, size
        self._bytes += size
        while self._bytes > self._max_bytes and self._oldest < self._newest:
            self._bytes -= self._events.pop(self._oldest)[1]
            self._oldest += 1

    def _notify(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def read(self, last_sequence: int) -> AsyncGenerator[EventT, None]:
        """Yield the events after `last_sequence`: kept ones first, then new ones as they come.

        Raises:
            BadRequest: There is no event with this number yet.
            GenerationNotFound: The next event is no longer kept.
            Exception: The generation's own failure, after its last event.
        """
        newest = max(self._newest, self._began_after)
        if last_sequence > newest:
            why = f"must be at most {newest}, the newest event of this generation, got {last_sequence}"
            raise BadRequest(FieldViolation("last_sequence", why, "INVALID_FIELD"))
        self.readers += 1
        try:
            while True:
                while not self._over and self._newest <= last_sequence:
                    await self._wait()
                event = self._after(last_sequence)
                if event is None:
                    if self._failure is not None:
                        raise self._failure
                    return
                last_sequence = event.sequence
                self._read_to = max(self._read_to, last_sequence)
                self._is_read()
                yield event
        finally:
            self.readers -= 1
            self._is_read()
            if not self._read_to and not self.readers and self.task is not None:
                # Nobody knows its token: the client left while the call was queued.
                self.stop()

    async def _wait(self) -> None:
        """Wait for a new event. A reader that waits here has taken all others, so the stream counts as read."""
        # A future of its own: an asyncio.Event costs two more objects and a queue for each event of the stream.
        news = asyncio.get_running_loop().create_future()
        self._waiting.add(news)
        try:
            await news
        finally:
            self._waiting.discard(news)
            self._is_read()

    def _after(self, last_sequence: int) -> EventT | None:
        if self._newest <= last_sequence or self._has_ended:
            return None
        if last_sequence + 1 < self._oldest:
            raise GenerationNotFound(
                f"events after {last_sequence} are no longer kept, the oldest kept one is {self._oldest}",
                last_sequence=last_sequence,
                oldest_kept_sequence=self._oldest,
            )
        return self._events[last_sequence + 1][0]

    def _is_read(self) -> None:
        self._idle_since = time.monotonic()
        self._watch_for_readers()

    def _watch_for_readers(self) -> None:
        """Start the timer of `grace_seconds`: at most one, and none while a reader waits for the next event."""
        if self._timer is None and not self._waiting and not self._has_ended and self._grace_seconds < math.inf:
            left = self._idle_since + self._grace_seconds - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._stop_if_unread)

    def _stop_if_unread(self) -> None:
        self._timer = None
        if not self._waiting and time.monotonic() >= self._idle_since + self._grace_seconds:
            self.stop()
        else:
            self._watch_for_readers()

    @property
    def is_over(self) -> bool:
        """Return whether the generation has ended, or its last event was made."""
        return self._over or self.meter.finished is not None

    @property
    def was_fully_read(self) -> bool:
        """Return whether the stream has ended and one reader was sent all of it."""
        return self._over and not self.readers and self._read_to >= self._newest

    @property
    def failed_at_start(self) -> bool:
        """Return whether the stream failed before its first event, so that another attempt may succeed."""
        return self._over and not self._events

    def stop(self) -> None:
        """End the generation and drop its events. Readers that remain get GenerationNotFound."""
        if self._has_ended:
            return
        self._has_ended = True
        if not self._over or self._read_to < self._newest:
            self._failure = GenerationNotFound("the generation was cancelled, or expired because no client read it")
        self._over = True
        self._events.clear()
        self._bytes = 0
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None:
            self.task.cancel()
        self._notify()
        self._on_end(self)

    async def end(self) -> None:
        """Stop, and return once the engine's work has ended."""
        self.stop()
        if self.task is not None:
            await tasks.ended(self.task)


class StreamStore(Generic[EventT]):
    """Hold all resumable streams of this process."""

    def __init__(self, settings: ResumeSettings) -> None:
        self._settings = settings
        self._streams: dict[str, ResumableStream[EventT]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    async def create(self, origin: StreamOrigin) -> ResumableStream[EventT]:
        """Return a new stream. Raises Overloaded where as many are kept as may be."""
        self._make_room(origin.owner)
        settings = self._settings
        stream: ResumableStream[EventT] = ResumableStream(
            origin, settings.max_stream_bytes, grace_seconds=settings.grace_seconds, on_end=self._forget
        )
        self._streams[origin.generation_id] = stream
        return stream

    def _forget(self, stream: ResumableStream[EventT]) -> None:
        if self._streams.get(stream.generation_id) is stream:
            del self._streams[stream.generation_id]
        if stream.task is not None and not stream.task.done():
            # The event loop itself keeps no task alive.
            self._ending.add(stream.task)
            stream.task.add_done_callback(self._ending.discard)

    async def attach(self, origin: StreamOrigin) -> ResumableStream[EventT]:
        """Return the stream that another server drained, under the token that it gave; without a task where it is new.

        The stream has no task where it is new on this server.

        Raises:
            Overloaded: The limit of kept streams is reached, for this caller or the server.
        """
        known = self._streams.get(origin.generation_id)
        if known is not None and not known.failed_at_start:
            return known
        if known is not None:
            known.stop()
        return await self.create(origin)

    def _make_room(self, owner: str) -> None:
        """Ensure that one more stream of `owner` (empty: anonymous) fits. Raise Overloaded otherwise."""
        if owner:
            own = [stream for stream in self._streams.values() if stream.owner == owner]
            most = self._settings.max_streams_per_caller
            self._evict_if_full(own, most, "resumable stream limit of this caller exceeded")
        most = self._settings.max_streams
        self._evict_if_full(list(self._streams.values()), most, "resumable stream limit of this server exceeded")

    def _evict_if_full(self, streams: list[ResumableStream[EventT]], most: int, full: str) -> None:
        if len(streams) < most:
            return
        # A fully read stream is kept only in case its last bytes were lost on the way: the oldest one is evicted.
        read_out = next((stream for stream in streams if stream.was_fully_read), None)
        if read_out is None or len(streams) > most:
            raise Overloaded(
                f"{full}: {len(streams)} of {most} in use; read, cancel or wait for another stream",
                resource="resumable_streams",
                retry_after_seconds=self._settings.grace_seconds,
                resumable_streams=len(streams),
            )
        read_out.stop()

    async def get(self, generation_id: str, token: str, caller: Principal = ANONYMOUS) -> ResumableStream[EventT]:
        """Return a stream.

        Raises:
            GenerationNotFound: It is unknown or expired, the token is wrong, or it belongs to another caller. The error
                does not tell which.
        """
        stream = self._streams.get(generation_id)
        is_right = stream is not None and hmac.compare_digest(stream.token.encode(), token.encode())
        if stream is None or not is_right or stream.owner != caller.owner:
            raise GenerationNotFound("no such generation (unknown, expired, or wrong resume_token)")
        return stream

    async def get_running(
        self, generation_id: str, token: str, caller: Principal = ANONYMOUS
    ) -> ResumableStream[EventT]:
        """Return a stream whose generation runs.

        Raises:
            GenerationNotFound: As for `get`; or the generation has ended, which the error tells.
        """
        stream = await self.get(generation_id, token, caller)
        if stream.is_over:
            raise GenerationNotFound("the generation has ended; Resume sends its last events again", state="finished")
        return stream

    async def cancel(self, generation_id: str, token: str, caller: Principal = ANONYMOUS) -> None:
        """End and drop a generation.

        Raises:
            GenerationNotFound: As for `get`.
        """
        stream = await self.get(generation_id, token, caller)
        await stream.end()

    async def close(self) -> None:
        """End all streams."""
        await asyncio.gather(*(stream.end() for stream in list(self._streams.values())))
        await tasks.ended(*self._ending)
