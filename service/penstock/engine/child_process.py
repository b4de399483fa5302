"""Run a module of this package in a process of its own, which reads what callers sent and ends with the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.engine.child_environment import child_environment

_LOG = logging.getLogger(__name__)
_TRIES = 2
_CRASH_SECONDS = 0.1
_STDERR_SECONDS = 1.0
_LOGGED_CHARACTERS = 1000
_processes: weakref.WeakSet[asyncio.subprocess.Process] = weakref.WeakSet()


class NotStarted(Exception):
    """Report that the process did not start. The log says why."""


@dataclass(frozen=True, slots=True)
class ChildProgram:
    """A module that serves stdin until that ends, which is when the service does.

    It writes a line to stdout once it is ready. What it writes to stderr until then is logged where it does not start;
    from then on it must write nothing there, for it could be a caller's text.

    Attributes:
        name: What the log calls it.
        module: Name of the module.
        start_seconds: Maximum time until it is ready.
        environment: Variables in addition to those of `child_environment`.
        line_bytes: Longest line that is read from its stdout.
    """

    name: str
    module: str
    start_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    line_bytes: int = 1 << 16

    async def start(
        self, *arguments: str, first_input: Callable[[], bytes] | None = None
    ) -> asyncio.subprocess.Process:
        """Start the process, and once more where it does not start: something on the machine may have ended it.

        Args:
            arguments: Arguments of the program.
            first_input: Returns what the program reads before it is ready; called in a thread.

        Raises:
            NotStarted: It did not start either time. The log says how each time ended.
        """
        for _ in range(_TRIES):
            try:
                return await self._start_once(arguments, first_input)
            except NotStarted as error:
                _LOG.warning("%s did not start: %s", self.name, error)
        raise NotStarted

    async def _start_once(
        self, arguments: tuple[str, ...], first_input: Callable[[], bytes] | None
    ) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", self.module, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=self.line_bytes,
                env=child_environment(**self.environment),
            )
        except OSError as error:
            raise NotStarted(f"{type(error).__name__}: {error.strerror}") from error
        _processes.add(process)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            given = b"" if first_input is None else await asyncio.to_thread(first_input)
            async with asyncio.timeout(self.start_seconds):
                if given:
                    process.stdin.write(given)
                    await process.stdin.drain()
                await process.stdout.readuntil(b"\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            status = await end(process)
            raise NotStarted(f"{type(error).__name__}, exit status {status}{await _written(process)}") from error
        except BaseException:
            await end(process)
            raise
        return process


def running() -> frozenset[int]:
    """Return the process numbers of all such processes of this one: no engine of its has started them."""
    return frozenset(process.pid for process in _processes if process.returncode is None)


async def _written(process: asyncio.subprocess.Process) -> str:
    """Return the end of what a process that has ended wrote to stderr, to be put behind a text."""
    assert process.stderr is not None
    text = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STDERR_SECONDS):
            text = await process.stderr.read()
    shown = text.decode(errors="replace").strip()[-_LOGGED_CHARACTERS:]
    return f"\n{shown}" if shown else ""


async def end(process: asyncio.subprocess.Process) -> int:
    """End a process, unless it has ended. Return its exit status, -N where signal N had ended it."""
    if process.returncode is None:
        # What has crashed is reported a moment later.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CRASH_SECONDS):
                return await process.wait()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return await process.wait()
