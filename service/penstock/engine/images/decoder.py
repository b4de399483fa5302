"""Run the process that decodes images. It decodes one at a time, and callers take turns."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator

from penstock import tasks
from penstock.engine.child_environment import child_environment
from penstock.engine.images.decoding import Fault, ImageLimits
from penstock.engine.images.wire import READY, REPLY, REQUEST
from penstock.errors import BadRequest, FieldReason, FieldViolation, Overloaded
from penstock.types import DecodedImage

_LOG = logging.getLogger(__name__)
_START_SECONDS = 60.0
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
        for _ in range(_TRIES):
            if (process := await self._start()) is not None:
                self._decoded = 0
                return process
        raise self._overloaded("images cannot be decoded now: the decoder did not start")

    async def _start(self) -> asyncio.subprocess.Process | None:
        """Start the process. Return None where it does not start, with a line in the log that says how it ended."""
        try:
            # One arena: the memory limit counts address space.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "ignore", "-m", "penstock.engine.images.decoder_process"),
                json.dumps(dataclasses.asdict(self._limits)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=child_environment(MALLOC_ARENA_MAX="1"),
            )
            assert self._process.stdout is not None
            async with asyncio.timeout(_START_SECONDS):
                await self._process.stdout.readuntil(READY)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            status = await self._end()
            text = "the process that decodes images did not start: %s, exit status %s"
            _LOG.warning(text, type(error).__name__, status)
            return None
        return self._process

    async def _end(self) -> int | None:
        """End the process. Return its exit status, -N where signal N had ended it; None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.returncode is None:
            # What has crashed is reported a moment later.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    return await process.wait()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return await process.wait()

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, resource="images", retry_after_seconds=1.0)


def _refusal(fault: Fault, text: str, field: str) -> BadRequest:
    reason: FieldReason = "LIMIT_EXCEEDED" if fault is Fault.LIMIT else "INVALID_FIELD"
    part = "mime_type" if fault is Fault.MIME_TYPE else "data"
    return BadRequest(FieldViolation(f"{field}.{part}", text, reason))


def _digest(width: int, height: int, pixels: bytes) -> str:
    return hashlib.sha256(b"%d %d " % (width, height) + pixels).hexdigest()
