"""Measure what the service's processes use on this machine: CPU time and memory, by psutil.

The process that listens is the front end; its descendants are the engine's. Memory is the resident set, so that pages
which processes share count in each. GPUs count as a whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil
from penstock_bench.load import gpus

FRONT_END, ENGINE, GPU, GENERATOR = "front end", "engine", "GPU", "load generator"
_SAMPLE_SECONDS = 0.5
_GPU_SAMPLE_SECONDS = 2.0
_GIB = 2**30


class NotLocal(Exception):
    """Report why the service's processes cannot be observed."""


def find(target: str, pid: int | None) -> psutil.Process:
    """Return the process that listens at `target`, or the one with `pid`. Raises NotLocal."""
    try:
        if pid is not None:
            return psutil.Process(pid)
        host, _, port = target.rpartition("/")[2].rpartition(":")
        if host.strip("[]") not in ("127.0.0.1", "localhost", "::1"):
            raise NotLocal(
                f"{target} is not this machine's loopback; if the service is here, give its process with --pid"
            )
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr[1] if connection.laddr else None
            if connection.status == psutil.CONN_LISTEN and here == int(port) and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.NoSuchProcess:
        raise NotLocal(f"there is no process {pid}") from None
    except (psutil.AccessDenied, ValueError):
        raise NotLocal(f"the process that listens at {target} cannot be observed; give it with --pid") from None
    raise NotLocal(f"no process that listens at {target} was found on this machine; give it with --pid")


@dataclass(slots=True)
class Used:
    """One process over one window."""

    role: str
    name: str
    cpu_seconds: float = 0.0
    memory_gib: float = 0.0
    """Peak of its resident memory in GiB."""
    memory_at_start_gib: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Samples of its memory, as (seconds since the first, GiB)."""

    def note(self, seconds: float, memory_gib: float) -> None:
        """Keep the highest memory that was seen."""
        self.memory_gib = max(self.memory_gib, memory_gib)
        self.samples.append((seconds, memory_gib))


class Watch:
    """Sample the front end and its descendants, the machine's GPUs, and this process, while `window()` is open."""

    def __init__(self, front_end: psutil.Process | None) -> None:
        self._front_end = front_end

    @contextmanager
    def window(self) -> Iterator[dict[int, Used]]:
        """Yield the use by pid (GPUs: below 0). It is complete once the window is closed."""
        used: dict[int, Used] = {}
        began, before = time.monotonic(), self._cpu()
        self._sample(used, began)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._keep_sampling(used, began))]
        if self._front_end is not None:
            tasks.append(loop.create_task(_keep_sampling_gpus(used, began)))
        try:
            yield used
        finally:
            for task in tasks:
                task.cancel()
            self._sample(used, began)
            for pid, seconds in self._cpu().items():
                if pid in used:
                    used[pid].cpu_seconds = seconds - before.get(pid, 0.0)

    async def _keep_sampling(self, used: dict[int, Used], began: float) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            self._sample(used, began)

    def _all(self) -> Iterator[tuple[str, psutil.Process]]:
        yield GENERATOR, psutil.Process(os.getpid())
        if self._front_end is not None:
            yield FRONT_END, self._front_end
            with suppress(psutil.Error):
                yield from ((ENGINE, child) for child in self._front_end.children(recursive=True))

    def _sample(self, used: dict[int, Used], began: float) -> None:
        for role, process in self._all():
            with suppress(psutil.Error):
                memory = process.memory_info().rss / _GIB
                if process.pid not in used:
                    used[process.pid] = Used(role, _name(process), memory_at_start_gib=memory)
                used[process.pid].note(time.monotonic() - began, memory)

    def _cpu(self) -> dict[int, float]:
        found = {}
        for _, process in self._all():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found


def machine_busy_seconds() -> float:
    """Return the busy CPU seconds of this machine since its start, over all processes."""
    times = psutil.cpu_times()._asdict()
    # Linux counts guests' time as user time, too.
    return float(sum(spent for name, spent in times.items() if name not in ("idle", "iowait", "guest", "guest_nice")))


async def _keep_sampling_gpus(used: dict[int, Used], began: float) -> None:
    while found := await gpus.read():
        for gpu in found:
            one = used.setdefault(
                -1 - gpu.index, Used(GPU, f"{gpu.index}, {gpu.name}", memory_at_start_gib=gpu.used_gib)
            )
            one.note(time.monotonic() - began, gpu.used_gib)
        await asyncio.sleep(_GPU_SAMPLE_SECONDS)


def _name(process: psutil.Process) -> str:
    """Return the name of a process, without its arguments."""
    words = process.cmdline()
    return os.path.basename(words[0]) if words else str(process.name())
