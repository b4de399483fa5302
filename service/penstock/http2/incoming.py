"""What a client sends of one call: DATA frames in, whole messages out, and never more held than there was room for."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import deque
from collections.abc import Callable

import grpc

from penstock.http2.frames import MESSAGE_HEAD_BYTES, ErrorCode, StreamFault
from penstock.http2.headers import Refused

RECEIVE_WINDOW = 256 * 1024
"""Bytes that a client may send of one call before somebody takes them."""
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
Code = grpc.StatusCode


class Incoming:
    """`opens` tells the client of room for so many bytes more. `encoding` is how its messages may be compressed."""

    def __init__(self, stream: int, encoding: str, most_bytes: int, opens: Callable[[int], None]) -> None:
        self._stream = stream
        self._encoding = encoding
        self._most_bytes = most_bytes
        self._opens = opens
        self._half = bytearray()
        self._messages: deque[bytes] = deque()
        self._fault: Refused | None = None
        self._window = RECEIVE_WINDOW
        self._taken_bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        self.is_over = False
        """Whether the client will say no more."""
        self.has_begun = False
        """Whether the first message, or an end without one, is here."""

    async def message(self) -> bytes | None:
        """The next message; None where no more comes. Raises Refused for one that cannot be read."""
        while not self._messages:
            if self._fault is not None:
                raise self._fault
            if self.is_over:
                return None
            await self._next_frame()
        message = self._messages.popleft()
        self._open()
        return message

    async def begun(self, most_seconds: float) -> None:
        """Returns when the first message is here, or after so long."""
        if self.has_begun:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_seconds):
                while not self.has_begun:
                    await self._next_frame()

    async def quiet(self, moment_seconds: float, most_seconds: float) -> None:
        """Returns when the client has said nothing for a moment, or no more will come, or after so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_seconds):
                while not self.is_over:
                    try:
                        async with asyncio.timeout(moment_seconds):
                            await self._next_frame()
                    except TimeoutError:
                        return

    async def _next_frame(self) -> None:
        arrival = self._arrival = asyncio.get_running_loop().create_future()
        try:
            await arrival
        finally:
            if self._arrival is arrival:  # else somebody else waits since
                self._arrival = None

    def take(self, data: bytes, flow_bytes: int, *, ends: bool) -> None:
        """A DATA frame, and what it weighs with its padding. Raises StreamFault."""
        if self.is_over:
            raise StreamFault(self._stream, ErrorCode.STREAM_CLOSED)
        self._window -= flow_bytes
        if self._window < 0:
            raise StreamFault(self._stream, ErrorCode.FLOW_CONTROL_ERROR)
        self._taken_bytes += flow_bytes
        self.is_over = ends
        if self._fault is None:
            self._half += data
            try:
                self._split()
                if ends and self._half:
                    raise Refused(Code.INVALID_ARGUMENT, "the request ends inside a message")
            except Refused as refused:
                self._fault = refused
                self._half.clear()
        self._open()
        if self._messages or self.is_over or self._fault is not None:
            self.has_begun = True
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(None)

    def _split(self) -> None:
        held = self._half
        while len(held) >= MESSAGE_HEAD_BYTES:
            size = int.from_bytes(held[1:MESSAGE_HEAD_BYTES], "big")
            if size > self._most_bytes:
                raise _too_large(size, self._most_bytes)
            end = MESSAGE_HEAD_BYTES + size
            if len(held) < end:
                return
            body = bytes(held[MESSAGE_HEAD_BYTES:end])
            self._messages.append(self._unpacked(body, held[0]) if held[0] else body)
            del held[:end]

    def _unpacked(self, body: bytes, flag: int) -> bytes:
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None or flag != 1:
            raise Refused(Code.INTERNAL, "a message says it is compressed, and the call does not say how")
        unpacking = zlib.decompressobj(bits)
        try:
            message = unpacking.decompress(body, self._most_bytes + 1)
        except zlib.error:
            raise Refused(Code.INVALID_ARGUMENT, f"a message is not {self._encoding}") from None
        if len(message) > self._most_bytes:
            raise _too_large(len(message), self._most_bytes)
        if not unpacking.eof:
            raise Refused(Code.INVALID_ARGUMENT, f"a message is half of a {self._encoding}")
        return message

    def _open(self) -> None:
        """Once nothing waits to be read: then all that is held is half a message."""
        if self._taken_bytes >= RECEIVE_WINDOW // 2 and not self._messages and not self.is_over:
            self._window += self._taken_bytes
            self._opens(self._taken_bytes)
            self._taken_bytes = 0


def _too_large(size: int, most: int) -> Refused:
    return Refused(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes; at most {most} may be")
