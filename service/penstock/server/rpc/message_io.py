"""Read and write the messages of one call, with time limits for slow clients.

Where the event loop stands still, because it is busy or because the process is stopped or starved, what clients have
done meanwhile is learned of only afterwards. So a limit has parts, of which a standstill uses up one at most: the loop
runs for a while before a client is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from penstock.errors import ClientTooSlow
from penstock.server.service_context import Context

_PARTS = 4  # of a limit


class Incoming:
    """Read the client's messages as bytes. gRPC's core allows one read at a time, so a read may outlive its reader."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reading: asyncio.Task[Any] | None = None
        self.count = 0
        """Number of messages read."""

    async def next(self, seconds: float | None = None, lost: asyncio.Future[None] | None = None) -> bytes | None:
        """Return the next message; None where no more come.

        Raise ClientTooSlow where it is not complete after `seconds`, or once `lost` is done.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._context.read())
        reading = self._reading
        waits = (reading,) if lost is None else (reading, lost)
        part = None if seconds is None else seconds / _PARTS
        for _ in range(_PARTS):
            done, _ = await asyncio.wait(waits, timeout=part, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
        if not reading.done():
            is_lost = lost is not None and lost.done()
            late = "before the memory of requests ran out" if is_lost else f"within {seconds:g} s, the limit"
            raise ClientTooSlow(
                f"the request was not complete {late}; send it again without pauses", seconds=round(seconds or 0)
            )
        self._reading = None
        try:
            message = reading.result()
        except grpc.aio.BaseError:  # The call is over: its handler is about to be cancelled.
            return None
        if message is grpc.aio.EOF:
            return None
        self.count += 1
        return bytes(message)

    async def all(self) -> AsyncIterator[bytes]:
        """Yield all further messages."""
        while (message := await self.next()) is not None:
            yield message

    async def until_quiet(self, moment_seconds: float, most_seconds: float) -> None:
        """Return when the client has sent nothing for a moment, or after `most_seconds`. Its messages are dropped."""
        until = time.monotonic() + most_seconds
        try:
            while time.monotonic() < until and await self.next(moment_seconds) is not None:
                pass
        except ClientTooSlow:
            return

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading.add_done_callback(_seen)


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class Outgoing:
    """Write messages to the client. gRPC's flow control holds a message that the client does not read.

    A task of its own writes each message, so that one that is stuck outlives its handler. One timer of the call checks
    for that: a timer for each message, and asyncio.wait for its task, were a tenth of what a message costs.
    """

    def __init__(self, context: Context, write_timeout_seconds: float) -> None:
        self._context = context
        self._write_timeout_seconds = write_timeout_seconds
        self._ended: asyncio.Future[bool] | None = None
        self._began = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: asyncio.Task[None] | None = None

    async def write(self, reply: Any) -> None:
        """Return once gRPC has sent the message.

        Raise ClientTooSlow where the client does not read it in time, and asyncio's CancelledError where it has left.
        """
        loop = asyncio.get_running_loop()
        self._ended = ended = loop.create_future()
        self._began = time.monotonic()
        writing = loop.create_task(self._send(reply, ended))
        if self._timer is None:
            self._check_in(self._write_timeout_seconds / _PARTS)
        try:
            is_taken = await ended
        except asyncio.CancelledError:
            writing.cancel()
            writing.add_done_callback(_seen)
            raise
        finally:
            self._ended = None
        if not is_taken:
            self._unsent = writing
            writing.add_done_callback(_seen)
            seconds = self._write_timeout_seconds
            raise ClientTooSlow(
                f"the client read no message for {seconds:g} s, the limit; read each message as it comes",
                seconds=round(seconds),
            )
        _result(writing)

    async def _send(self, reply: Any, ended: asyncio.Future[bool]) -> None:
        """Write the message, and tell it: a callback of the task would take another turn of the loop."""
        try:
            await self._context.write(reply)
        finally:
            if not ended.done():
                ended.set_result(True)

    def _check_in(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        """Give up the message that is being written if it is due, or look again a part of the limit later."""
        self._timer = None
        if self._ended is None or self._ended.done():
            return
        now = time.monotonic()
        self._began += max(0.0, now - max(self._began, self._due))  # the time by which this is late is not the client's
        left = self._began + self._write_timeout_seconds - now
        if left > 0:
            self._check_in(min(left, self._write_timeout_seconds / _PARTS))
        else:
            self._ended.set_result(False)

    def close(self) -> None:
        """Nothing more is written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_stuck(self) -> bool:
        """Return whether a message waits for the client to read it; no status can follow it yet."""
        return self._unsent is not None

    async def until_taken(self) -> None:
        """Return once the client has read the message that waits: gRPC can neither withdraw it nor reset the stream.

        Raise asyncio's CancelledError where the client has left.
        """
        if self._unsent is None:
            return
        try:
            await asyncio.wait((self._unsent,))
        except asyncio.CancelledError:
            self._unsent.cancel()
            raise
        _result(self._unsent)


def _result(writing: asyncio.Future[None]) -> None:
    try:
        writing.result()
    except grpc.aio.BaseError:  # The client has left, or the server has stopped.
        raise asyncio.CancelledError from None
