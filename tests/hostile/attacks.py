"""HTTP/2 misbehaviour, each kind a function of the address and of how many requests it may make; returns how many it
made. What must come of it is asserted where the peer can tell; the rest is the victim's health and holdings.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from penstock_proto.v1 import generation_pb2 as pb

from tests.hostile.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    call_headers,
    ends,
    frame,
    frames,
    literal,
    message,
    resets,
)

Attack = Callable[[str, int], int]
_CANCEL = struct.pack(">I", 8)


def question(text: str = "What is 1 + 2?") -> bytes:
    messages = pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)])
    return pb.StreamGenerateRequest(spec=pb.GenerationSpec(messages=messages)).SerializeToString()


def rapid_reset(address: str, count: int) -> int:
    """Calls that are cancelled in the same breath (CVE-2023-44487)."""
    body, wire = question(), Wire(address)
    for _ in range(count):
        if wire.is_cut:
            wire.close()
            wire = Wire(address)
        wire.send(frame(RST, 0, wire.call(body), _CANCEL))
    wire.drain(0.2)
    wire.close()
    return count


def window_stall(address: str, count: int) -> int:
    """Streams whose reader opens no window until it was given up: then it reads one message, and that it was slow."""
    wire = Wire(address, struct.pack(">HI", 4, 0))
    calls = min(count, 60)
    streams = [wire.call(question("NORMAL")) for _ in range(calls)]
    wire.drain(5)
    wire.send(*(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 16)) for stream in streams))
    got = frames(wire.drain(60, lambda got: ends(got) >= calls))
    wire.close()
    slow = {stream for kind, _, stream, payload in got if kind == HEADERS and b"read no message" in payload}
    assert slow == set(streams), f"{len(slow)} of {calls} stalled streams were given up"
    assert sum(kind == DATA for kind, *_ in got) == calls
    return calls


def slow_loris(address: str, count: int) -> int:
    """Requests that never come: connections without a greeting, calls without a body, bodies without an end."""
    mute = [Wire(address, greet=False) for _ in range(min(20, count))]
    for number, wire in enumerate(mute):
        wire.send(PREFACE[: number % len(PREFACE)])
    wire = Wire(address)
    calls = min(count, 60)
    for number in range(calls):
        stream = wire.stream()
        wire.send(frame(HEADERS, END_HEADERS, stream, call_headers()))
        if number % 2:
            wire.send(frame(DATA, 0, stream, message(b"\x0a", claimed_bytes=1000)))
    ended = {stream for kind, _, stream, _ in frames(wire.drain(60, lambda got: resets(got) >= calls)) if kind == RST}
    assert len(ended) == calls, f"{len(ended)} of {calls} requests without an end were cut off"
    for other in mute:
        other.drain(60)
        assert other.is_cut, "a connection without a greeting was kept"
        other.close()
    wire.close()
    return calls + len(mute)


def header_flood(address: str, count: int) -> int:
    """Headers without an end, in continuations (CVE-2024-27316), large ones, and small ones that unpack to much."""
    for _ in range(max(1, count // 3)):
        wire = Wire(address)
        wire.send(frame(HEADERS, END_STREAM, wire.stream(), call_headers()))
        for _ in range(300):
            wire.send(frame(CONTINUATION, 0, 1, literal(b"x-flood", b"y" * 4000)))
        wire.drain(0.05)
        wire.close()
        wire = Wire(address)
        stream = wire.stream()
        wire.send(frame(HEADERS, END_STREAM, stream, call_headers()))
        for _ in range(8):
            wire.send(frame(CONTINUATION, 0, stream, literal(b"x-large", b"y" * 16_000)))
        wire.send(frame(CONTINUATION, END_HEADERS, stream, literal(b"x-last", b"y")))
        wire.drain(0.05)
        wire.close()
        wire = Wire(address)
        bomb = call_headers() + literal(b"x-bomb", b"y" * 4000, indexed=True) + b"\xbe" * 8000
        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, wire.stream(), bomb))
        wire.drain(0.05)
        wire.close()
    return 3 * max(1, count // 3)


def control_flood(address: str, count: int) -> int:
    """Settings, pings, priorities and window updates by the thousand, whose answers nobody reads."""
    for kind, stream, payload in (
        (SETTINGS, 0, struct.pack(">HI", 3, 100)),
        (PING, 0, b"pingping"),
        (PRIORITY, 1, struct.pack(">IB", 3, 7)),
        (WINDOW_UPDATE, 0, struct.pack(">I", 1)),
        (DATA, 1, b""),
    ):
        wire = Wire(address)
        wire.send(frame(HEADERS, END_HEADERS, wire.stream(), call_headers()))
        wire.socket.settimeout(1)
        for _ in range(max(20, count // 5 // 50)):
            wire.send(frame(kind, 0, stream, payload) * 50)
        if kind == PING:
            got = wire.drain(60, lambda got: GOAWAY in {kind for kind, *_ in frames(got)})
            assert wire.is_cut or GOAWAY in {kind for kind, *_ in frames(got)}, "a flood of pings was put up with"
        else:
            wire.drain(0.5)
        wire.close()
    return count


def half_open(address: str, count: int) -> int:
    """Clients that vanish in the middle: of greeting, of asking, of reading."""
    for number in range(count):
        wire = Wire(address)
        if number % 3:
            wire.call(question("NORMAL"))
        if number % 3 == 2:
            wire.drain(0.01)
        wire.vanish()
    return count


def nonsense(address: str, count: int) -> int:
    """Frames that no peer should send, and bytes that are no frames."""
    draw = random.Random(count)
    for number in range(count):
        wire = Wire(address, greet=bool(number % 5))
        stream = draw.choice([0, 1, 2, 3, 2**31 - 1])
        pieces = [
            frame(draw.randrange(16), draw.randrange(256), stream, draw.randbytes(draw.randrange(64))),
            frame(HEADERS, END_HEADERS, 1, draw.randbytes(40)),
            frame(PUSH, END_HEADERS, 1, b"\0\0\0\2" + call_headers()),
            frame(SETTINGS, ACK, 0, b"x" * 7),
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2,
            (1 << 23).to_bytes(3, "big") + b"\0\0\0\0\0\1" + b"x" * 100,
            frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(DATA, END_STREAM, 1, draw.randbytes(30)),
            frame(GOAWAY, 0, 0, b"\0" * 8) + frame(DATA, 0, 9, b"x"),
            draw.randbytes(200),
        ]
        wire.send(*draw.sample(pieces, 3))
        wire.drain(0.005)
        wire.close()
    return count


def false_lengths(address: str, count: int) -> int:
    """Bodies that claim to be huge, empty or compressed, and calls beyond what one connection may have."""
    for claim in (0, 1, 2**20, 2**31, 2**32 - 1):
        wire = Wire(address)
        for _ in range(count // 5):
            stream = wire.stream()
            wire.send(frame(HEADERS, END_HEADERS, stream, call_headers("GenerationService/Generate")))
            wire.send(frame(DATA, 0, stream, message(b"x" * 64, claimed_bytes=claim)))
        wire.drain(0.2)
        wire.close()
    return count


# Each with its share of the requests, in hundredths. The slow ones are few: they wait to be cut off.
ATTACKS: dict[Attack, int] = {
    rapid_reset: 53,
    window_stall: 2,
    slow_loris: 3,
    header_flood: 5,
    control_flood: 10,
    half_open: 10,
    nonsense: 10,
    false_lengths: 10,
}
