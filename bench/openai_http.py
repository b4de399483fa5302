"""Encode requests of OpenAI's streaming API as HTTP/1.1 bytes and decode the events of a reply."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.drain import Connection, Reply, packets


def connection(address: str, path: str, bodies: list[dict[str, Any]]) -> Connection:
    """Return a connection that is kept alive and posts `bodies` one after the other."""
    return Connection(b"", tuple(_request(address, path, json.dumps(body).encode()) for body in bodies))


def _request(address: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def events(reply: Reply) -> Iterator[tuple[float, Any]]:
    """Yield server-sent events as JSON, each with its packet's time. Raises ValueError for a status other than 200."""
    if not reply.data.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"the server must answer with status 200, got {reply.data[:200]!r}")
    text = b""
    for when, data in packets(reply):
        # The lines with a chunk's length lie between events: skip all lines that do not begin with `data:`.
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield when, json.loads(line[6:])
