"""The end of the service ends every process of its engine, however the service ends: SIGKILL and a full memory, too.

The service holds the write end of a pipe, one per engine. Each process that vLLM starts opens the read end and lets the
kernel send it SIGKILL once no write end is open any more. No thread has to be scheduled for that, so a process that is
stopped, or busy in a kernel, ends too. It works for every generation of children and under any PID 1, unlike
PR_SET_PDEATHSIG, which follows the thread that started a process, and one generation only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
from typing import NoReturn

log = logging.getLogger(__name__)
VARIABLE = "_PENSTOCK_SERVICE_PIPE"
"""Names the pipe to the processes of the engine: pid of the service, file descriptor, inode."""

_PR_SET_PDEATHSIG = 1
_write_ends: set[int] = set()
_watched = -1


class ServicePipe:
    """Held by the service for one engine; closing it kills what is left of that engine's processes."""

    def __init__(self) -> None:
        # Python opens both close-on-exec: no program that this process starts inherits them.
        self._read, self._write = os.pipe()
        _write_ends.add(self._write)
        # The pid as /proc has it: it may have been mounted for another namespace of pids.
        with contextlib.suppress(OSError):
            self._name = f"{os.readlink('/proc/self')}:{self._read}:{os.fstat(self._read).st_ino}"
            os.stat(f"/proc/self/fd/{self._read}")
            return
        self._name = ""
        log.warning("/proc cannot be read; a service that is killed will leave its engine's processes behind")

    @property
    def environment(self) -> dict[str, str]:
        """Return what the engine's processes need in their environment."""
        return {VARIABLE: self._name} if self._name else {}

    def close(self) -> None:
        """Kill the engine's processes. What this process starts from now on follows no pipe. Idempotent."""
        if self._write not in _write_ends:
            return
        if os.environ.get(VARIABLE) == self._name:
            del os.environ[VARIABLE]
        _write_ends.discard(self._write)
        os.close(self._write)
        os.close(self._read)


def end_with_service() -> None:
    """Let the kernel kill this process at the end of the service that started its engine. Idempotent.

    Do nothing where no service did, and in the service itself. A service that is gone already ends this process now.
    """
    global _watched
    service, _, rest = os.environ.get(VARIABLE, "").partition(":")
    if _watched >= 0 or not service or service == os.readlink("/proc/self"):
        return
    number, _, inode = rest.partition(":")
    path = f"/proc/{service}/fd/{number}"
    try:
        if str(os.stat(path).st_ino) != inode:  # the number was given to another file since, or the pid
            _end()
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        log.warning("cannot watch the service: %s; this process will outlive it if it is killed", error)
        return
    except OSError:
        _end()
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    _watched = pipe
    with contextlib.suppress(BlockingIOError):
        os.read(pipe, 1)  # nobody writes: this is the end of the file, which came before the signal was asked for
        _end()


def end_with_parent() -> None:
    """Let the kernel kill this process, a fork of a process with one thread, when that one ends. See prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)  # not reached


def _after_fork() -> None:
    """A forked child has copies of the write ends, and the signal goes to its parent alone."""
    global _watched
    for end in _write_ends:
        os.close(end)
    _write_ends.clear()
    if _watched >= 0:
        os.close(_watched)
        _watched = -1
        end_with_service()


os.register_at_fork(after_in_child=_after_fork)
