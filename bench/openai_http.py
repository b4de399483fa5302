"""OpenAI-style streaming over HTTP/1.1: the bytes of a request, and the events in what came back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.drain import Connection, Reply, packets


def connection(address: str, path: str, bodies: list[dict[str, Any]]) -> Connection:
    """One connection, kept alive, that posts `bodies` one after the other."""
    return Connection(b"", tuple(_request(address, path, json.dumps(body).encode()) for body in bodies))


def _request(address: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def events(reply: Reply) -> Iterator[tuple[float, Any]]:
    """Server-sent events as JSON, each with its packet's time. Raises ValueError where the status is not 200."""
    if not reply.data.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"the server answered {reply.data[:200]!r}")
    text = b""
    for when, data in packets(reply):
        # A chunk's length lines lie between events: what is no `data:` line is passed over.
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield when, json.loads(line[6:])
