"""`make setup` that is interrupted: no traceback, one line, and the next one repairs what was left."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit.tiny_wheel import wheel

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SAID = "set-up interrupted: run `make setup` again to continue"
BACKEND = """
import pathlib, sys
sys.path.insert(0, "{tests}")
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = pathlib.Path.cwd().name.replace("-", "_")
    from tests.unit.tiny_wheel import wheel
    return wheel(pathlib.Path(folder), name).name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class Index(ThreadingHTTPServer):
    """A package index; one that `holds` says nothing to whoever asks it for a package."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.holds = folder, True
        self.asked, self.released = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.server.holds:
            self.server.asked.set()
            self.server.released.wait(120)
            return
        name = self.path.rstrip("/").rpartition("/")[2]
        file = self.server.folder / name
        found = file.read_bytes() if file.is_file() else f'<a href="/{name}-1.0-py3-none-any.whl">it</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if file.is_file() else "text/html")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index").mkdir()
    with Index(tmp_path / "index") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def clone(tmp_path: Path, index: Index) -> Path:
    """Return what `make setup` reads, with packages of a few bytes."""
    made = tmp_path / "clone"
    for project in (made, *(made / name for name in ("clients/python-proto", "clients/python", "bench", "gateway"))):
        project.mkdir(parents=True)
        (project / "pyproject.toml").write_text(PROJECT)
        (project / "backend.py").write_text(BACKEND.format(tests=ROOT))
    (made / "scripts").mkdir()
    (made / "requirements").mkdir()
    shutil.copy(ROOT / "scripts/setup", made / "scripts/setup")
    shutil.copy(ROOT / "Makefile", made / "Makefile")
    lock = ""
    for name in ("torch", "alpha"):
        file = wheel(index.folder, name)
        lock += f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    (made / "requirements/cpu.lock").write_text(lock)
    return made


def environ(index: Index) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
    url = f"http://127.0.0.1:{index.server_port}/simple"
    return kept | {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}


def make(clone: Path, index: Index) -> subprocess.Popen[str]:
    """In a session of its own, as a terminal's foreground job is."""
    python = getattr(sys, "_base_executable", sys.executable)
    return subprocess.Popen(
        ["make", "setup", f"PYTHON={python}"],
        cwd=clone,
        env=environ(index),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def whole(clone: Path, index: Index) -> str:
    """Run it to its end. Return what it said."""
    index.holds = False
    done = make(clone, index)
    said, errors = done.communicate(timeout=250)
    assert done.returncode == 0, said + errors
    modules = "import alpha, torch; assert alpha.whole and torch.whole"
    subprocess.run([clone / ".venv/bin/python", "-c", modules], check=True)
    return said


def ends(group: int) -> bool:
    """Whether the processes of the group end; the last one may do so after those that it was started by."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("whom", ["all", "script"])
def test_an_interrupt_while_packages_come(whom: str, clone: Path, index: Index) -> None:
    """Ctrl-C reaches make, the script and pip; a signal from elsewhere may reach the script alone."""
    running = make(clone, index)
    assert index.asked.wait(250)
    if whom == "all":
        os.killpg(running.pid, signal.SIGINT)
    else:
        [script] = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(script), signal.SIGINT)
    said, errors = running.communicate(timeout=250)
    assert running.returncode != 0
    assert "Traceback" not in said + errors
    assert errors.count(SAID) == 1
    assert not (clone / ".venv/ready").exists()
    assert ends(running.pid), "something goes on behind the next one's back"
    assert "looking for incomplete packages" in whole(clone, index)
    done = make(clone, index)
    assert (done.communicate(timeout=250)[1], done.returncode) == ("", 0), "there is nothing left to do"


def test_what_was_left_half_made_is_repaired(clone: Path, index: Index) -> None:
    whole(clone, index)
    [packages] = (clone / ".venv/lib").glob("python*/site-packages")
    (packages / "alpha/__init__.py").unlink()
    (packages / "torch-1.0.dist-info/RECORD").unlink()
    (clone / ".venv/unfinished").touch()
    (clone / ".venv/ready").unlink()
    said = whole(clone, index)
    assert "incomplete: alpha-1.0.dist-info" in said
    assert "incomplete: torch-1.0.dist-info" in said

    # A pip that does not run: the environment is made again.
    shutil.rmtree(packages / "pip/_internal/cli")
    (clone / ".venv/ready").unlink()
    assert "making the virtual environment" in whole(clone, index)


def test_an_interrupt_before_anything_has_begun(clone: Path) -> None:
    """Among the script's own imports, which Python would end with a traceback."""
    text = (clone / "scripts/setup").read_text()
    early = text.replace("import subprocess\n", "import subprocess\nos.kill(os.getpid(), signal.SIGINT)\n", 1)
    assert early != text
    (clone / "scripts/setup").write_text(early)
    command = [sys.executable, "scripts/setup", ".venv", "requirements/cpu.lock"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=250)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_told(clone: Path, index: Index) -> None:
    index.holds = False
    limit = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (10, 10)); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", limit, sys.executable, "scripts/setup", ".venv", "requirements/cpu.lock"]
    done = subprocess.run(command, cwd=clone, env=environ(index), capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    assert done.stderr.startswith("set-up failed: ")
    assert "Traceback" not in done.stderr
