"""Base images are pinned by digest: `scripts/image-digests` against a registry on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANIFEST = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
TOKEN = "an-anonymous-token"


class Registry(ThreadingHTTPServer):
    """The distribution API as far as manifests go, with anonymous tokens where `demands_token`."""

    demands_token = False
    tells_digest = True
    digest = DIGEST

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/token?"):
            assert "scope=repository%3Atools%2Fbase%3Apull" in self.path
            return self.answer(200, json.dumps({"token": TOKEN}).encode())
        if self.server.demands_token and self.headers["Authorization"] != f"Bearer {TOKEN}":
            realm = f'Bearer realm="http://{self.server.host}/token",service="s",scope="repository:tools/base:pull"'
            return self.answer(401, b"", {"WWW-Authenticate": realm})
        if self.path != "/v2/tools/base/manifests/1.0" or "image.index" not in self.headers["Accept"]:
            return self.answer(404, b"")
        told = {"Docker-Content-Digest": self.server.digest} if self.server.tells_digest else {}
        return self.answer(200, MANIFEST, told)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def dockerfile(tmp_path: Path, registry: Registry) -> Path:
    made = tmp_path / "a.Dockerfile"
    image = f"{registry.host}/tools/base:1.0"
    lines = [f"--platform=linux/amd64 {image} AS build\nRUN true", "build AS more", image, "scratch"]
    made.write_text("".join(f"FROM {line}\n" for line in lines))
    return made


def digests(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # No crane or skopeo on PATH: they would ask by https.
    command = [sys.executable, str(ROOT / "scripts/image-digests"), f"--folder={folder}", *options]
    environment = {"PATH": "", "NO_PROXY": "127.0.0.1", "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("demands_token", [False, True])
@pytest.mark.parametrize("tells_digest", [False, True])
def test_should_write_the_digest_of_each_base_image(
    registry: Registry, dockerfile: Path, demands_token: bool, tells_digest: bool
) -> None:
    registry.demands_token, registry.tells_digest = demands_token, tells_digest
    before = dockerfile.read_text()
    checked = digests(dockerfile.parent, "--check")
    assert (checked.returncode, dockerfile.read_text()) == (1, before), checked.stderr
    done = digests(dockerfile.parent)
    assert done.returncode == 0, done.stderr
    image = f"{registry.host}/tools/base:1.0"
    assert dockerfile.read_text() == before.replace(image, f"{image}@{DIGEST}")
    assert digests(dockerfile.parent, "--check").returncode == 0


def test_should_renew_an_old_digest(registry: Registry, dockerfile: Path) -> None:
    assert digests(dockerfile.parent).returncode == 0
    registry.digest = f"sha256:{'1' * 64}"
    assert digests(dockerfile.parent, "--check").returncode == 1
    assert digests(dockerfile.parent).returncode == 0
    assert dockerfile.read_text().count(f"@{registry.digest}") == 2
    assert DIGEST not in dockerfile.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("digest", ["sha256:short", f"sha256:{'0' * 64}\u00a0RUN curl", "x"])
def test_should_write_nothing_that_is_no_digest(registry: Registry, dockerfile: Path, digest: str) -> None:
    registry.digest = digest
    before = dockerfile.read_text()
    done = digests(dockerfile.parent)
    assert (done.returncode, dockerfile.read_text()) == (2, before)
    assert "must answer with a sha256 digest" in done.stderr


def test_should_write_nothing_where_a_registry_cannot_be_asked(registry: Registry, dockerfile: Path) -> None:
    (dockerfile.parent / "b.Dockerfile").write_text(f"FROM {registry.host}/tools/base:2.0\n")
    before = dockerfile.read_text()
    done = digests(dockerfile.parent)
    assert (done.returncode, dockerfile.read_text()) == (2, before)
    assert "base:2.0" in done.stderr


def test_should_find_every_from_line_of_the_project() -> None:
    """Ask nothing: only the names are read."""
    program = (
        "import runpy, sys\n"
        "script = runpy.run_path(sys.argv[1])\n"
        "for path in sys.argv[2:]:\n"
        "    for image in script['base_images'](open(path).read()):\n"
        "        print(*script['parsed'](script['without_digest'](image)))\n"
    )
    files = sorted(map(str, (ROOT / "docker").glob("*Dockerfile")))
    command = [sys.executable, "-c", program, str(ROOT / "scripts/image-digests"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.count("registry-1.docker.io library/python 3.11-slim\n") == 6
    assert done.stdout.count("registry-1.docker.io vllm/vllm-openai v0.32.0\n") == 2
