"""Encode gRPC calls as HTTP/2 bytes and decode the messages of a reply: as much as `bench.drain` needs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bench.drain import Connection, Reply, packets

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5
_MAX_WINDOW = 2**31 - 1  # so that no window update is needed on the way
_MESSAGE_HEADER = 5  # a byte for compression, four for the length


def connection(address: str, method: str, messages: list[bytes]) -> Connection:
    """Return a connection that makes unary-stream calls of `method` (`/package.Service/Method`) one by one."""
    settings = struct.pack(">HIHI", _INITIAL_WINDOW_SIZE, _MAX_WINDOW, _MAX_FRAME_SIZE, 2**20)
    window = struct.pack(">I", _MAX_WINDOW - 65535)
    opening = _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window)
    requests = tuple(_request(address, method, message, 2 * number + 1) for number, message in enumerate(messages))
    return Connection(opening, requests, on_first_bytes=_frame(_SETTINGS, _ACK, 0, b""))


def _request(address: str, method: str, message: bytes, stream: int) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(_literal(name, value) for name, value in headers.items())
    body = struct.pack(">BI", 0, len(message)) + message
    return _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, body)


def _literal(name: str, value: str) -> bytes:
    """Return HPACK's simplest encoding: not indexed, not compressed, strings shorter than 127 bytes."""
    if max(len(name), len(value)) >= 127:
        raise ValueError(f"header {name} must be shorter than 127 bytes")
    return bytes([0, len(name), *name.encode(), len(value), *value.encode()])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def messages(reply: Reply) -> Iterator[tuple[float, bytes]]:
    """Yield the reply's messages, each with the time of the packet that completed it.

    Raises ValueError if the last one is not complete.
    """
    frames, body = b"", b""
    trailers = b""
    for when, data in packets(reply):
        frames += data
        while len(frames) >= 9:
            size = int.from_bytes(frames[:3], "big")
            if len(frames) < 9 + size:
                break
            kind, payload = frames[3], frames[9 : 9 + size]
            frames = frames[9 + size :]
            if kind == _DATA:
                body += payload
            elif kind == _HEADERS:
                trailers = payload
            while len(body) >= _MESSAGE_HEADER:
                length = int.from_bytes(body[1:_MESSAGE_HEADER], "big")
                if len(body) < _MESSAGE_HEADER + length:
                    break
                yield when, body[_MESSAGE_HEADER : _MESSAGE_HEADER + length]
                body = body[_MESSAGE_HEADER + length :]
    if body:
        raise ValueError(f"the reply ended inside a message; trailers {trailers[:80]!r}")
