"""End every process of an engine with its service, also when the service is killed by SIGKILL or for lack of memory.

The service holds the write end of a pipe, one per engine. Each process that vLLM starts opens the read end and lets the
kernel send it SIGKILL when no write end is open any more. No thread has to run for that, so a process that is stopped,
or busy in a kernel, ends too. It works for all generations of child processes and under any PID 1, unlike
PR_SET_PDEATHSIG, which follows the thread that started a process, and one generation only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
from dataclasses import dataclass
from typing import NoReturn

log = logging.getLogger(__name__)
VARIABLE = "_PENSTOCK_SERVICE_PIPE"
"""Names the pipe to the processes of the engine: pid of the service, file descriptor, inode."""

_PR_SET_PDEATHSIG = 1
_write_ends: set[int] = set()
_watched = -1


class ServicePipe:
    """The service's end of one engine's pipe. Closing it kills the processes that are left of that engine."""

    def __init__(self) -> None:
        # Python opens both close-on-exec: no program that this process starts inherits them.
        self._read, self._write = os.pipe()
        _write_ends.add(self._write)
        # The pid as in /proc, which may have been mounted for another pid namespace.
        with contextlib.suppress(OSError):
            self._name = f"{os.readlink('/proc/self')}:{self._read}:{os.fstat(self._read).st_ino}"
            os.stat(f"/proc/self/fd/{self._read}")
            return
        self._name = ""
        log.warning("cannot read /proc; if the service is killed, its engine's processes will keep running")

    @property
    def environment(self) -> dict[str, str]:
        """Return environment variables for the engine's processes."""
        return {VARIABLE: self._name} if self._name else {}

    def close(self) -> None:
        """Kill the engine's processes. Processes that are started later follow no pipe. Idempotent."""
        if self._write not in _write_ends:
            return
        if os.environ.get(VARIABLE) == self._name:
            del os.environ[VARIABLE]
        _write_ends.discard(self._write)
        os.close(self._write)
        os.close(self._read)


@dataclass(frozen=True, slots=True)
class HostResources:
    """Resources of this machine that an engine frees at its end."""

    pipe: ServicePipe
    """Ends the engine's processes when it is closed."""
    free_before: tuple[int, ...]
    """Free bytes of each GPU before the engine was started."""


def end_with_service() -> None:
    """Let the kernel kill this process when the service that started its engine ends. Idempotent.

    Do nothing in the service itself, and in a process that no service started. If the service has ended already, this
    process ends now.
    """
    global _watched
    service, _, rest = os.environ.get(VARIABLE, "").partition(":")
    if _watched >= 0 or not service or service == os.readlink("/proc/self"):
        return
    number, _, inode = rest.partition(":")
    path = f"/proc/{service}/fd/{number}"
    try:
        if str(os.stat(path).st_ino) != inode:  # the file descriptor or the pid was reused since
            _end()
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        log.warning("cannot watch the service: %s; if it is killed, this process will keep running", error)
        return
    except OSError:
        _end()
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    _watched = pipe
    with contextlib.suppress(BlockingIOError):
        os.read(pipe, 1)  # nothing is ever written: this is the end of the file, from before the signal was set up
        _end()


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent, which must have one thread, ends. See prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)  # not reached


def _after_fork() -> None:
    """Close the copies of the write ends in a forked child, and let the signal go to it, not to its parent only."""
    global _watched
    for end in _write_ends:
        os.close(end)
    _write_ends.clear()
    if _watched >= 0:
        os.close(_watched)
        _watched = -1
        end_with_service()


os.register_at_fork(after_in_child=_after_fork)
