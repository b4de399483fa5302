"""`penstock playground`: a service, a gateway and a page, which come together and go together."""

from __future__ import annotations

import json
import re
import signal
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


@pytest.fixture
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it has told its page's address."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
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


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_all_of_it_comes_and_goes_together(running: tuple[subprocess.Popen[str], str], end: signal.Signals) -> None:
    process, url = running
    assert b"<title>Penstock playground</title>" in get(url)[1]
    assert json.loads(get(f"{url}playground/api/model")[1])["model"]
    load = json.loads(get(f"{url}playground/api/load")[1])
    assert load["queue"]["queued_calls"] == 0
    assert load["queue"]["capacity_sequences"] > 0
    ours = children(process.pid)
    assert len(ours) >= 2
    process.send_signal(end)
    assert process.wait(END_SECONDS) == (0 if end is signal.SIGINT else 128 + end)
    deadline = time.monotonic() + END_SECONDS
    while any(_runs(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in ours if _runs(pid)]
    with pytest.raises(urllib.error.URLError):
        get(url)


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
