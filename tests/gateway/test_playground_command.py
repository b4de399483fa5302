"""`penstock playground`: a service, a gateway and a page, which come together and go together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPLIES = [{"thought": "hm", "answer": "yes"}]
END_SECONDS = 60.0


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps(REPLIES))
    given = [sys.executable, "-m", "penstock", "playground", "--listen", "127.0.0.1:0", "--no-browser"]
    return [*given, "--set", "engine.kind=scripted", "--set", f"engine.model={replies}"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command has its folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def started(command: list[str]) -> subprocess.Popen[str]:
    """Start the command in a session of its own, as a shell does; what it says is read from one pipe."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it has told its page's address."""
    with started(command) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"playground: (http://127\.0\.0\.1:\d+/)$", line):
                yield process, found[1]
                break
        else:
            pytest.fail("".join(said))
        process.kill()


def get(url: str) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as page:
        return page.status, page.read()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, found) for one in (child, *children(child))]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_of_it_comes_and_goes_together(
    running: tuple[subprocess.Popen[str], str], end: signal.Signals, temporary: Path
) -> None:
    process, url = running
    assert b"<title>Penstock playground</title>" in get(url)[1]
    assert json.loads(get(f"{url}playground/api/model")[1])["model"]
    load = json.loads(get(f"{url}playground/api/load")[1])
    assert load["queue"]["queued_calls"] == 0
    assert load["queue"]["capacity_sequences"] > 0
    ours = children(process.pid)
    assert len(ours) >= 2
    assert len(list(temporary.glob("penstock-playground-*"))) == 1
    process.send_signal(end)
    expected = {signal.SIGINT: 0, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
    assert process.wait(END_SECONDS) == expected[end]
    deadline = time.monotonic() + END_SECONDS
    while any(_runs(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in ours if _runs(pid)]
    with pytest.raises(urllib.error.URLError):
        get(url)
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase", ["starting the service", "listening on", "ready after", "playground: ", "Ctrl-C ends"]
)
def test_an_interrupt_in_any_phase_is_told_and_leaves_nothing(command: list[str], phase: str, temporary: Path) -> None:
    with started(command) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if phase in line or "Ctrl-C ends" in line:
                break
        process.send_signal(signal.SIGINT)
        said += process.stdout
    is_shown = any(line.startswith("playground: ") for line in said)
    assert process.returncode == (0 if is_shown else 130)
    assert (said[-1] == "penstock: interrupted\n") is not is_shown
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_page_is_opened_in_the_browser(command: list[str], tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$@" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    command.remove("--no-browser")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = next(line for line in process.stdout if line.startswith("playground: ")).split()[1]
        deadline = time.monotonic() + END_SECONDS
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert opened.read_text() == f"{url}\n"
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("nowhere", "must be host:port, got 'nowhere'"),
        (":8080", "must be host:port, got ':8080'"),
        ("unix:/x", "must be host:port, got 'unix:/x'"),
        ("127.0.0.1:99999", "must be host:port with a port in [0, 65535]"),
        ("192.0.2.1:8080", "cannot bind 192.0.2.1:8080"),
        ("", "must be host:port"),
        (None, "address already in use"),
    ],
)
def test_an_address_that_no_page_can_have_is_refused_before_the_service_starts(
    command: list[str], listen: str | None, why: str, temporary: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command[command.index("--listen") + 1] = f"127.0.0.1:{taken.getsockname()[1]}" if listen is None else listen
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in re.sub(r"[│\s]+", " ", done.stderr)
    assert list(temporary.iterdir()) == []


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is asked
        return False


def test_a_service_that_does_not_start_is_told_with_its_log(command: list[str]) -> None:
    done = subprocess.run(
        [*command, "--set", "engine.max_context_tokens=-5"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "the service ended with exit code 2" in done.stderr
    assert "engine.max_context_tokens" in done.stderr


def test_a_setting_that_is_none_is_refused(command: list[str]) -> None:
    done = subprocess.run([*command, "--set", "x"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "must be key=value, got 'x'" in done.stderr
