"""An engine over several machines: what the service says to vLLM, and what the nodes that only compute do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from penstock.config.schema import Config, EngineSettings
from penstock.engine.images import ImageDecoder
from penstock.engine.images.cache import limits_of
from penstock.engine.vllm import lifetime, nodes, start
from penstock.engine.vllm.nodes import compute, find_leader
from penstock.errors import EngineDown

from tests.pictures import png

WAITS = "import sys, time; sys.stdin.read(); open(sys.argv[1], 'a').write('x'); time.sleep(600)"
MORTAL = (
    "import os, sys, time; file = sys.argv[1]; sys.stdin.read(); open(file, 'a').write('x')\n"
    "while not os.path.exists(file + '.end'): time.sleep(0.02)\n"
    "open(file + '.ended', 'w')"
)
"""Ends once there is a file starts.end."""
FAILS = "import sys; sys.stdin.read(); sys.exit(3)"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_CHECK_SECONDS", 0.05)


@dataclass
class Node:
    """A node that computes, with a stand-in for vLLM's part; node 0 is a port that is open or not."""

    task: asyncio.Task[int]
    stop: asyncio.Event
    starts: Path
    said: list[str] = field(default_factory=list)

    @property
    def parts_started(self) -> int:
        return len(self.starts.read_text()) if self.starts.exists() else 0


async def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def leader(port: int = 0, met: list[None] | None = None) -> asyncio.Server:
    """`met` grows by one with each connection."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if met is not None:
            met.append(None)
        writer.close()

    return await asyncio.start_server(greet, "127.0.0.1", port)


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


@asynccontextmanager
async def node(port: int, folder: Path, code: str = WAITS, hold_seconds: float = 60.0) -> AsyncIterator[Node]:
    settings = EngineSettings(nodes=2, node_rank=1, leader_address="localhost", leader_port=port)
    stop, said, starts = asyncio.Event(), list[str](), folder / "starts"
    command = (sys.executable, "-c", code, str(starts))
    node = Node(asyncio.create_task(compute(settings, stop, said.append, hold_seconds, command)), stop, starts, said)
    try:
        yield node
    finally:
        node.task.cancel()
        await asyncio.gather(node.task, return_exceptions=True)


async def test_should_join_the_next_engine_when_node_0_replaces_its_own(tmp_path: Path) -> None:
    met: list[None] = []
    server = await leader(met=met)
    port = port_of(server)
    async with node(port, tmp_path) as there:
        await eventually(lambda: there.parts_started == 1)
        await eventually(lambda: len(met) > 3)
        assert there.parts_started == 1, "it lives as long as node 0's engine"
        server.close()
        await eventually(lambda: there.parts_started == 2)
        assert "node 0's engine is gone; waiting for the next one" in there.said
        met.clear()
        again = await leader(port, met)
        await eventually(lambda: len(met) > 1)
        there.stop.set()
        await asyncio.sleep(0.3)
        assert not there.task.done(), "streams drain through it"
        again.close()
        assert await asyncio.wait_for(there.task, 30) == 0


async def test_should_end_after_the_drain_even_where_node_0_goes_on(tmp_path: Path) -> None:
    server = await leader()
    async with node(port_of(server), tmp_path, hold_seconds=0.2) as there:
        await eventually(lambda: there.parts_started == 1)
        await asyncio.sleep(0.3)
        there.stop.set()
        assert await asyncio.wait_for(there.task, 30) == 0
    server.close()


async def test_should_fail_where_its_part_ends_before_it_joined(tmp_path: Path) -> None:
    server = await leader()
    port = port_of(server)
    server.close()
    async with node(port, tmp_path, FAILS) as there:
        assert await asyncio.wait_for(there.task, 30) == 1
        assert there.said[-1] == "this node's part of the engine ended before it joined, exit status 3"


async def test_should_never_join_an_engine_that_runs(tmp_path: Path) -> None:
    met: list[None] = []
    server = await leader(met=met)
    async with node(port_of(server), tmp_path, MORTAL) as there:
        await eventually(lambda: there.parts_started == 1)
        await eventually(lambda: len(met) > 3)  # it has seen node 0's engine
        (tmp_path / "starts.end").touch()
        await eventually((tmp_path / "starts.ended").exists)
        met.clear()
        await eventually(lambda: len(met) > 10)
        assert there.parts_started == 1
        server.close()
        await eventually(lambda: there.parts_started == 2)


async def test_should_stop_while_node_0_cannot_be_found() -> None:
    settings = EngineSettings(nodes=2, node_rank=1, leader_address="nobody.invalid")
    stop = asyncio.Event()
    task = asyncio.create_task(compute(settings, stop, lambda _: None, 60))
    await asyncio.sleep(0.1)
    stop.set()
    assert await asyncio.wait_for(task, 30) == 0


async def test_should_tell_a_leader_that_cannot_be_found() -> None:
    with pytest.raises(EngineDown, match=r"engine\.leader_address: cannot resolve nobody\.invalid"):
        await find_leader(EngineSettings(nodes=2, leader_address="nobody.invalid"), wait_seconds=0)


async def test_should_leave_a_single_node_alone() -> None:
    alone = EngineSettings(leader_address="nobody.invalid")
    assert await find_leader(alone, wait_seconds=0) is alone


@pytest.mark.parametrize(
    ("engine", "said"),
    [({"nodes": 2}, "leader_address"), ({"nodes": 2, "node_rank": 2, "leader_address": "a"}, "must be below nodes")],
)
def test_should_refuse_nodes_without_a_place(engine: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"engine": engine})


async def test_a_start_that_is_no_longer_wanted_should_end_with_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading waits in a thread for other processes, of other nodes too; SIGTERM must not wait with it."""
    begun = threading.Event()
    codes: list[int] = []

    def load(*_: object) -> None:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        begun.set()
        codes.append(process.wait())

    monkeypatch.setattr(start, "_load", load)
    # A start that was cancelled leaves the name of its pipe to what its thread still starts; other tests start others.
    monkeypatch.setenv(lifetime.VARIABLE, "")
    nothing: Any = None
    task = asyncio.create_task(start._loaded(EngineSettings(), start.StartPlan(nothing, nothing, ""), False))
    await asyncio.to_thread(begun.wait, 60)
    decoder = ImageDecoder(limits_of(EngineSettings()))
    assert (await decoder.decode(png(8, 8), "image/png", "field", "caller")).width == 8
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    await eventually(lambda: bool(codes))
    assert decoder._process is not None
    assert decoder._process.returncode is None, "it is not the engine's"
    assert psutil.Process(decoder._process.pid).status() != psutil.STATUS_ZOMBIE
    await decoder.close()
