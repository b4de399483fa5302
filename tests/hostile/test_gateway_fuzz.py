"""Connections that nobody should make to the gateway, by the thousand: each is answered or closed, nothing is held.

A case is made from a number (`http_cases.case_of`), which a failure names.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.hostile.conftest import Victim, program, serving
from tests.hostile.http_cases import SECRET, Case, case_of

_AT_ONCE = 32
_MAX_RSS_GROWTH_KIB = 24 * 1024
_STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 503, 504}
"""What a caller may be told. 500 is a fault of the gateway's."""
_LIMITS = (
    "request_seconds=4",
    "slow_reader_seconds=4",
    "max_header_bytes=8000",
    "max_body_bytes=200000",
    "max_json_items=20000",
)
_FAULTS = re.compile(r"Traceback|Exception|never retrieved|ERROR|CRITICAL|Warning")


@dataclass
class Attacked:
    """A gateway in a process of its own, in front of a service in another one."""

    address: tuple[str, int]
    process: subprocess.Popen[str]
    service: Victim
    log: Path

    def holdings(self) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    place = tmp_path_factory.mktemp("gateway")
    config = {
        "server": {"listen": "127.0.0.1:0", "drain_seconds": 5},
        "resume": {"grace_seconds": 1, "max_streams": 64},
        "admission": {"max_starts_per_second": 1e6},
        "engine": {"max_context_tokens": 100_000},
    }
    log = place / "gateway.log"
    with (
        serving(place, config) as victim,
        log.open("w") as errors,
        program(errors, "gateway_victim", victim.address, *_LIMITS, out=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        host, _, port = process.stdout.readline().strip().rpartition(":")
        yield Attacked((host, int(port)), process, victim, log)


async def answer_to(case: Case, address: tuple[str, int]) -> bytes:
    """Make the connection and return what came."""
    loop = asyncio.get_running_loop()
    link = socket.socket()
    link.setblocking(False)
    if case.read_bytes:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found = b""
    try:
        await loop.sock_connect(link, address)
        with suppress(ConnectionError):  # what was refused before it was sent has its answer all the same
            for piece in case.pieces:
                await (loop.sock_sendall(link, piece) if isinstance(piece, bytes) else asyncio.sleep(piece))
        while case.leaves_after is None or len(found) < case.leaves_after:
            part = await loop.sock_recv(link, case.read_bytes or 65_536)
            if not part:
                break
            found += part
            if case.read_bytes and len(found) < 20 * case.read_bytes:
                await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    finally:
        if case.leaves_after is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.close()
    return found


def statuses_of(answer: bytes) -> list[int]:
    """Return the statuses of all answers that came whole; the bodies of errors must be OpenAI's."""
    found = []
    while answer:
        head, cut, rest = answer.partition(b"\r\n\r\n")
        if not cut:
            break
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status, f"no status line: {head[:100]!r}"
        number = int(status[1])
        if number == 100:
            answer = rest
            continue
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        body, answer = _body(headers, rest)
        found.append(number)
        if number >= 400 and headers.get(b"content-type") == b"application/json" and body:
            error = json.loads(body)["error"]
            assert error["message"]
            assert error["type"]
    return found


def _body(headers: dict[bytes, bytes], rest: bytes) -> tuple[bytes, bytes]:
    """Return the body, empty where it is not whole, and what follows it."""
    if headers.get(b"transfer-encoding") == b"chunked":
        body, cut, after = rest.partition(b"0\r\n\r\n")
        return body, after if cut else b""
    size = int(headers.get(b"content-length", b"0"))
    if rest.startswith(b"HTTP/1.1 "):  # an answer to HEAD has no body
        return b"", rest
    return rest[:size] if len(rest) >= size else b"", rest[size:]


async def attack(target: Attacked, seeds: range) -> Counter[str]:
    """Make the connections, some at a time; return how they ended."""
    ends: Counter[str] = Counter()
    left = iter(seeds)

    async def work() -> None:
        for seed in left:
            case = case_of(seed)
            try:
                async with asyncio.timeout(60):
                    answer = await answer_to(case, target.address)
            except TimeoutError:
                pytest.fail(f"case {seed} ({case.kind}): the connection was neither answered nor closed")
            statuses = statuses_of(answer)
            wrong = set(statuses) - _STATUSES
            assert not wrong, f"case {seed} ({case.kind}): {wrong} {answer[-600:]!r}"
            if case.is_wellformed:
                assert statuses == [200], f"case {seed} ({case.kind}): {answer[:600]!r}"
            ends.update([f"{case.kind} {status}" for status in statuses] or [f"{case.kind} closed"])

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work())
    return ends


async def until_nothing_is_held(target: Attacked, before: dict[str, int]) -> dict[str, int]:
    """Wait until the gateway and the service hold what they held before."""
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*target.address), trust_env=False) as http:
        until = time.monotonic() + 90
        while True:
            text = (await http.get("/metrics")).text
            counts = dict(re.findall(r"^penstock_gateway_(\w+) ([\d.e+]+)$", text, re.MULTILINE))
            held = float(counts["requests_active"]) - 1 + float(counts["request_memory_bytes"])
            now, runs = target.holdings(), target.service.holdings()["open"]
            # One connection and its task are this one's; the normal client's runs are the service's.
            if held == 0 and now["tasks"] <= before["tasks"] + 3 and now["fds"] <= before["fds"] + 3 and runs <= 4:
                return now
            assert time.monotonic() < until, f"held: {counts}, {now}, before: {before}, runs: {runs}"
            await asyncio.sleep(0.2)


async def fuzz(target: Attacked, count: int, first_seed: int) -> None:
    warm = count // 4
    ends = await attack(target, range(first_seed, first_seed + warm))
    before = await until_nothing_is_held(target, {"tasks": 20, "fds": 100})
    ends += await attack(target, range(first_seed + warm, first_seed + count))
    after = await until_nothing_is_held(target, before)
    print("\n".join(f"  {name}: {number}" for name, number in sorted(ends.items())))
    assert after["rss_kib"] - before["rss_kib"] < _MAX_RSS_GROWTH_KIB, (before, after)
    assert after["threads"] <= before["threads"] + 2
    assert {name.split()[-1] for name in ends} > {"200", "400", "408", "413", "closed"}
    assert psutil.pid_exists(target.process.pid)
    for log in (target.log, target.service.log):
        said = log.read_text()
        assert SECRET not in said, f"{log.name} has text of prompts"
        assert not _FAULTS.search(said), said[:4000]


async def test_a_few_hundred_connections(attacked: Attacked) -> None:
    await fuzz(attacked, 600, 0)


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_ten_thousand_connections(attacked: Attacked) -> None:
    await fuzz(attacked, 10_000, 1_000_000)
