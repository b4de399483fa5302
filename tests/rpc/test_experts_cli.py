"""`penstock experts` against a server whose engine counts: map, picture, JSON, and a terminal that is left cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.cli import app
from penstock.cli.experts_map import heat_map
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.server.server import Server
from penstock_client import Client, ExpertLoad, FeatureOff, InvalidRequest
from penstock_proto.v1 import routing_pb2 as pb
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.rpc.test_expert_load import Routed


@pytest.fixture(scope="module")
def targets() -> Iterator[tuple[str, str]]:
    """A server whose engine counts and one whose engine does not, on a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start(engine: ScriptedEngine) -> tuple[Server, str]:
        server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}))
        address = await server.listen()
        await server.serve_with(engine)
        return server, address

    served = [
        asyncio.run_coroutine_threadsafe(start(engine), loop).result(10) for engine in (Routed(), ScriptedEngine(()))
    ]
    yield served[0][1], served[1][1]
    for server, _ in served:
        asyncio.run_coroutine_threadsafe(server.drain(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def run(target: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["experts", "--target", target, *arguments])


def load(layers: int, experts: int, ranks: int = 1) -> ExpertLoad:
    rows = [
        pb.LayerLoad(
            layer_index=layer,
            expert_token_counts=[100] * (experts - 1) + [300],
            imbalance=2.5,
            normalized_entropy=0.987,
            hot_experts=[experts - 1],
            busiest_rank_share=0.75,
        )
        for layer in range(layers)
    ]
    return ExpertLoad.from_proto(pb.ExpertLoad(token_count=12_345, rank_count=ranks, layers=rows))


def drawn(what: ExpertLoad, width: int, colour: bool = False) -> list[str]:
    console = Console(width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    with console.capture() as captured:
        console.print(heat_map(what, console))
    return captured.get().splitlines()


def test_one_look_where_there_is_no_terminal(targets: tuple[str, str]) -> None:
    result = run(targets[0], "--window", "3600")
    assert result.exit_code == 0
    title, head, *rows, legend = result.output.splitlines()
    assert re.match(r"[\d,]+ tokens in \d+ s, 2 layers of 4 experts, 2 ranks$", title)
    assert "max/mean" in head
    assert "busiest rank" in head
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert all("4.00x" in row and row.endswith("  1") for row in rows)
    assert "more" in legend


def test_json_is_the_reply(targets: tuple[str, str]) -> None:
    reply = json.loads(run(targets[0], "--json", "--ranks", "4").output)
    assert reply["rank_count"] == 4
    assert [len(layer["expert_token_counts"]) for layer in reply["layers"]] == [4, 4]


def test_the_picture(targets: tuple[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "experts.png"
    result = run(targets[0], "--png", str(picture))
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["experts.gif", "nowhere/experts.png"])
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path: Path, name: str) -> None:
    result = run("127.0.0.1:1", "--png", str(tmp_path / name))
    assert result.exit_code == 2
    assert "--png" in result.output


def test_a_server_that_does_not_count_says_why(targets: tuple[str, str]) -> None:
    result = run(targets[1])
    assert result.exit_code == 1
    assert "the scripted engine has no experts" in result.output


def test_the_client_tells_it_too(targets: tuple[str, str]) -> None:
    with Client(targets[0]) as client:
        client.expert_load()
        whole = client.expert_load(window_seconds=3600, ranks=1)
        assert whole.layers[1].hot_experts == (1,)
        assert whole.layers[0].busiest_rank_share == 1.0
        looks = client.watch_expert_load(interval_seconds=0.1)
        assert next(looks).layers
        assert next(looks).window_seconds > 0
        looks.close()
        with pytest.raises(InvalidRequest):
            next(client.watch_expert_load(interval_seconds=0.01))
    with Client(targets[1]) as client, pytest.raises(FeatureOff):
        client.expert_load()


@pytest.mark.parametrize(("experts", "width"), [(8, 80), (128, 100), (512, 200), (512, 60)])
def test_the_map_fits_and_a_hot_expert_is_seen_in_it(experts: int, width: int) -> None:
    lines = drawn(load(3, experts, ranks=8), width)
    rows = [line for line in lines if re.match(r" +\d ", line)]
    assert len(rows) == 3
    assert all(len(line) <= width for line in lines)
    assert all("█" in row for row in rows)
    assert all(row.split()[0] == str(number) for number, row in enumerate(rows))


def test_colour_where_there_is_any() -> None:
    row = drawn(load(1, 4), 100, colour=True)[2]
    assert row.count("\x1b[38;2;") == 4


def test_a_terminal_shows_it_live_and_ctrl_c_leaves_it_as_it_was(targets: tuple[str, str]) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "penstock", "experts", "--target", targets[0], "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        while seen.count(b"tokens in") < 4 and time.monotonic() < deadline:
            if select.select([master], [], [], 1.0)[0]:
                seen += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # nobody is at the other end any more
                    seen += os.read(master, 65536)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(master)
    text = seen.decode(errors="replace")
    assert text.count("tokens in") >= 4
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is back
    assert "Traceback" not in text
