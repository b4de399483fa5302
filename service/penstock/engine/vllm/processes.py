"""Find the processes that one vLLM engine started, and kill them when the engine cannot end them itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import psutil

_CHECK_SECONDS = 0.05


def processes_of(llm: Any) -> tuple[psutil.Process, ...]:
    """Return the engine cores of an AsyncLLM and all processes below. They must be alive: orphans keep no parent."""
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
    """Return all processes below this one."""
    return tuple(psutil.Process().children(recursive=True))


def kill(processes: Sequence[psutil.Process], wait_seconds: float) -> None:
    """Send SIGKILL, which also ends processes that are stopped or hang, and wait up to `wait_seconds` for their ends.

    psutil refuses pids that have been reused. A zombie counts as ended: if its parent is gone it belongs to PID 1,
    which in a container may never reap it.

    Those that multiprocessing started, as vLLM's engine cores, are waited for through it. It takes a child for alive
    whose exit status psutil has read, and a process whose threads still end counts as a zombie. For such a process,
    vLLM's shutdown looks at what is below it: that fails where it ends meanwhile, with vLLM's sockets still open, or
    kills what has its number by then.
    """
    started = multiprocessing.active_children()
    own = [(process, child) for process in processes for child in started if child.pid == process.pid]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    left, until = list(processes), time.monotonic() + wait_seconds
    while any(child.is_alive() and process.is_running() for process, child in own) and time.monotonic() < until:
        time.sleep(_CHECK_SECONDS)
    while left and time.monotonic() < until:
        _, running = psutil.wait_procs(left, timeout=_CHECK_SECONDS)
        left = [process for process in running if not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
