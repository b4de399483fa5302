"""Processes that leave a stream and end: the generation ends, and nothing is printed about what was left."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import free_port
from tests.conformance.tools import NODE, build_go, build_typescript, needs_go, needs_node
from tests.rpc.proxy import proxied
from tests.rpc.scripted_service import scripted_service

ENDLESS = [{"answer": "an answer without an end " * 24, "step_seconds": 0.25}]
SECONDS = 60.0
ASK = 'client.stream("hi")'
# Each ends by itself or by the exception that it raises, with the stream's name still there.
BLOCKING = {
    "no close": f"client = pc.Client(TARGET)\nstream = {ASK}\nnext(stream)\nhold()",
    "loop left": f"client = pc.Client(TARGET)\nstream = {ASK}\nfor event in stream:\n    hold()\n    break",
    "texts kept": (
        f"client = pc.Client(TARGET)\nstream = {ASK}\ntexts = stream.text()\nfor text in texts:\n    hold()\n    break"
    ),
    "not read": f"client = pc.Client(TARGET)\nstream = {ASK}\nhold()",
    "client closed": f"with pc.Client(TARGET) as client:\n    stream = {ASK}\n    next(stream)\n    hold()",
    "steered": "client = pc.Client(TARGET)\nstream = client.interact('hi')\nnext(stream)\nhold()",
}
ASYNC = {
    "no close": f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\nawait anext(stream)\nhold()",
    "loop left": f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\nasync for event in stream:\n    hold()\n    break",
    "texts kept": (
        f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\ntexts = stream.text()\n"
        "async for text in texts:\n    hold()\n    break"
    ),
    "kept": f"global stream\nclient = pc.AsyncClient(TARGET)\nstream = {ASK}\nawait anext(stream)\nhold()",
    "not read": f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\nawait asyncio.to_thread(hold)",
    "client closed": (
        f"async with pc.AsyncClient(TARGET) as client:\n    stream = {ASK}\n    await anext(stream)\n    hold()"
    ),
    "steered": "client = pc.AsyncClient(TARGET)\nstream = client.interact('hi')\nawait anext(stream)\nhold()",
    "a task": (
        f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\n"
        "async def read():\n    async for event in stream: pass\n"
        "tasks = [asyncio.create_task(read())]\nawait asyncio.to_thread(hold)\n"
        "for task in tasks: task.cancel()\nawait asyncio.gather(*tasks, return_exceptions=True)"
    ),
    "a task that nobody waits for": (
        f"client = pc.AsyncClient(TARGET)\nasync def read():\n    async for event in {ASK}: pass\n"
        "task = asyncio.create_task(read())\nawait asyncio.to_thread(hold)"
    ),
    "a generator that nobody closes": (
        f"client = pc.AsyncClient(TARGET)\nasync def read():\n    async for event in {ASK}: yield event\n"
        "events = read()\nawait anext(events)\nhold()"
    ),
    "one reply": (
        "client = pc.AsyncClient(TARGET)\ntask = asyncio.create_task(client.generate('hi'))\n"
        "await asyncio.to_thread(hold)\ntask.cancel()\nawait asyncio.gather(task, return_exceptions=True)"
    ),
}
# A task that is still pending when its loop is gone is reported when it is collected, which may be never.
PENDING = (
    "tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task) and not found.done()]\n"
    "print(*(task for task in tasks if 'penstock' in repr(task)), end='')"
)
# Whether the service is told is asked here, not how fast: beside load an answer takes longer than the second.
HEAD = """
import asyncio, gc, sys, time
import penstock_client as pc
from penstock_client import aio, leaving, sync
aio.CLOSE_SECONDS = leaving.CLOSE_SECONDS = sync.CLOSE_SECONDS = 20.0
TARGET = sys.argv[1]
hold = sys.stdin.readline
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address of the service, URL of its metrics)"""
    port = free_port()
    settings = {"telemetry.prometheus_listen": f"127.0.0.1:{port}", "resume.grace_seconds": "600"}
    with scripted_service(tmp_path_factory.mktemp("leaving"), ENDLESS, settings) as address:
        yield address, f"http://127.0.0.1:{port}/metrics"


def running(metrics: str) -> float:
    with urllib.request.urlopen(metrics, timeout=60) as page:
        found = re.search(r"^penstock_sequences_running(?:{.*})? (\S+)", page.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def becomes(metrics: str, wanted: float) -> bool:
    end = time.monotonic() + SECONDS
    while running(metrics) != wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def start(tmp_path: Path, code: str, target: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(HEAD + code + "\n")
    command = [sys.executable, "-W", "default", str(script), target]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def inside(coroutine: str) -> str:
    return (
        "async def main():\n"
        + "".join(f"    {line}\n" for line in coroutine.splitlines())
        + f"asyncio.run(main())\n{PENDING}"
    )


SCRIPTS = {f"blocking, {name}": code for name, code in BLOCKING.items()}
SCRIPTS |= {f"async, {name}": inside(code) for name, code in ASYNC.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_process_that_ends_leaves_no_generation_and_no_complaint(
    name: str, service: tuple[str, str], tmp_path: Path
) -> None:
    target, metrics = service
    process = start(tmp_path, SCRIPTS[name], target)
    assert becomes(metrics, 1), process.communicate(timeout=60)
    output, complaints = process.communicate("\n", timeout=60)
    assert (process.returncode, output, complaints) == (0, "", "")
    assert becomes(metrics, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_distant_service_is_told_too(name: str, service: tuple[str, str], tmp_path: Path) -> None:
    target, metrics = service
    async with proxied(target, reply_seconds=0.2) as proxy:
        process = start(tmp_path, SCRIPTS[name], proxy.target)
        assert await asyncio.to_thread(becomes, metrics, 1), process.communicate(timeout=60)
        await asyncio.sleep(1.0)  # without the first event, which has the token, the grace period ends the generation
        output, complaints = await asyncio.to_thread(process.communicate, "\n", timeout=60)
        assert (process.returncode, output, complaints) == (0, "", "")
        assert await asyncio.to_thread(becomes, metrics, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_exception_ends_the_generation_too(name: str, service: tuple[str, str], tmp_path: Path) -> None:
    target, metrics = service
    code = SCRIPTS[name].replace("\nasyncio.run", "\n    raise ZeroDivisionError\nasyncio.run")
    process = start(tmp_path, code if "async" in name else code + "\nraise ZeroDivisionError", target)
    assert becomes(metrics, 1), process.communicate(timeout=60)
    _, complaints = process.communicate("\n", timeout=60)
    assert process.returncode == 1
    assert complaints.splitlines()[-1] == "ZeroDivisionError"
    assert "Task" not in complaints
    assert "Exception ignored" not in complaints
    assert becomes(metrics, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.endswith(("loop left", "texts kept"))])
def test_leaving_the_loop_ends_the_generation_of_a_process_that_goes_on(
    name: str, service: tuple[str, str], tmp_path: Path
) -> None:
    target, metrics = service
    after = "await asyncio.to_thread(hold)" if "async" in name else "hold()"
    process = start(tmp_path, re.sub(r"( *)    break", rf"\g<0>\n\1{after}", SCRIPTS[name]), target)
    assert becomes(metrics, 1), process.communicate(timeout=60)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert becomes(metrics, 0)
    assert process.poll() is None
    assert process.communicate("\n", timeout=60) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        f"client = pc.Client(TARGET)\nfor event in {ASK}: pass",
        f"client = pc.Client(TARGET)\nstream = {ASK}\nwhile True: next(stream)",
        "pc.Client(TARGET).generate('hi')",
        inside(f"client = pc.AsyncClient(TARGET)\nasync for event in {ASK}: pass"),
        inside(f"client = pc.AsyncClient(TARGET)\nstream = {ASK}\nwhile True: await anext(stream)"),
        inside("await pc.AsyncClient(TARGET).generate('hi')"),
    ],
)
def test_ctrl_c_ends_the_generation_in_python(code: str, service: tuple[str, str], tmp_path: Path) -> None:
    target, metrics = service
    process = start(tmp_path, code, target)
    assert becomes(metrics, 1), process.communicate(timeout=60)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    assert "Exception ignored" not in complaints
    assert becomes(metrics, 0)


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("language", [pytest.param("Go", marks=needs_go), pytest.param("TypeScript", marks=needs_node)])
def test_ctrl_c_ends_the_generation(language: str, service: tuple[str, str]) -> None:
    target, metrics = service
    command = {
        "Go": lambda: [str(build_go() / "conformance"), "--until-interrupted", target],
        "TypeScript": lambda: [str(NODE), str(build_typescript() / "test/interrupted.mjs"), target],
    }[language]()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert becomes(metrics, 1), process.communicate(timeout=60)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == {"Go": 0, "TypeScript": -signal.SIGINT}[language]
    assert becomes(metrics, 0)
