"""Run the process that decodes images. It decodes one at a time, and callers take turns."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import signal
from collections.abc import AsyncIterator

from penstock import tasks
from penstock.engine.child_process import ChildProgram, NotStarted, end
from penstock.engine.images.decoding import Fault, ImageLimits
from penstock.engine.images.wire import REPLY, REQUEST
from penstock.errors import BadRequest, FieldReason, FieldViolation, Overloaded
from penstock.types import DecodedImage

_PROGRAM = ChildProgram(
    name="the process that decodes images",
    module="penstock.engine.images.decoder_process",
    start_seconds=60.0,
    environment={"MALLOC_ARENA_MAX": "1"},  # the memory limit counts address space
)
_GRACE_SECONDS = 30.0  # in addition to an image's own time, which is the processor's: the machine may be busy
_IMAGES_OF_PROCESS = 1000  # then another one starts, so that what a decoder leaks is given back
_TRIES = 2  # where the process dies and not because of the time: somebody else may have killed it
_SLOW = -signal.SIGPROF


class ImageDecoder:
    """The process that decodes images. Belongs to one event loop."""

    def __init__(self, limits: ImageLimits) -> None:
        """Decode within `limits`. The process starts with the first image."""
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._decoded = 0
        self._turn = asyncio.Lock()
        self._callers: dict[str, tuple[asyncio.Lock, int]] = {}
        self._waiting = 0
        self._running: set[asyncio.Task[DecodedImage]] = set()

    async def decode(self, data: bytes, mime_type: str, field: str, caller: str) -> DecodedImage:
        """Return the pixels of an image.

        Args:
            data: The encoded image.
            mime_type: Its media type.
            field: Path of the image, for errors.
            caller: Key that fairness is between.

        Raises:
            BadRequest: It is no PNG, JPEG or WebP image of one picture, is damaged, or exceeds a limit.
            Overloaded: Too many images wait, or the process does not start.
        """
        async with self._turn_of(caller):
            # A call that is cancelled must not leave half a reply in the pipe: the exchange goes on without it.
            exchange = asyncio.create_task(self._decode(data, mime_type, field))
            self._running.add(exchange)
            exchange.add_done_callback(self._ended)
            return await asyncio.shield(exchange)

    async def close(self) -> None:
        """End the process."""
        await tasks.end(*self._running)
        await self._end()

    def _ended(self, exchange: asyncio.Task[DecodedImage]) -> None:
        self._running.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # no caller may be left that takes it

    @contextlib.asynccontextmanager
    async def _turn_of(self, caller: str) -> AsyncIterator[None]:
        """Wait for the caller's other images: each caller has one place in the queue. Raise Overloaded."""
        if self._waiting >= self._limits.max_waiting:
            raise self._overloaded(f"too many images wait to be decoded, at most {self._limits.max_waiting}")
        own, users = self._callers.get(caller, (asyncio.Lock(), 0))
        self._callers[caller] = own, users + 1
        self._waiting += 1
        try:
            async with own:
                yield
        finally:
            self._waiting -= 1
            own, users = self._callers.pop(caller)
            if users > 1:
                self._callers[caller] = own, users - 1

    async def _decode(self, data: bytes, mime_type: str, field: str) -> DecodedImage:
        async with self._turn:
            for _ in range(_TRIES):
                process = await self._started()
                try:
                    async with asyncio.timeout(self._limits.seconds + _GRACE_SECONDS):
                        return await self._exchange(process, data, mime_type, field)
                except (TimeoutError, OSError, asyncio.IncompleteReadError):
                    if await self._end() == _SLOW:
                        break
                except asyncio.CancelledError:
                    await self._end()
                    raise
            within = f"within {self._limits.seconds:g} seconds of the processor's time"
            what = f"must be decoded {within} by a decoder that does not crash, is not"
            raise BadRequest(FieldViolation(f"{field}.data", what, "LIMIT_EXCEEDED"))

    async def _exchange(
        self, process: asyncio.subprocess.Process, data: bytes, mime_type: str, field: str
    ) -> DecodedImage:
        assert process.stdin is not None
        assert process.stdout is not None
        kind = mime_type.encode()
        process.stdin.write(REQUEST.pack(len(kind), len(data)) + kind)
        process.stdin.write(data)
        await process.stdin.drain()
        fault, width, height, length = REPLY.unpack(await process.stdout.readexactly(REPLY.size))
        body = await process.stdout.readexactly(length)
        self._decoded += 1
        if fault:
            raise _refusal(Fault(fault), body.decode(), field)
        return DecodedImage(width, height, body, await asyncio.to_thread(_digest, width, height, body))

    async def _started(self) -> asyncio.subprocess.Process:
        """Return the process, which may start now."""
        if self._process is not None and self._process.returncode is None and self._decoded < _IMAGES_OF_PROCESS:
            return self._process
        await self._end()
        try:
            self._process = await _PROGRAM.start(json.dumps(dataclasses.asdict(self._limits)))
        except NotStarted as error:
            raise self._overloaded("images cannot be decoded now: the decoder did not start") from error
        self._decoded = 0
        return self._process

    async def _end(self) -> int | None:
        """End the process. Return its exit status, -N where signal N had ended it; None where there was none."""
        process, self._process = self._process, None
        return None if process is None else await end(process)

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, resource="images", retry_after_seconds=1.0)


def _refusal(fault: Fault, text: str, field: str) -> BadRequest:
    reason: FieldReason = "LIMIT_EXCEEDED" if fault is Fault.LIMIT else "INVALID_FIELD"
    part = "mime_type" if fault is Fault.MIME_TYPE else "data"
    return BadRequest(FieldViolation(f"{field}.{part}", text, reason))


def _digest(width: int, height: int, pixels: bytes) -> str:
    return hashlib.sha256(b"%d %d " % (width, height) + pixels).hexdigest()
