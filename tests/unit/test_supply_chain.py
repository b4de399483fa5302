"""Nothing is installed that was not pinned by hash; what is pinned is told, and looked up where there are data."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def supply_chain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/supply-chain"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_every_package_is_pinned_with_its_hashes() -> None:
    assert len(LOCKS) >= 2
    for lock in LOCKS:
        entries = re.split(r"\n(?=\S)", lock.read_text().strip())
        loose = [entry.split()[0] for entry in entries if not re.match(r"\S+==\S+ .*--hash=sha256:", entry, re.DOTALL)]
        assert loose == [], lock.name
        assert "git+" not in lock.read_text()


def test_installing_demands_the_hashes() -> None:
    assert "--require-hashes" in (ROOT / "scripts/setup").read_text()
    for dockerfile in (ROOT / "docker").glob("*Dockerfile"):
        for command in re.findall(r"pip install(?:[^\n]*\\\n)*[^\n]*", dockerfile.read_text()):
            # What is built here has no hash; it may bring nothing along, or (on vLLM's own image, whose Python is
            # another than the lock's) only the lock's versions.
            held = ("--require-hashes", "--no-deps", "/constraints.txt")
            assert any(option in command for option in held), f"{dockerfile.name}: {command}"


@pytest.mark.slow
@pytest.mark.needs("audit")
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_bill_of_materials_has_every_package_and_is_reproducible(lock: Path) -> None:
    first, second = supply_chain("sbom", lock), supply_chain("sbom", lock)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    bill = json.loads(first.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "penstock"
    pins = re.findall(r"^([^\s=\[]+)(?:\[[^]]*\])?==(\S+)", lock.read_text(), re.MULTILINE)
    assert {(component["name"], component["version"]) for component in bill["components"]} == set(pins)
    for component in bill["components"]:
        assert any(reference["hashes"] for reference in component["externalReferences"]), component["name"]


@contextmanager
def osv(advisories: dict[tuple[str, str], dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve OSV's query on loopback; yield its address and what it is asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = (query["package"]["name"], query["version"])
            asked.append(question)
            found = advisories.get(question)
            body = json.dumps({"vulns": [found]} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    made = tmp_path / "a.lock"
    made.write_text(
        f"some-package[extra]==1.2+cpu \\\n    --hash=sha256:{'0' * 64}\nother==3.0 ; python_version < '4'\n"
    )
    return made


@pytest.mark.slow
@pytest.mark.needs("audit")
def test_a_known_hole_is_told(lock: Path) -> None:
    package = {"name": "some-package", "ecosystem": "PyPI"}
    advisory = {
        "id": "PYSEC-1",
        "aliases": ["CVE-2026-1"],
        "summary": "reads too much",
        "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.3"}]}]}],
    }
    with osv({("some-package", "1.2"): advisory}) as (url, asked):
        done = supply_chain("audit", "--lock", lock, "--osv-url", url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "some-package 1.2: PYSEC-1, CVE-2026-1: reads too much; fixed in ['1.3']" in done.stdout
    assert {("some-package", "1.2"), ("other", "3.0")} <= set(asked)


@pytest.mark.slow
@pytest.mark.needs("audit")
def test_no_known_hole_passes(lock: Path) -> None:
    with osv({}) as (url, _):
        done = supply_chain("audit", "--required", "--lock", lock, "--osv-url", url)
    assert (done.returncode, done.stdout) == (0, "2 pinned packages looked up, 0 advisories that are not accepted\n")


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--required",), 3)])
def test_without_the_data_base_the_audit_says_so_and_fails_where_it_is_required(
    options: tuple[str, ...], status: int
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/v1/query"
        done = supply_chain("audit", "--osv-url", url, *options)
    assert done.returncode == status
    assert done.stdout.count("\n") == 1
    assert re.match(r"WARNING: advisories NOT looked up for \d+ pinned packages: ", done.stdout)
