"""HTTP/2 spoken by hand, so that it can be spoken badly: frames, literal headers, and a blocking connection."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
Pairs = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _integer(value: int, prefix_bits: int, first: int) -> bytes:
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """One header field of HPACK, spelled out; with `indexed` the peer keeps it as entry 62."""
    head = b"\x40" if indexed else b"\x00"
    return head + _integer(len(name), 7, 0) + name + _integer(len(value), 7, 0) + value


def call_headers(
    method: str = "GenerationService/StreamGenerate", more: Pairs = (), *, path: str | None = None
) -> bytes:
    """The header block of a call of one of our methods, or of the method at `path`."""
    pairs = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", (path or f"/penstock.v1.{method}").encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    return b"".join(literal(name, value) for name, value in pairs)


def message(body: bytes, claimed_bytes: int | None = None) -> bytes:
    """A gRPC message; `claimed_bytes` is what it says of its length."""
    return struct.pack(">BI", 0, len(body) if claimed_bytes is None else claimed_bytes) + body


class Wire:
    """A connection. Sending to a peer that has hung up is not an error here: `is_cut` says so."""

    def __init__(self, address: str, settings: bytes = b"", *, greet: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as gRPC's clients do
        self.is_cut = False
        self._next_stream = 1
        if greet:
            self.send(PREFACE, frame(SETTINGS, payload=settings))

    def send(self, *pieces: bytes) -> None:
        if self.is_cut:
            return
        try:
            self.socket.sendall(b"".join(pieces))
        except OSError:
            self.is_cut = True

    def stream(self) -> int:
        """The next stream's number."""
        self._next_stream += 2
        return self._next_stream - 2

    def call(
        self,
        body: bytes,
        method: str = "GenerationService/StreamGenerate",
        more: Pairs = (),
        *,
        path: str | None = None,
    ) -> int:
        """One whole call; its stream's number."""
        stream = self.stream()
        head = frame(HEADERS, END_HEADERS, stream, call_headers(method, more, path=path))
        self.send(head, frame(DATA, END_STREAM, stream, message(body)))
        return stream

    def drain(self, seconds: float, enough: Callable[[bytes], bool] = lambda _: False) -> bytes:
        """Return what came, until it ends, time is up, or it is enough; note whether the peer hung up."""
        got, until = bytearray(), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                piece = self.socket.recv(1 << 16)
            except TimeoutError:
                break
            except OSError:
                piece = b""
            if not piece:
                self.is_cut = True
                break
            got += piece
            if enough(got):
                break
        return bytes(got)

    def vanish(self) -> None:
        """Gone without a word: the peer gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


def has_settings(data: bytes | bytearray) -> bool:
    """Whether the peer has said what holds on the connection."""
    return any(kind == SETTINGS and not flags for kind, flags, *_ in frames(data))


def resets(data: bytes | bytearray) -> int:
    """Streams that were reset."""
    return len({stream for kind, _, stream, _ in frames(data) if kind == RST})


def ends(data: bytes | bytearray) -> int:
    """Streams that the peer has ended with a status."""
    return len({stream for kind, flags, stream, _ in frames(data) if kind == HEADERS and flags & END_STREAM})


def frames(data: bytes | bytearray) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each whole frame."""
    found, at = [], 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
        found.append((data[at + 3], data[at + 4], stream, bytes(data[at + 9 : at + 9 + length])))
        at += 9 + length
    return found
