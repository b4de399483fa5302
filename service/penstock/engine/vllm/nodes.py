"""Run an engine over several machines: find node 0, and do the other nodes' part.

vLLM runs a part of the engine on each node ("headless") and does not notice that other nodes are gone: its workers wait
for ever. So a process supervises that part. It starts it when node 0 can be found, ends it when node 0's engine is
gone, and starts it again for the next engine. Thus the supervisor on node 0 can replace an engine on several machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from penstock.config.schema import EngineSettings
from penstock.engine.vllm.lifetime import ServicePipe
from penstock.engine.vllm.processes import kill
from penstock.errors import EngineDown

Progress = Callable[[str], None]
HEADLESS = (sys.executable, "-m", "penstock.engine.vllm.headless")
_CHECK_SECONDS = 1.0
_KILL_SECONDS = 10.0
_FIND_SECONDS = 600.0
_MISSES = 3
"""Connections in a row that must fail before node 0's engine counts as gone."""


async def find_leader(settings: EngineSettings, wait_seconds: float = _FIND_SECONDS) -> EngineSettings:
    """Return the settings with node 0's address in numbers, because vLLM cannot listen on a name.

    A pod's name exists only once the pod has its address, so wait for it. Raise `errors.EngineDown` after
    `wait_seconds`.
    """
    if settings.nodes == 1:
        return settings
    until = time.monotonic() + wait_seconds
    loop = asyncio.get_running_loop()
    while True:
        try:
            found = await loop.getaddrinfo(settings.leader_address, settings.leader_port, type=socket.SOCK_STREAM)
            return settings.model_copy(update={"leader_address": found[0][4][0]})
        except OSError as error:
            if time.monotonic() > until:
                raise EngineDown(
                    f"engine.leader_address: cannot resolve {settings.leader_address} after {wait_seconds:g} s"
                ) from error
            await asyncio.sleep(_CHECK_SECONDS)


async def compute(
    settings: EngineSettings,
    stop: asyncio.Event,
    progress: Progress,
    hold_seconds: float,
    command: Sequence[str] = HEADLESS,
) -> int:
    """Compute for node 0 until `stop`. Return the exit status: 1 where this node's part ended before it had joined.

    After `stop`, continue while node 0's engine lives, at most `hold_seconds`, because its streams drain through this
    node.
    """
    while not stop.is_set():
        found = await _unless(stop, find_leader(settings))
        if found is None:
            break
        progress(f"node {settings.node_rank} of {settings.nodes}: joining {found.leader_address}:{found.leader_port}")
        part = await _Part.start(found, command)
        try:
            joined = await part.until_it_ends_or_is_alone(stop, hold_seconds)
        finally:
            await part.end()
        if stop.is_set():
            break
        if not joined:
            progress(f"this node's part of the engine ended before it joined, exit status {part.process.returncode}")
            return 1
        progress("node 0's engine is gone; waiting for the next one")
    return 0


async def _unless(stop: asyncio.Event, wanted: Coroutine[Any, Any, EngineSettings]) -> EngineSettings | None:
    finding, stopping = asyncio.create_task(wanted), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({finding, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return finding.result() if finding.done() else None
    finally:
        finding.cancel()
        stopping.cancel()


@dataclass(slots=True)
class _Part:
    """This node's part of one engine."""

    settings: EngineSettings
    process: asyncio.subprocess.Process
    pipe: ServicePipe

    @classmethod
    async def start(cls, settings: EngineSettings, command: Sequence[str]) -> _Part:
        """Start the process and send it the settings."""
        pipe = ServicePipe()
        # By stdin: other users of the machine can read arguments, which may contain secrets.
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, start_new_session=True, env=os.environ | pipe.environment
            )
        except BaseException:
            pipe.close()
            raise
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(settings.model_dump_json().encode())
            process.stdin.write_eof()
            await process.stdin.drain()
        return cls(settings, process, pipe)

    async def until_it_ends_or_is_alone(self, stop: asyncio.Event, hold_seconds: float) -> bool:
        """Wait until this part can go. Return whether node 0's engine was seen.

        A part that ended by itself is replaced only after node 0's engine has gone too: no part can join a running
        engine.
        """
        seen, misses, hold_until = False, 0, None
        while misses < _MISSES:
            if stop.is_set() and hold_until is None:
                hold_until = time.monotonic() + hold_seconds
            if hold_until is not None and (not seen or time.monotonic() > hold_until):
                return seen
            up = await self._leader_is_up()
            seen, misses = seen or up, 0 if up or not seen else misses + 1
            if not seen and self.process.returncode is not None:
                return False
            await asyncio.sleep(_CHECK_SECONDS)
        return seen

    async def _leader_is_up(self) -> bool:
        """Return whether node 0's port is open, which it is while its first worker lives."""
        try:
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(self.settings.leader_address, self.settings.leader_port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def end(self) -> None:
        """End the process with all that it started: processes that wait for a lost node do not end by themselves."""
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.pipe.close()
        await asyncio.to_thread(kill, below, _KILL_SECONDS)
        await self.process.wait()
