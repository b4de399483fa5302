"""The load client: a process of its own that sends prepared bytes, notes when which bytes came, and reads no meaning.

The same few instructions per packet for HTTP/1.1 and for gRPC, so that no contender's client costs more than another's;
`bench.openai_http` and `bench.grpc_frames` make the bytes before and read them after. One connection per stream, each
with its requests one after the other (closed loop: for capacity and CPU, not for latencies under a given load).

stdin: a pickled `Work`; stdout: a pickled `Drained`. Both ends are this package.
"""

from __future__ import annotations

import pickle
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_ROOT = Path(__file__).parents[1]
_STUCK_SECONDS = 120.0
_READ_BYTES = 1 << 16
_HEADERS, _RESET, _GOAWAY = 1, 3, 7
_END_STREAM = 1
Protocol = Literal["http", "grpc"]


@dataclass(frozen=True, slots=True)
class Connection:
    """`opening` goes out at once; then each request once the reply to the one before has ended."""

    opening: bytes
    requests: tuple[bytes, ...]
    on_first_bytes: bytes = b""
    """What must be sent once the server has spoken (HTTP/2 wants its settings acknowledged)."""


@dataclass(frozen=True, slots=True)
class Work:
    address: tuple[str, int]
    protocol: Protocol
    connections: tuple[Connection, ...]


@dataclass(slots=True)
class Reply:
    """Seconds of time.monotonic(), one per packet; `sizes` cut `data` into those packets."""

    sent_at: float
    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Drained:
    replies: list[list[Reply]]
    began: float
    ended: float
    cpu_seconds: float


class _Reader:
    """One connection under way."""

    def __init__(self, connection: Connection, address: tuple[str, int], protocol: Protocol) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._over = _http_is_over if protocol == "http" else _GrpcEnd()
        self._connection = connection
        self._parts: list[bytes] = []
        self._greeted = not connection.on_first_bytes
        self.replies: list[Reply] = []
        self.socket.sendall(connection.opening)

    def ask(self) -> bool:
        """Sends the next request; False where there is none."""
        if len(self.replies) == len(self._connection.requests):
            return False
        request = self._connection.requests[len(self.replies)]
        self._parts = []
        self.replies.append(Reply(time.monotonic()))
        self.socket.sendall(request)
        return True

    def read(self) -> bool:
        """Takes one packet; whether the reply is whole. Raises ConnectionError where the server gave up."""
        data = self.socket.recv(_READ_BYTES)
        now = time.monotonic()
        if not data:
            raise ConnectionError("the server closed the connection")
        if not self._greeted:
            self._greeted = True
            self.socket.sendall(self._connection.on_first_bytes)
        reply = self.replies[-1]
        reply.times.append(now)
        reply.sizes.append(len(data))
        self._parts.append(data)
        if not self._over(data):
            return False
        reply.data = b"".join(self._parts)
        return True


def _http_is_over(data: bytes) -> bool:
    return data.endswith(b"0\r\n\r\n")


class _GrpcEnd:
    """Walks HTTP/2 frames by their lengths alone until trailers end the stream."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, data: bytes) -> bool:
        data = self._rest + data
        at, over = 0, False
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind = data[at + 3]
            if kind in (_RESET, _GOAWAY):
                raise ConnectionError(f"the server sent frame type {kind}")
            over = over or (kind == _HEADERS and bool(data[at + 4] & _END_STREAM))
            at += 9 + size
        self._rest = data[at:]
        return over


def drain(work: Work) -> Drained:
    """Opens all connections, then asks on all of them at once. Raises TimeoutError where nothing comes for long."""
    readers = {}
    for connection in work.connections:
        reader = _Reader(connection, work.address, work.protocol)
        readers[reader.socket.fileno()] = reader
    poll = select.epoll()
    for number in readers:
        poll.register(number, select.EPOLLIN)
    cpu, began = time.process_time(), time.monotonic()
    open_ones = sum(reader.ask() for reader in readers.values())
    while open_ones:
        ready = poll.poll(_STUCK_SECONDS)
        if not ready:
            raise TimeoutError(f"nothing came for {_STUCK_SECONDS:.0f} s")
        for number, _ in ready:
            reader = readers[number]
            if reader.read() and not reader.ask():
                open_ones -= 1
                poll.unregister(number)
    ended, cpu = time.monotonic(), time.process_time() - cpu
    for reader in readers.values():
        reader.socket.close()
    return Drained([reader.replies for reader in readers.values()], began, ended, cpu)


def main() -> None:
    pickle.dump(drain(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)


def drained(work: Work) -> Drained:
    """`drain` in a process of its own."""
    command = [sys.executable, "-c", "from bench.drain import main; main()"]
    done = subprocess.run(command, input=pickle.dumps(work), stdout=subprocess.PIPE, check=True, cwd=_ROOT)
    result: Drained = pickle.loads(done.stdout)
    return result


def packets(reply: Reply) -> Sequence[tuple[float, bytes]]:
    """The reply's packets with their times."""
    cut, at = [], 0
    for when, size in zip(reply.times, reply.sizes, strict=True):
        cut.append((when, reply.data[at : at + size]))
        at += size
    return cut
