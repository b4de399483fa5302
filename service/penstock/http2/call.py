"""One call as whoever answers it sees it: what came, and ways to say what goes back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from penstock.http2.frames import (
    MAX_FRAME_BYTES,
    MESSAGE_HEAD_BYTES,
    ErrorCode,
    header_frames,
    message_frame,
    pieces_of,
    reset,
    window_update,
)
from penstock.http2.headers import OK, RESPONSE, Head, Metadata, Refused, trailers
from penstock.http2.incoming import Incoming

if TYPE_CHECKING:
    from penstock.http2.connection import Connection

log = logging.getLogger(__name__)
Code = grpc.StatusCode


class Aborted(Exception):
    """The call has its status already."""


class Call:
    """Lives on the event loop. What it says goes out in the order it is said; a slow reader holds `send`.

    The names that grpc's own servicers use are as in `grpc.aio.ServicerContext`.
    """

    def __init__(self, connection: Connection, stream: int, head: Head, window: int, most_bytes: int) -> None:
        self.method = head.method
        self.stream = stream
        self.window = window
        """Bytes that the client would still take."""
        self.blocked_since: float | None = None
        """time.monotonic() since when a message waits for its client to take it."""
        self.unsent_bytes = 0
        """What is here of a first message that is on its way."""
        self.has_expired = False
        self.has_ended = False
        """Whether there is nothing more to say."""
        self.has_answered = False
        self._connection = connection
        self._head = head
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._incoming = Incoming(stream, head.encoding, most_bytes, self._opens)
        self._room: asyncio.Future[None] | None = None

    def start(self, task: asyncio.Task[None]) -> None:
        """`task` answers the call, until its deadline at most."""
        self._task = task
        task.add_done_callback(self._is_over)
        timeout = self._head.timeout_seconds
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
            self._timer = asyncio.get_running_loop().call_later(timeout, self._expire)

    # What is known of the call.

    def invocation_metadata(self) -> Metadata:
        return self._head.metadata

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def peer(self) -> str:
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What TLS says of the peer."""
        return self._connection.tls_peer

    # What comes.

    @property
    def has_arrived(self) -> bool:
        """Whether the first message, or an end without one, is here."""
        return self._incoming.has_begun

    async def message(self) -> bytes | None:
        """The next message; None where no more comes. Raises Refused for one that cannot be read."""
        return await self._incoming.message()

    async def messages(self) -> AsyncIterator[bytes]:
        while (message := await self._incoming.message()) is not None:
            yield message

    async def heard(self, most_seconds: float) -> None:
        """Returns when the first message is here, or after so long."""
        await self._incoming.begun(most_seconds)

    async def quiet(self, moment_seconds: float, most_seconds: float) -> None:
        """Returns when the client says nothing for a moment, or after so long."""
        await self._incoming.quiet(moment_seconds, most_seconds)

    def take(self, data: bytes, flow_bytes: int, *, ends: bool) -> None:
        """A DATA frame of this call, and what it weighs. Raises StreamFault."""
        self._incoming.take(data, flow_bytes, ends=ends)

    def end_of_input(self) -> None:
        """The client will say no more."""
        self._incoming.take(b"", 0, ends=True)

    def _opens(self, size: int) -> None:
        self._connection.write(window_update(self.stream, size))

    # What goes back.

    async def send(self, message: bytes) -> None:
        """Returns once it is on its way: flow control, of the stream and of the connection, holds it here."""
        connection, size = self._connection, len(message) + MESSAGE_HEAD_BYTES
        if size > self.window or size > connection.window or size > MAX_FRAME_BYTES or not connection.is_writable:
            await self._send_in_pieces(message)
            return
        self.window -= size
        connection.window -= size
        connection.sent_frames += 1
        if self.has_answered:
            connection.write(message_frame(self.stream, message))
        else:
            self.has_answered = True
            connection.write(header_frames(self.stream, RESPONSE, ends=False) + message_frame(self.stream, message))

    async def _send_in_pieces(self, message: bytes) -> None:
        connection = self._connection
        if not self.has_answered:
            self.has_answered = True
            connection.write(header_frames(self.stream, RESPONSE, ends=False))
        for piece in pieces_of(message):
            at = 0
            while at < len(piece):
                room = min(self.window, connection.window, len(piece) - at)
                if room <= 0 or not connection.is_writable:
                    await self._until_there_is_room()
                    continue
                self.window -= room
                connection.window -= room
                connection.write_data(self.stream, piece[at : at + room])
                at += room
        self.blocked_since = None  # by the whole message: a byte now and then, or room for other calls, is no reading

    async def _until_there_is_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        if self.blocked_since is None:
            self.blocked_since = time.monotonic()
        self._connection.blocked[self] = None
        try:
            await self._room
        finally:
            self._room = None
            self._connection.blocked.pop(self, None)

    def look_again(self) -> None:
        """There may be room."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def write(self, message: Any) -> None:
        """A protobuf message of a servicer that is not ours."""
        await self.send(message.SerializeToString())

    def end(self, code: grpc.StatusCode = Code.OK, said: str = "", metadata: Metadata = ()) -> None:
        """The last word, with the status. Nothing happens where it was said already."""
        if self.has_ended:
            return
        self.has_ended = True
        block = OK if code is Code.OK and not metadata else trailers(code, said, metadata)
        self._connection.write(header_frames(self.stream, block if self.has_answered else RESPONSE + block, ends=True))
        if not self._incoming.is_over:
            self._connection.write(reset(self.stream, ErrorCode.NO_ERROR))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        self.end(code, details, trailing_metadata)
        raise Aborted

    def cut(self, code: ErrorCode) -> None:
        """No more of it, without a status: what its client does not read could not reach it."""
        if not self.has_ended:
            self.has_ended = True
            self._connection.write(reset(self.stream, code))
        self.cancel()

    def gone(self) -> None:
        """Its client has left: nothing more can be said."""
        self.has_ended = True
        self.cancel()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _expire(self) -> None:
        self.has_expired = True
        self.cancel()

    def _is_over(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.has_expired:
            self.end(Code.DEADLINE_EXCEEDED, "the deadline passed")
        elif task.cancelled():
            self.end(Code.CANCELLED, "cancelled")
        elif isinstance(error := task.exception(), Refused):
            self.end(error.code, error.said)
        elif error is not None and not isinstance(error, Aborted):
            log.error("%s failed with %s", self.method, type(error).__name__)
        self.end(Code.INTERNAL, "the service failed; its log has the cause")
        self._connection.is_over(self)
