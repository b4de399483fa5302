"""Streams that outlive their connection: they go on by themselves, keep what they said, and can be read again.

Bounded: so many streams, so many bytes each, and so long without a reader. Only who holds the token may read, and,
where callers are known, only the caller who started it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from penstock_client.v1 import generation_pb2 as pb

from penstock.callers.caller import NOBODY, Caller
from penstock.config import ResumeSettings
from penstock.errors import GenerationNotFound, Overloaded
from penstock.observe import CALL


class LiveStream:
    """One stream's events as they come, kept for readers. A reader is slowed by itself alone, never by another."""

    def __init__(self, generation_id: str, max_bytes: int, owner: str, token: str = "", sequence: int = 0) -> None:
        self.generation_id = generation_id
        self.owner = owner
        self.token = token or secrets.token_urlsafe(32)
        self.call = CALL.get()
        self._max_bytes = max_bytes
        self._events: deque[tuple[pb.GenerationEvent, int]] = deque()
        self._bytes = 0
        self._over = False
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()
        self._read_to = sequence
        self.readers = 0
        self.idle_since = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    async def feed(self, events: AsyncGenerator[pb.GenerationEvent, None]) -> None:
        """Keeps everything that `events` says until its end; a failure is kept for the readers too."""
        try:
            async with aclosing(events) as source:
                async for event in source:
                    async with self._changed:
                        self._keep(event)
                        self._changed.notify_all()
        except Exception as error:
            self._failure = error
        finally:
            async with self._changed:
                self._over = True
                self._changed.notify_all()

    def _keep(self, event: pb.GenerationEvent) -> None:
        size = event.ByteSize()
        self._events.append((event, size))
        self._bytes += size
        while self._bytes > self._max_bytes and len(self._events) > 1:
            self._bytes -= self._events.popleft()[1]

    async def read(self, last_sequence: int) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Events after `last_sequence`, kept ones first, then as they come.

        Raises GenerationNotFound where the next one is no longer kept, and the generation's own failure at its end.
        """
        self.readers += 1
        try:
            while True:
                async with self._changed:
                    while not self._over and self._newest() <= last_sequence:
                        await self._changed.wait()
                    ready = self._after(last_sequence)
                for event in ready:
                    last_sequence = event.sequence
                    self._read_to = max(self._read_to, last_sequence)
                    yield event
                if self._over and self._newest() <= last_sequence:
                    if self._failure is not None:
                        raise self._failure
                    return
        finally:
            self.readers -= 1
            self.idle_since = time.monotonic()
            if not self._read_to and not self.readers and self.task is not None:
                # Nobody has its token: a client that left while the call was queued.
                self.task.cancel()

    def _newest(self) -> int:
        return self._events[-1][0].sequence if self._events else 0

    def _after(self, last_sequence: int) -> list[pb.GenerationEvent]:
        if self._events and self._events[0][0].sequence > last_sequence + 1:
            raise GenerationNotFound(
                "events after this sequence are no longer kept",
                last_sequence=last_sequence,
                oldest_kept_sequence=self._events[0][0].sequence,
            )
        return [event for event, _ in self._events if event.sequence > last_sequence]

    @property
    def was_read_out(self) -> bool:
        """It is over, and somebody was sent all of it."""
        return self._over and not self.readers and self._read_to >= self._newest()

    @property
    def came_to_nothing(self) -> bool:
        """It failed before its first event: another try may fare better."""
        return self._over and not self._events

    async def end(self) -> None:
        if not self._over:
            self._failure = GenerationNotFound("the generation was cancelled, or nobody read it for too long")
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


class LiveStreams:
    """All resumable streams of this process."""

    def __init__(self, settings: ResumeSettings) -> None:
        self._settings = settings
        self._streams: dict[str, LiveStream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    async def open(self, generation_id: str, caller: Caller = NOBODY) -> LiveStream:
        """Raises Overloaded where as many are kept as may be."""
        await self.sweep()
        self._make_room(caller.owner)
        stream = LiveStream(generation_id, self._settings.max_stream_bytes, caller.owner)
        self._streams[generation_id] = stream
        return stream

    async def adopt(self, request: pb.ResumeRequest, caller: Caller = NOBODY) -> LiveStream:
        """The stream that another server drained, under the token that it gave; without a task where it is new here.

        Raises Overloaded as `open` does.
        """
        await self.sweep()
        known = self._streams.get(request.generation_id)
        if known is not None and not known.came_to_nothing:
            return known
        self._streams.pop(request.generation_id, None)
        self._make_room(caller.owner)
        limit, place = self._settings.max_stream_bytes, request.last_sequence
        stream = LiveStream(request.generation_id, limit, caller.owner, request.resume_token, place)
        self._streams[request.generation_id] = stream
        return stream

    def _make_room(self, owner: str) -> None:
        """One more stream of `owner`, a known caller or (empty) nobody. Raises Overloaded where there is no room."""
        if owner:
            own = [stream for stream in self._streams.values() if stream.owner == owner]
            most = self._settings.max_streams_per_caller
            self._fit(own, most, "as many resumable streams are kept as this server takes of one caller")
        most = self._settings.max_streams
        self._fit(list(self._streams.values()), most, "as many resumable streams are kept as this server takes")

    def _fit(self, streams: list[LiveStream], most: int, full: str) -> None:
        if len(streams) < most:
            return
        # Kept only in case its last bytes were lost on the way: the oldest such one gives way.
        read_out = next((stream.generation_id for stream in streams if stream.was_read_out), None)
        if read_out is None or len(streams) > most:
            raise Overloaded(full, retry_after_seconds=self._settings.grace_seconds, resumable_streams=len(streams))
        del self._streams[read_out]

    async def find(self, generation_id: str, token: str, caller: Caller = NOBODY) -> LiveStream:
        """Raises GenerationNotFound alike for the unknown, the expired, a wrong token and another caller's: none can
        be told apart."""
        await self.sweep()
        stream = self._streams.get(generation_id)
        is_right = stream is not None and hmac.compare_digest(stream.token.encode(), token.encode())
        if stream is None or not is_right or stream.owner != caller.owner:
            raise GenerationNotFound("no such generation to resume; it is unknown, expired, or the token is wrong")
        return stream

    async def cancel(self, generation_id: str, token: str, caller: Caller = NOBODY) -> None:
        """Ends and forgets a generation. Raises GenerationNotFound as `find` does."""
        stream = await self.find(generation_id, token, caller)
        self._streams.pop(generation_id, None)
        await stream.end()

    async def sweep(self) -> None:
        """Ends and forgets what nobody has read for the grace."""
        too_old = time.monotonic() - self._settings.grace_seconds
        idle = [s for s in self._streams.values() if not s.readers and s.idle_since < too_old]
        for stream in idle:
            del self._streams[stream.generation_id]
        await asyncio.gather(*(stream.end() for stream in idle))

    async def close(self) -> None:
        streams, self._streams = list(self._streams.values()), {}
        await asyncio.gather(*(stream.end() for stream in streams))
