"""One service in a process of its own for all of these tests, a normal client beside it, and what both have to say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import grpc
import psutil
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.auth.api_keys import make
from penstock.config.schema import Config

from bench.machine import free_port
from tests.hostile.held import Target
from tests.rpc.secure import Authority

ROOT = Path(__file__).parents[2]
_QUIET_SECONDS = 5.0
_SETTLE_SECONDS = 60.0
NORMAL_STREAMS = 4
# gRPC has two tasks for each call: between none and all of the normal client's run when tasks are counted.
TASKS_MORE = 2 * NORMAL_STREAMS + 3
REPLIES = [
    {"match": "NORMAL", "thought": "a b c d e f g", "answer": "h i j k l m n o", "step_seconds": 0.02},
    {"thought": "short", "answer": "yes", "chunk_tokens": 4},
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def requests(pytestconfig: pytest.Config) -> int:
    """How many hostile requests in all."""
    return int(pytestconfig.getoption("--hostile-requests"))


@dataclass
class Victim:
    """The service under attack. `holdings` are of its process: tasks, fds, threads, engine runs."""

    address: str
    process: subprocess.Popen[str]
    normal: subprocess.Popen[str]
    samples_file: Path
    log: Path
    key: str = ""
    message_bytes: int = 0
    health_address: str = ""
    authority: str = ""
    """File of the authority whose certificate the service shows; empty is plaintext."""
    before: dict[str, int] = field(default_factory=dict)
    rss_kib_before: int = 0
    attacks: list[tuple[float, float]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    seen_failures: int = 0
    """Of normal requests, how many a test has had."""

    @property
    def target(self) -> Target:
        return Target(self.address, self.key, self.message_bytes)

    def holdings(self) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def settled(self) -> dict[str, int]:
        """Holdings once tasks and files are back where they were, or as they are after a while."""
        until = time.monotonic() + _SETTLE_SECONDS
        now = self.holdings()
        while time.monotonic() < until and (
            now["tasks"] > self.before["tasks"] + TASKS_MORE or now["fds"] > self.before["fds"] + 3
        ):
            time.sleep(0.5)
            now = self.holdings()
        return now

    @contextmanager
    def under(self, name: str, count: int) -> Iterator[None]:
        """Notes when an attack was on, and what it counts."""
        began = time.time()
        yield
        self.attacks.append((began, time.time()))
        self.sent[name] = self.sent.get(name, 0) + count

    def rss_kib(self) -> int:
        """Resident memory as the system counts it: nothing is collected or given back for it."""
        return psutil.Process(self.process.pid).memory_info().rss >> 10

    def health(self, address: str = "") -> str:
        with connection(address or self.address, "" if address else self.authority) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    def await_normal(self, more: int) -> None:
        """Wait until the normal client has ended so many more requests; it fails the test where it does not."""
        wanted = len(self.samples_file.read_text().splitlines()) + more
        until = time.monotonic() + 120
        while len(self.samples_file.read_text().splitlines()) < wanted:
            assert time.monotonic() < until, "the normal client is not served any more"
            time.sleep(0.1)

    def normal_requests(self) -> tuple[int, int, list[str]]:
        """Count normal requests that were answered beside no attack, and those that met one; the failures by line."""
        quiet, beside, failed = 0, 0, []
        for line in self.samples_file.read_text().splitlines():
            if line.startswith("FAILED"):
                failed.append(line)
                continue
            end, seconds = (float(word) for word in line.split())
            meets = any(begin < end and end - seconds < until for begin, until in self.attacks)
            quiet, beside = quiet + (not meets), beside + meets
        return quiet, beside, failed

    def new_failures(self) -> list[str]:
        """Return the normal requests that failed since the last time: only one test fails for each."""
        failed = self.normal_requests()[2]
        new, self.seen_failures = failed[self.seen_failures :], len(failed)
        return new


def connection(address: str, authority: str) -> grpc.Channel:
    """A channel of its own, whatever others there are; by TLS where a file of an authority is named."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if not authority:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(authority).read_bytes()), options=options)


@contextmanager
def program(log: TextIO, name: str, *arguments: str, out: TextIO | int) -> Iterator[subprocess.Popen[str]]:
    """A module of this directory in a process of its own; killed at the end, where it has not ended by itself."""
    command = [sys.executable, "-m", f"tests.hostile.{name}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    place = tmp_path_factory.mktemp("victim")
    config = {
        "server": {"listen": "127.0.0.1:0", "slow_reader_seconds": 3, "request_seconds": 3, "drain_seconds": 5},
        "resume": {"grace_seconds": 1, "max_streams": 64},
        # The attacker and the normal client are one caller here: nobody has to say who it is.
        "admission": {"max_starts_per_second": 1e6},
    }
    with serving(place, config) as victim:
        yield victim


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with guarded_service(tmp_path_factory.mktemp("guarded")) as victim:
        yield victim


@pytest.fixture(scope="session")
def guarded_1m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """With the largest messages that a preset of the chart takes."""
    limits = limits_of_preset("qwen3.5-397b-a17b-fp8-1m")
    with guarded_service(tmp_path_factory.mktemp("guarded_1m"), limits) as victim:
        assert victim.message_bytes > 16_000_000
        yield victim


def limits_of_preset(name: str) -> dict[str, dict[str, Any]]:
    """The settings of a preset of the chart that say how large messages may be."""
    values = yaml.safe_load((ROOT / f"helm/penstock/presets/{name}.yaml").read_text(encoding="utf-8"))["config"]
    window = {"max_context_tokens": values["engine"]["max_context_tokens"]}
    return {"engine": window, "limits": values.get("limits", {}), "server": values.get("server", {})}


@pytest.fixture(scope="session")
def guarded_by_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with guarded_service(tmp_path_factory.mktemp("guarded_by_tls"), tls=True) as victim:
        yield victim


@contextmanager
def guarded_service(
    place: Path, more: Mapping[str, Mapping[str, Any]] | None = None, *, tls: bool = False
) -> Iterator[Victim]:
    """A service that must know its callers; the normal client and the attacker (`key`) are two of them.

    `more` are settings by section, over those here.
    """
    keys = {caller: make(caller) for caller in ("normal", "attacker")}
    config: dict[str, Any] = {
        "server": {
            "listen": "127.0.0.1:0",
            "health_listen": f"127.0.0.1:{free_port()}",
            "slow_reader_seconds": 2,
            "request_seconds": 3,
            "drain_seconds": 5,
            "max_connections": 256,
        },
        "auth": {"keys": [json.loads(entry.model_dump_json()) for _, entry in keys.values()]},
        "admission": {"max_starts_per_second": 50, "max_running_sequences": 64},
    }
    for section, settings in (more or {}).items():
        config[section] = {**config.get(section, {}), **settings}
    authority = place / "authority.pem"
    if tls:
        signing = Authority()
        authority.write_bytes(signing.pem)
        config["tls"] = signing.server("localhost").write(place)
    with serving(place, config, keys["normal"][0], str(authority) if tls else "") as victim:
        victim.key = keys["attacker"][0]
        victim.message_bytes = Config.model_validate(config).max_message_bytes
        victim.health_address = str(config["server"]["health_listen"])
        yield victim


@contextmanager
def serving(place: Path, config: dict[str, Any], normal_key: str = "", authority: str = "") -> Iterator[Victim]:
    replies, samples, log = place / "replies.json", place / "normal", place / "log"
    replies.write_text(json.dumps(REPLIES))
    config = {**config, "engine": {"kind": "scripted", "model": str(replies), **config.get("engine", {})}}
    with (
        log.open("w") as errors,
        samples.open("w") as out,
        program(errors, "victim", json.dumps(config), out=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        with program(errors, "normal", address, str(NORMAL_STREAMS), normal_key, authority, out=out) as normal:
            yield Victim(address, process, normal, samples, log, authority=authority)
        process.terminate()
        assert process.wait(120) == 0, log.read_text()[-4000:]


@pytest.fixture
def quiet_before_and_after(victim: Victim) -> Iterator[None]:
    """The normal client is served before an attack and after it."""
    victim.await_normal(4)
    yield
    victim.await_normal(4)
    print(f"  {victim.holdings()}")


def pause() -> None:
    time.sleep(_QUIET_SECONDS)
