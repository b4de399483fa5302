"""Send prepared bytes from a process of its own and record when which bytes come back, without decoding them.

It runs the same few instructions per packet for HTTP/1.1 and for gRPC, so that the client costs the same for each
contender. `bench.openai_http` and `bench.grpc_frames` make the bytes before, and decode them after. There is one
connection per stream, which sends its requests one after the other (closed loop: it measures capacity and CPU, not
latencies under a given load).

It reads a pickled `Work` from stdin and writes a pickled `Drained` to stdout. Both ends are this package.
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
    """A connection's bytes: `opening` is sent at once, each request after the reply to the one before has ended."""

    opening: bytes
    requests: tuple[bytes, ...]
    on_first_bytes: bytes = b""
    """Bytes to send after the server's first packet (in HTTP/2, the acknowledgement of its settings)."""


@dataclass(frozen=True, slots=True)
class Work:
    address: tuple[str, int]
    protocol: Protocol
    connections: tuple[Connection, ...]


@dataclass(slots=True)
class Reply:
    """A reply with the time of each packet in seconds of time.monotonic(). `sizes` divide `data` into packets."""

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
    """The state of one open connection."""

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
        """Send the next request. Returns False if there is none."""
        if len(self.replies) == len(self._connection.requests):
            return False
        request = self._connection.requests[len(self.replies)]
        self._parts = []
        self.replies.append(Reply(time.monotonic()))
        self.socket.sendall(request)
        return True

    def read(self) -> bool:
        """Add one packet. Returns whether the reply is complete. Raises ConnectionError if the server closed."""
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
    """Read HTTP/2 frames by their lengths alone until trailers end the stream."""

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
                raise ConnectionError(f"the server ended the call with HTTP/2 frame type {kind}; see its log")
            over = over or (kind == _HEADERS and bool(data[at + 4] & _END_STREAM))
            at += 9 + size
        self._rest = data[at:]
        return over


def drain(work: Work) -> Drained:
    """Open all connections, then send on all of them at once. Raises TimeoutError if nothing comes for too long."""
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
            raise TimeoutError(f"the server sent nothing for {_STUCK_SECONDS:.0f} s")
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
    """Run `drain` in a process of its own and return its result."""
    command = [sys.executable, "-c", "from bench.drain import main; main()"]
    done = subprocess.run(command, input=pickle.dumps(work), stdout=subprocess.PIPE, check=True, cwd=_ROOT)
    result: Drained = pickle.loads(done.stdout)
    return result


def packets(reply: Reply) -> Sequence[tuple[float, bytes]]:
    """Yield the reply's packets, each with its time."""
    cut, at = [], 0
    for when, size in zip(reply.times, reply.sizes, strict=True):
        cut.append((when, reply.data[at : at + size]))
        at += size
    return cut
