"""The processes that one vLLM engine started, and their end when the engine itself can no longer see to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import psutil

_CHECK_SECONDS = 0.05


def processes_of(llm: Any) -> tuple[psutil.Process, ...]:
    """The engine cores of an AsyncLLM and everything below them. Taken while they live: orphans keep no parent."""
    manager = llm.engine_core.resources.engine_manager
    found: list[psutil.Process] = []
    for core in manager.processes if manager is not None else ():
        try:
            process = psutil.Process(core.pid)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return tuple(found)


def children() -> tuple[psutil.Process, ...]:
    """All below this process."""
    return tuple(psutil.Process().children(recursive=True))


def kill(processes: Sequence[psutil.Process], wait_seconds: float) -> None:
    """Send SIGKILL, which also ends what is stopped or hangs, and wait for the ends, at most so long.

    psutil refuses pids that were given to others since. A zombie has ended: one whose parent is gone belongs to PID 1,
    which in a container may never reap it.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    left, until = list(processes), time.monotonic() + wait_seconds
    while left and time.monotonic() < until:
        _, running = psutil.wait_procs(left, timeout=_CHECK_SECONDS)
        left = [process for process in running if not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
