"""The processes that one vLLM engine started, and their end when the engine itself can no longer see to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil


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
    """SIGKILL, which also ends what is stopped or hangs; psutil refuses pids that were given to others since."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(processes), timeout=wait_seconds)
