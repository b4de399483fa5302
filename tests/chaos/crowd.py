"""Callers in a process of their own: `crowd.py ADDRESS CALLERS PER_SECOND LEAD_IN SECONDS`, what they ask on stdin.

At 0 calls per second each caller asks again once it was answered: what the service does when it is always full, and
never asked too much. Else calls go out on a clock, however many are unanswered. SECONDS count after those of LEAD_IN,
in which a full service comes to end calls as steadily as it lets them in. Prints what it saw as JSON.

In life callers have machines of their own; here they share the service's cores. So HTTP/2 is spoken by hand, at a
fraction of what a gRPC client costs. stdin: a line per serialised GenerateRequest, in base64.
"""

from __future__ import annotations

import base64
import json
import selectors
import sys
import time
from collections.abc import Iterator

from google.rpc import error_details_pb2, status_pb2

from tests.hostile.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    call_headers,
    frame,
    frames,
    message,
)

_CONNECTIONS = 8
_METHOD = "GenerationService/Generate"
_TICK_SECONDS = 0.002
# No table of headers: trailers can be read as they stand. Windows that never need to be opened again.
_WISHES = {1: 0, 4: 2**31 - 1}
_SETTINGS = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in _WISHES.items())
_OPEN_WINDOW = frame(WINDOW_UPDATE, payload=(2**31 - 1 - 65535).to_bytes(4, "big"))
_RESOURCE_EXHAUSTED, _OK = b"8", b"0"


# HPACK's Huffman code (RFC 7541, appendix B) is canonical: its symbols by the bits of their codes, in order. Those of
# base64, in which gRPC writes binary trailers, have at most eleven.
_BY_BITS = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
}


def _codes() -> dict[tuple[int, int], int]:
    """Symbols by the length and the value of their codes."""
    found, code, before = {}, 0, 5
    for bits, symbols in _BY_BITS.items():
        code <<= bits - before
        before = bits
        for symbol in symbols:
            found[bits, code] = ord(symbol)
            code += 1
    return found


_CODES = _codes()


def huffman(packed: bytes) -> bytes:
    """Return the text. What is left at the end is padding, of ones."""
    text, code, bits = bytearray(), 0, 0
    for byte in packed:
        for place in range(7, -1, -1):
            code, bits = code << 1 | byte >> place & 1, bits + 1
            if (symbol := _CODES.get((bits, code))) is not None:
                text.append(symbol)
                code = bits = 0
    assert bits < 8, "this client reads of the Huffman code what base64 needs"
    return bytes(text)


class Seen:
    """Hold what became of calls, from `starts` on; wrong ends always count."""

    def __init__(self) -> None:
        self.sent = self.done = 0
        self.refused: list[tuple[float, float]] = []
        """When it was told, in seconds since `starts`, and after how long."""
        self.wrong: list[str] = []
        self._starts_at = 0.0

    def starts(self) -> None:
        self.sent = self.done = 0
        self.refused.clear()
        self._starts_at = time.monotonic()

    def to_dict(self) -> dict[str, object]:
        seconds = time.monotonic() - self._starts_at
        return {
            "sent": self.sent,
            "done": self.done,
            "refused": self.refused,
            "wrong": self.wrong,
            "seconds": seconds,
        }

    def ended(self, trailers: dict[bytes, bytes], sent_at: float) -> None:
        status = trailers.get(b"grpc-status", b"none")
        if status == _OK:
            self.done += 1
        elif status == _RESOURCE_EXHAUSTED and retry_delay_seconds(trailers[b"grpc-status-details-bin"]) > 0:
            now = time.monotonic()
            self.refused.append((now - self._starts_at, now - sent_at))
        else:
            self.wrong.append(status.decode())


def retry_delay_seconds(details: bytes) -> float:
    status, retry = status_pb2.Status(), error_details_pb2.RetryInfo()
    status.ParseFromString(base64.b64decode(details + b"=" * (-len(details) % 4)))
    for detail in status.details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def fields(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each header that is spelled out; those from HPACK's tables have an empty name."""
    at = 0

    def number(bits: int) -> int:
        nonlocal at
        most = (1 << bits) - 1
        value = block[at] & most
        at += 1
        if value == most:
            shift = 0
            while True:
                byte = block[at]
                at += 1
                value += (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        return value

    def text() -> bytes:
        nonlocal at
        packed = block[at] >= 128
        size = number(7)
        at += size
        return huffman(block[at - size : at]) if packed else block[at - size : at]

    while at < len(block):
        first = block[at]
        if first & 0x80:
            number(7)
        elif first & 0xE0 == 0x20:
            number(5)
        else:
            name = text() if number(6 if first & 0x40 else 4) == 0 else b""
            yield name, text()


class Line(Wire):
    """One connection of the crowd, with its calls' times by stream."""

    def __init__(self, address: str, seen: Seen) -> None:
        super().__init__(address, _SETTINGS)
        self.send(_OPEN_WINDOW)
        self._seen = seen
        self._rest = b""
        self._sent_at: dict[int, float] = {}

    def ask(self, head: bytes, body: bytes) -> None:
        stream = self.stream()
        self._sent_at[stream] = time.monotonic()
        self._seen.sent += 1
        self.send(frame(HEADERS, END_HEADERS, stream, head), frame(DATA, END_STREAM, stream, body))

    def read(self) -> int:
        """Takes what has come; how many calls ended by it."""
        self._rest += self.socket.recv(1 << 18)
        whole, ended = frames(self._rest), 0
        read = sum(9 + len(payload) for *_, payload in whole)
        if whole and read > len(self._rest):  # the last one is not all there
            read -= 9 + len(whole.pop()[3])
        self._rest = self._rest[read:]
        for kind, flags, stream, payload in whole:
            if kind == HEADERS and flags & END_STREAM:
                self._seen.ended(dict(fields(payload)), self._sent_at.pop(stream))
                ended += 1
            elif kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK))
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, payload))
            elif kind in (RST, GOAWAY):
                self._seen.wrong.append(f"frame {kind}")
        return ended


def main(address: str, callers: int, per_second: float, lead_in: float, seconds: float) -> None:
    bodies = [message(base64.b64decode(line)) for line in sys.stdin]
    head, seen, selector = call_headers(_METHOD), Seen(), selectors.DefaultSelector()
    lines = [Line(address, seen) for _ in range(_CONNECTIONS)]
    for line in lines:
        selector.register(line.socket, selectors.EVENT_READ, line)
    began, asked, starts = time.monotonic(), 0, False
    owed = callers if not per_second else 0
    while (now := time.monotonic() - began) < lead_in + seconds:
        if not starts and now >= lead_in:
            starts = True
            seen.starts()
        if per_second:
            owed = int(now * per_second) - asked
        for _ in range(owed):
            lines[asked % len(lines)].ask(head, bodies[asked % len(bodies)])
            asked += 1
        owed = sum(key.data.read() for key, _ in selector.select(_TICK_SECONDS))
    print(json.dumps(seen.to_dict()))
    for line in lines:
        line.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:6]))
