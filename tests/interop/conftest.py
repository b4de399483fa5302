"""Services in processes of their own on the scripted engine, plain and with TLS, alone and behind each proxy."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.interop.proxies import NAMES, Tls, proxy
from tests.rpc.secure import Authority

ROOT = Path(__file__).parents[2]
PARALLEL = 900
REPLIES = [
    {"match": "SHORT", "thought": "a thought", "answer": "a short answer"},
    {"match": "PARALLEL", "thought": "", "answer": "told", "chunk_tokens": 4, "step_seconds": 0.5},
    {"match": "SLOW THOUGHT", "thought": "so " * 400, "answer": "cut short", "step_seconds": 0.25},
    {"match": "SLOW ANSWER", "thought": "", "answer": "on " * 400, "step_seconds": 0.25},
    {"match": "AGED", "thought": "a thought", "answer": "an answer", "step_seconds": 0.1},
]
_CONFIG: dict[str, Any] = {
    # All calls are of one caller here: this machine.
    "admission": {"max_starts_per_second": 1e6, "max_running_sequences": 1024, "max_queued_calls": 2048},
}


@dataclass
class Service:
    """A service in a process of its own."""

    address: str
    process: subprocess.Popen[str]

    def holdings(self) -> dict[str, int]:
        """Engine runs so far (`starts`), those that go on (`open`), and what else its process holds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        held: dict[str, int] = json.loads(self.process.stdout.readline())
        return held


@contextmanager
def serving(place: Path, tls: Tls | None = None, **server: float) -> Iterator[Service]:
    """Run a service; `server` are more settings of that section."""
    replies, log = place / "replies.json", place / "service.log"
    replies.write_text(json.dumps(REPLIES))
    config = {**_CONFIG, "engine": {"kind": "scripted", "model": str(replies)}}
    config["server"] = {"listen": "127.0.0.1:0", **server}
    if tls is not None:
        config["tls"] = {"certificate_file": tls.certificate, "key_file": tls.key}
    command = [sys.executable, "-m", "tests.hostile.victim", json.dumps(config)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, text=True, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            address = process.stdout.readline().strip()
            assert address, log.read_text()
            yield Service(address, process)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    place, authority = tmp_path_factory.mktemp("tls"), Authority()
    names = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost"))
    files = authority.issue("localhost", *names).write(place)
    (place / "authority.pem").write_bytes(authority.pem)
    return Tls(files["certificate_file"], files["key_file"], str(place / "authority.pem"))


class Fronts:
    """The services, and the proxies in front of them, each started when it is first asked for."""

    def __init__(self, make_place: pytest.TempPathFactory, tls: Tls, stack: ExitStack) -> None:
        self._make_place = make_place
        self._tls = tls
        self._stack = stack
        self._services: dict[bool, Service] = {}
        self._addresses: dict[tuple[str, bool], str] = {}

    def service(self, is_secure: bool) -> Service:
        if is_secure not in self._services:
            place = self._make_place.mktemp("service")
            running = serving(place, self._tls if is_secure else None)
            self._services[is_secure] = self._stack.enter_context(running)
        return self._services[is_secure]

    def address(self, front: str, is_secure: bool) -> str:
        """Where a client calls: the service itself for "direct", or else the proxy of that name."""
        service = self.service(is_secure)
        if front not in NAMES:
            return service.address
        if (front, is_secure) not in self._addresses:
            place = self._make_place.mktemp(front)
            running = proxy(front, service.address, self._tls if is_secure else None, place)
            self._addresses[front, is_secure] = self._stack.enter_context(running)
        return self._addresses[front, is_secure]


@pytest.fixture(scope="session")
def fronts(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[Fronts]:
    with ExitStack() as stack:
        yield Fronts(tmp_path_factory, tls, stack)
