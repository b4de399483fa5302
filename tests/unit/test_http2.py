"""One connection, spoken to in bytes without a socket: what is answered, what is put up with, and what ends it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import random
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.http2 import endpoint as endpoints
from penstock.http2.call import Call
from penstock.http2.connection import Connection, Limits
from penstock.http2.endpoint import Endpoint
from penstock.http2.frames import MOST_WINDOW, PREFACE, ErrorCode
from penstock.http2.incoming import RECEIVE_WINDOW, Incoming

from tests.hostile.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    frames,
    literal,
    message,
)

PADDED, WITH_PRIORITY = 8, 32
MESSAGE_BYTES = 100_000
HEAD = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/a.B/C",
    b":authority": b"here",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}
Serve = Callable[[Call], Awaitable[None]]


def block(more: dict[bytes, bytes] | None = None, *, without: Iterable[bytes] = ()) -> bytes:
    pairs = {name: value for name, value in (HEAD | (more or {})).items() if name not in without}
    return b"".join(literal(name, value) for name, value in pairs.items())


class Pipe:
    """The transport, as far as a connection uses one."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = self.is_aborted = False
        self.unsent_bytes = 0

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def get_extra_info(self, name: str) -> Any:
        return ("::1", 4321, 0, 0) if name == "peername" else None


class Peer:
    """A client's end of a connection."""

    def __init__(self, serve: Serve, greets: bool = True, **limits: Any) -> None:
        given = {"message_bytes": MESSAGE_BYTES, "metadata_bytes": 16_384, "streams": 8, "connections": 2}
        seconds = {"request_seconds": 20.0, "slow_reader_seconds": 60.0}
        self.limits = Limits(**(given | seconds | limits))
        self.endpoint = Endpoint(serve, self.limits)
        self.pipe, self.connection = Pipe(), Connection(self.endpoint, serve, self.limits)
        self.connection.connection_made(self.pipe)  # type: ignore[arg-type]
        if greets:
            self.say(PREFACE, frame(SETTINGS))

    def say(self, *pieces: bytes) -> None:
        self.connection.data_received(b"".join(pieces))

    def ask(self, body: bytes = b"hello", stream: int = 1, more: dict[bytes, bytes] | None = None) -> None:
        data = message(body)
        pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
        self.say(frame(HEADERS, END_HEADERS, stream, block(more)))
        self.say(*(frame(DATA, 0, stream, piece) for piece in pieces), frame(DATA, END_STREAM, stream))

    def heard(self, kind: int | None = None) -> list[tuple[int, int, int, bytes]]:
        return [one for one in frames(self.pipe.sent) if kind is None or one[0] == kind]

    def headers(self, stream: int = 1) -> list[dict[str, str]]:
        """Header blocks that came, whole."""
        decoder, blocks, held = hpack.Decoder(), [], b""
        for kind, flags, own, payload in self.heard():
            if kind in (HEADERS, CONTINUATION):
                held += payload
                if flags & END_HEADERS:
                    pairs = dict(decoder.decode(held))
                    held = b""
                    if own == stream:
                        blocks.append(pairs)
        return blocks

    def body(self, stream: int = 1) -> bytes:
        return b"".join(payload for kind, _, own, payload in self.heard(DATA) if own == stream)

    def status(self, stream: int = 1) -> str | None:
        blocks = self.headers(stream)
        return blocks[-1].get("grpc-status") if blocks else None

    @property
    def farewell(self) -> ErrorCode | None:
        said = self.heard(GOAWAY)
        return ErrorCode(int.from_bytes(said[-1][3][4:8], "big")) if said else None

    def resets(self) -> list[tuple[int, ErrorCode]]:
        return [(stream, ErrorCode(int.from_bytes(code, "big"))) for _, _, stream, code in self.heard(RST)]


async def echo(call: Call) -> None:
    async for one in call.messages():
        await call.send(one)
    call.end()


async def forever(call: Call) -> None:
    await asyncio.sleep(3600)


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def test_a_call_is_answered() -> None:
    peer = Peer(echo)
    peer.ask()
    await settle()
    assert peer.body() == message(b"hello")
    assert peer.headers() == [
        {":status": "200", "content-type": "application/grpc"},
        {"grpc-status": "0"},
    ]
    assert not peer.resets()
    assert peer.farewell is None


async def test_a_request_may_come_in_any_pieces() -> None:
    peer = Peer(echo, greets=False)
    head, data = block({b"x-long": b"y" * 3000}), message(b"one") + message(b"two")
    said = b"".join(
        (
            PREFACE,
            frame(SETTINGS),
            frame(HEADERS, PADDED | WITH_PRIORITY, 1, b"\3" + b"\0\0\0\0\1" + head[:100] + b"pad"),
            frame(CONTINUATION, 0, 1, head[100:2000]),
            frame(CONTINUATION, END_HEADERS, 1, head[2000:]),
            frame(250, 7, 1, b"unknown"),
            *(frame(DATA, 0, 1, data[at : at + 1]) for at in range(len(data))),
            frame(DATA, PADDED | END_STREAM, 1, b"\5" + b"\0" * 5),
        )
    )
    for at in range(len(said)):
        peer.say(said[at : at + 1])
    await settle()
    assert peer.body() == message(b"one") + message(b"two")
    assert peer.status() == "0"


async def test_trailers_of_a_client_end_its_request() -> None:
    peer = Peer(echo)
    peer.say(frame(HEADERS, END_HEADERS, 1, block()), frame(DATA, 0, 1, message(b"x")))
    await settle()
    assert peer.status() is None
    peer.say(frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"x-last", b"y")))
    await settle()
    assert peer.status() == "0"


async def test_nothing_is_sent_beyond_a_window() -> None:
    peer = Peer(echo, greets=False)
    peer.say(PREFACE, frame(SETTINGS, payload=struct.pack(">HI", 4, 10)))
    peer.ask(b"x" * 30)
    await settle()
    assert len(peer.body()) == 10
    peer.say(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 5)))
    await settle()
    assert len(peer.body()) == 15
    peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 17)))  # seven more than before, for calls under way too
    await settle()
    assert len(peer.body()) == 22
    peer.say(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 100)))
    await settle()
    assert peer.body() == message(b"x" * 30)
    assert peer.status() == "0"


async def test_the_connections_window_holds_all_calls() -> None:
    peer = Peer(echo, greets=False)
    peer.say(PREFACE, frame(SETTINGS, payload=struct.pack(">HI", 4, MOST_WINDOW)))
    for stream in (1, 3):
        peer.ask(b"x" * 40_000, stream)
    await settle()
    assert len(peer.body(1)) + len(peer.body(3)) == 65_535
    assert max(len(payload) for *_, payload in peer.heard(DATA)) <= 16_384
    peer.say(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 65_535)))
    await settle()
    assert peer.body(1) == peer.body(3) == message(b"x" * 40_000)


async def test_what_calls_say_at_the_same_time_is_one_write() -> None:
    peer = Peer(echo)
    writes: list[int] = []
    whole = peer.pipe.write

    def write(data: bytes) -> None:
        writes.append(len(data))
        whole(data)

    await settle()
    peer.pipe.write = write  # type: ignore[method-assign]
    for stream in (1, 3, 5):
        peer.ask(stream=stream)
    await settle()
    assert [peer.status(stream) for stream in (1, 3, 5)] == ["0"] * 3
    assert len(writes) == 1
    many = Peer(echo, message_bytes=1 << 20)
    many.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 20)), frame(WINDOW_UPDATE, 0, 0, b"\0\x10\0\0"))
    writes.clear()
    many.pipe.write = write  # type: ignore[method-assign]
    many.ask(b"x" * 300_000)
    await settle()
    assert max(writes) < 100_000, "more than that is not kept back"


async def test_a_full_socket_holds_the_answer() -> None:
    peer = Peer(echo)
    peer.connection.pause_writing()
    peer.ask()
    await settle()
    assert peer.body() == b""
    peer.connection.resume_writing()
    await settle()
    assert peer.body() == message(b"hello")


async def test_who_takes_nothing_is_cut_off_alone() -> None:
    peer = Peer(echo, slow_reader_seconds=5.0)
    peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 0)))
    peer.ask(stream=1)
    await settle()
    peer.connection.look(time.monotonic() + 4)
    assert not peer.resets()
    peer.connection.look(time.monotonic() + 6)
    await settle()
    assert peer.resets() == [(1, ErrorCode.CANCEL)]
    peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 1000)))
    peer.ask(stream=3)
    await settle()
    assert peer.status(3) == "0"


async def test_a_byte_now_and_then_or_room_for_others_is_no_reading() -> None:
    peer = Peer(echo, slow_reader_seconds=5.0)
    peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 0)))
    peer.ask()
    await settle()
    (call,) = peer.connection.blocked
    assert call.blocked_since is not None
    call.blocked_since -= 6
    peer.say(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"))
    await settle()
    assert len(peer.body()) == 1
    peer.connection.look(time.monotonic())
    await settle()
    assert peer.resets() == [(1, ErrorCode.CANCEL)]


async def test_a_client_may_send_much_but_not_more_than_there_is_room_for() -> None:
    seen: list[bytes] = []

    async def one(call: Call) -> None:
        await asyncio.sleep(0.01)
        seen.append(await call.message() or b"")
        call.end()

    peer = Peer(one, message_bytes=4 * RECEIVE_WINDOW)
    data = message(b"z" * 3 * RECEIVE_WINDOW)
    peer.say(frame(HEADERS, END_HEADERS, 1, block()))
    for at in range(0, len(data), 16_384):
        peer.say(frame(DATA, 0, 1, data[at : at + 16_384]))
    await asyncio.sleep(0.05)
    assert seen == [b"z" * 3 * RECEIVE_WINDOW]
    opened = sum(int.from_bytes(size, "big") for _, _, stream, size in peer.heard(WINDOW_UPDATE) if stream == 1)
    assert opened >= 2 * RECEIVE_WINDOW

    peer = Peer(forever, message_bytes=4 * RECEIVE_WINDOW)  # messages that nobody reads open no window
    peer.say(frame(HEADERS, END_HEADERS, 1, block()))
    for _ in range(RECEIVE_WINDOW // 16_384 + 1):
        peer.say(frame(DATA, 0, 1, message(b"z" * 16_379)))
    await settle()
    assert (1, ErrorCode.FLOW_CONTROL_ERROR) in peer.resets()
    assert peer.farewell is None


async def test_a_client_that_leaves_cancels_its_call() -> None:
    ends: list[str] = []

    async def told(call: Call) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ends.append(call.method)
            raise

    peer = Peer(told)
    peer.ask(stream=1)
    peer.ask(stream=3)
    peer.ask(stream=5)
    await settle()
    peer.say(frame(RST, 0, 1, struct.pack(">I", 8)))
    await settle()
    assert len(ends) == 1
    sent = len(peer.pipe.sent)
    peer.connection.connection_lost(None)
    await settle()
    assert len(ends) == 3
    assert len(peer.pipe.sent) == sent, "nothing is said to who is gone"


@pytest.mark.parametrize("said", [b"20m", b"20000u", b"0S"])
async def test_a_deadline_ends_a_call(said: bytes) -> None:
    peer = Peer(forever)
    peer.ask(more={b"grpc-timeout": said})
    (call,) = peer.connection._calls.values()
    assert call._task is not None
    await asyncio.wait({call._task}, timeout=5)
    await settle()
    assert peer.status() == "4"


@pytest.mark.parametrize(
    ("more", "code", "http"),
    [
        ({b"grpc-timeout": b"soon"}, "3", "200"),
        ({b"grpc-timeout": b"123456789S"}, "3", "200"),
        ({b"grpc-encoding": b"snappy"}, "12", "200"),
        ({b"x-data-bin": b"\x7f"}, "3", "200"),
        ({b"x-data-bin": b"!!"}, "3", "200"),
        ({b"x-word": b"\xc3\xa9"}, "3", "200"),
        ({b"x-long": b"y" * 16_384}, "8", "200"),
        ({b":method": b"GET"}, "13", "405"),
        ({b"content-type": b"text/html"}, "13", "415"),
        ({b"content-type": b"application/grpc-web+proto"}, "13", "415"),
    ],
)
async def test_a_call_that_cannot_be_served_is_told_why(more: dict[bytes, bytes], code: str, http: str) -> None:
    peer = Peer(echo)
    head = block(more)
    pieces = [head[at : at + 16_000] for at in range(0, len(head), 16_000)]
    peer.say(frame(HEADERS, END_HEADERS if len(pieces) == 1 else 0, 1, pieces[0]))
    for number, piece in enumerate(pieces[1:], start=2):
        peer.say(frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, 1, piece))
    peer.ask(stream=3)
    await settle()
    (told,) = peer.headers(1)
    assert (told["grpc-status"], told[":status"]) == (code, http)
    assert told["grpc-message"]
    assert peer.status(3) == "0"


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (b"\1" + struct.pack(">I", 5) + b"hello", None, "13"),
        (b"\1" + struct.pack(">I", 5) + b"hello", b"gzip", "3"),
        (b"\1" + struct.pack(">I", 12) + gzip.compress(b"hello" * 9, mtime=0)[:12], b"gzip", "3"),
        (message(b"", claimed_bytes=MESSAGE_BYTES + 1), None, "8"),
        (message(b"abc", claimed_bytes=99), None, "3"),
        (b"\0\0", None, "3"),
    ],
)
async def test_a_message_that_cannot_be_read_is_told(body: bytes, encoding: bytes | None, code: str) -> None:
    peer = Peer(echo)
    head = block({b"grpc-encoding": encoding} if encoding else None)
    peer.say(frame(HEADERS, END_HEADERS, 1, head), frame(DATA, END_STREAM, 1, body))
    await settle()
    assert peer.status() == code


@pytest.mark.parametrize(("name", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
async def test_compressed_messages_are_read_up_to_the_limit(name: bytes, pack: Callable[[bytes], bytes]) -> None:
    for size, status in ((MESSAGE_BYTES, "0"), (1000 * MESSAGE_BYTES, "8")):
        packed = pack(b"a" * size)
        body = b"\1" + struct.pack(">I", len(packed)) + packed
        peer = Peer(echo)
        peer.say(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)))
        peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 20)))
        peer.say(frame(HEADERS, END_HEADERS, 1, block({b"grpc-encoding": name})))
        for at in range(0, len(body), 16_000):
            peer.say(frame(DATA, 0, 1, body[at : at + 16_000]))
        peer.say(frame(DATA, END_STREAM, 1))
        await settle()
        assert peer.status() == status


async def test_what_is_said_last_is_readable_whatever_it_holds() -> None:
    async def refuse(call: Call) -> None:
        assert ("x-data-bin", b"\x00\xff") in call.invocation_metadata()
        await call.abort(grpc.StatusCode.ABORTED, "50 % of é\n", (("x-plain", "p"), ("x-much-bin", b"\x01" * 30_000)))

    peer = Peer(refuse)
    peer.ask(more={b"x-data-bin": base64.b64encode(b"\x00\xff").rstrip(b"=")})
    await settle()
    (told,) = peer.headers()
    assert told["grpc-message"] == "50 %25 of %C3%A9%0A"
    assert told["x-plain"] == "p"
    assert base64.b64decode(told["x-much-bin"]) == b"\x01" * 30_000
    assert [kind for kind, *_ in peer.heard() if kind in (HEADERS, CONTINUATION)] == [HEADERS, *[CONTINUATION] * 2]


async def test_who_is_answered_early_is_told_that_nothing_more_is_wanted() -> None:
    async def early(call: Call) -> None:
        call.end(grpc.StatusCode.NOT_FOUND)

    peer = Peer(early)
    peer.say(frame(HEADERS, END_HEADERS, 1, block()))
    await settle()
    assert peer.status() == "5"
    assert peer.resets() == [(1, ErrorCode.NO_ERROR)]
    peer.say(frame(DATA, 0, 1, b"late"), frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 9)))
    peer.ask(stream=3)
    await settle()
    assert peer.status(3) == "5"
    assert peer.farewell is None


async def test_a_handler_that_fails_or_says_nothing_is_the_services_fault() -> None:
    async def fails(call: Call) -> None:
        raise ValueError("with a prompt in it")

    async def silent(call: Call) -> None:
        pass

    for serve in (fails, silent):
        peer = Peer(serve)
        peer.ask()
        await settle()
        assert peer.status() == "13"
        assert b"prompt" not in peer.pipe.sent


FAULTS = {
    "http1": (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
    "large frame": (frame(DATA, 0, 1, b"x" * 16_385), ErrorCode.FRAME_SIZE_ERROR),
    "data of nothing": (frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data of the connection": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers of a server": (frame(HEADERS, END_HEADERS, 2, block()), ErrorCode.PROTOCOL_ERROR),
    "headers of the connection": (frame(HEADERS, END_HEADERS, 0, block()), ErrorCode.PROTOCOL_ERROR),
    "too much padding": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
    "half a priority": (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"ab"), ErrorCode.PROTOCOL_ERROR),
    "no such index": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x7f"), ErrorCode.COMPRESSION_ERROR),
    "ping inside headers": (frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, b"8bytes.."), ErrorCode.PROTOCOL_ERROR),
    "continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, block()), ErrorCode.PROTOCOL_ERROR),
    "endless continuations": (
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1) * 70,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "endless headers": (
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 16_000)) * 5,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "headers that unpack to much": (
        frame(HEADERS, END_HEADERS, 1, block() + literal(b"x-bomb", b"y" * 4000, indexed=True) + b"\xbe" * 8000),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "push": (frame(PUSH, END_HEADERS, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "half a setting": (frame(SETTINGS, payload=b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "settings of a stream": (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings in a receipt": (frame(SETTINGS, ACK, 0, b"x" * 6), ErrorCode.FRAME_SIZE_ERROR),
    "a window too large": (frame(SETTINGS, payload=struct.pack(">HI", 4, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
    "a frame size too small": (frame(SETTINGS, payload=struct.pack(">HI", 5, 100)), ErrorCode.PROTOCOL_ERROR),
    "half a push": (frame(SETTINGS, payload=struct.pack(">HI", 2, 2)), ErrorCode.PROTOCOL_ERROR),
    "half a ping": (frame(PING, 0, 0, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "ping of a stream": (frame(PING, 0, 1, b"8bytes.."), ErrorCode.PROTOCOL_ERROR),
    "reset of nothing": (frame(RST, 0, 7, b"\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
    "half a window": (frame(WINDOW_UPDATE, 0, 0, b"ab"), ErrorCode.FRAME_SIZE_ERROR),
    "a window that opens nothing": (frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), ErrorCode.PROTOCOL_ERROR),
    "window of nothing": (frame(WINDOW_UPDATE, 0, 9, b"\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
    "a window beyond": (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "half a farewell": (frame(GOAWAY, 0, 0, b"ab"), ErrorCode.PROTOCOL_ERROR),
    "many pings": (frame(PING, 0, 0, b"8bytes..") * 20, ErrorCode.ENHANCE_YOUR_CALM),
    "many settings": (frame(SETTINGS) * 20_001, ErrorCode.ENHANCE_YOUR_CALM),
    "many priorities": (frame(PRIORITY, 0, 1, b"\0" * 5) * 20_001, ErrorCode.ENHANCE_YOUR_CALM),
    "much empty data": (
        frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, 0, 1) * 20_001,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "rapid resets": (
        b"".join(
            frame(HEADERS, END_HEADERS, stream, block()) + frame(RST, 0, stream, b"\0\0\0\x08")
            for stream in range(1, 4100, 2)
        ),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_peer_that_breaks_the_protocol_is_told_and_left(name: str) -> None:
    said, code = FAULTS[name]
    peer = Peer(forever, greets=name != "http1", streams=5000)
    peer.say(said)
    await settle()
    assert peer.farewell is code
    assert peer.pipe.is_closed
    assert not peer.connection._calls


STREAM_FAULTS = {
    "no path": (block(without=[b":path"]), b"", ErrorCode.PROTOCOL_ERROR),
    "a strange pseudo header": (block({b":strange": b"x"}), b"", ErrorCode.PROTOCOL_ERROR),
    "upper case": (block({b"X-Upper": b"x"}), b"", ErrorCode.PROTOCOL_ERROR),
    "a connection header": (block({b"connection": b"close"}), b"", ErrorCode.PROTOCOL_ERROR),
    "a late pseudo header": (literal(b"x", b"y") + block(), b"", ErrorCode.PROTOCOL_ERROR),
    "a path twice": (block() + literal(b":path", b"/"), b"", ErrorCode.PROTOCOL_ERROR),
    "data after its end": (
        block(),
        frame(DATA, END_STREAM, 1, message(b"x")) + frame(DATA, 0, 1, b"x"),
        ErrorCode.STREAM_CLOSED,
    ),
    "headers in the middle": (block(), frame(HEADERS, END_HEADERS, 1, block()), ErrorCode.PROTOCOL_ERROR),
    "a window that opens nothing": (block(), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"), ErrorCode.PROTOCOL_ERROR),
    "a window beyond": (block(), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_a_stream_beyond_repair_ends_alone(name: str) -> None:
    head, then, code = STREAM_FAULTS[name]
    peer = Peer(forever)
    peer.say(frame(HEADERS, END_HEADERS, 1, head), then)
    await settle()
    assert peer.resets() == [(1, code)]
    assert peer.farewell is None
    peer.ask(stream=3, more={b"grpc-timeout": b"1m"})
    await asyncio.sleep(0.02)
    assert peer.status(3) == "4"


async def test_calls_beyond_the_limit_are_refused_and_may_be_tried_again() -> None:
    peer = Peer(forever, streams=2)
    for stream in (1, 3, 5):
        peer.ask(stream=stream)
    await settle()
    assert peer.resets() == [(5, ErrorCode.REFUSED_STREAM)]


async def test_connections_beyond_the_limit_are_closed() -> None:
    peer = Peer(forever, connections=1)
    pipe, other = Pipe(), Connection(peer.endpoint, forever, peer.limits)
    other.connection_made(pipe)  # type: ignore[arg-type]
    assert pipe.is_aborted
    assert not pipe.sent


async def test_pings_beside_answers_are_no_fault() -> None:
    peer = Peer(echo)
    for stream in range(1, 201, 2):
        peer.ask(stream=stream)
        await settle()
        peer.say(frame(PING, 0, 0, b"8bytes.."))
    await settle()
    assert len([one for one in peer.heard(PING) if one[1] & ACK]) == 100
    assert peer.farewell is None


async def test_windows_that_open_for_what_was_sent_are_no_fault() -> None:
    """A client of large replies opens its windows frame by frame, as some do."""
    peer = Peer(echo, message_bytes=1 << 20)
    peer.say(frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 30)), frame(WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    for stream in range(1, 1601, 2):
        peer.pipe.sent.clear()
        peer.ask(b"x" * 600_000, stream)
        await settle()
        sent = len(peer.heard(DATA))
        assert sent > 36
        peer.say(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * sent)
        if stream % 100 == 1:
            peer.connection.look(time.monotonic())
    assert peer.farewell is None


async def test_who_asks_and_does_not_read_is_left() -> None:
    peer = Peer(echo)
    peer.pipe.unsent_bytes = 2 << 20
    peer.say(frame(PING, 0, 0, b"8bytes.."))
    assert peer.pipe.is_aborted


async def test_of_too_many_requests_on_their_way_the_oldest_give_way() -> None:
    peer = Peer(forever, streams=2000)
    streams = [2 * number + 1 for number in range(endpoints._MOST_UNSENT + 1)]
    for stream in streams:
        peer.say(frame(HEADERS, END_HEADERS, stream, block()))
    await settle()
    assert [stream for stream, _ in peer.resets()] == streams[: endpoints._MOST_UNSENT // 8]
    peer.say(frame(DATA, 0, streams[-1], message(b"here")))
    peer.endpoint._look(time.monotonic() + 21)
    await settle()
    assert [stream for stream, _ in peer.resets()] == streams[:-1]


async def test_what_is_held_of_requests_on_their_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_MOST_UNSENT_BYTES", 100_000)
    peer = Peer(forever)
    for stream in (1, 3, 5):
        peer.say(frame(HEADERS, END_HEADERS, stream, block()))
        peer.say(frame(DATA, 0, stream, message(b"x" * 15_000, claimed_bytes=60_000)))
        peer.say(frame(DATA, 0, stream, b"x" * 15_000) * 2)
    await settle()
    assert peer.resets() == [(1, ErrorCode.CANCEL)]
    peer.say(frame(DATA, 0, 3, b"x" * 15_000))
    await settle()
    assert peer.resets() == [(1, ErrorCode.CANCEL)], "a request that is here is not on its way"
    assert peer.endpoint._unsent_bytes <= 100_000
    peer.connection.connection_lost(None)
    await settle()
    assert peer.endpoint._unsent_bytes == 0


async def test_silence_is_asked_about_and_then_ends_the_connection() -> None:
    peer, now = Peer(forever, keepalive_seconds=60.0), time.monotonic()
    peer.ask()
    peer.connection.look(now + 50)
    assert not peer.heard(PING)
    peer.connection.look(now + 61)
    await settle()
    assert len(peer.heard(PING)) == 1
    peer.say(frame(PING, ACK, 0, b"penstock"))
    peer.connection.look(now + 85)
    assert not peer.pipe.is_aborted
    peer.connection._heard_at = now
    peer.connection.look(now + 86)
    peer.connection.look(now + 107)
    assert peer.pipe.is_aborted


async def test_connections_without_a_greeting_or_a_call_are_left() -> None:
    now = time.monotonic()
    mute = Peer(forever, greets=False)
    mute.say(PREFACE[:7])
    mute.connection.look(now + 19)
    assert not mute.pipe.is_aborted
    mute.connection.look(now + 21)
    assert mute.pipe.is_aborted
    idle = Peer(forever, idle_seconds=100.0)
    idle.connection.look(now + 101)
    assert idle.farewell is ErrorCode.NO_ERROR
    assert idle.pipe.is_closed


async def test_an_old_connection_takes_no_more_calls_and_ends_with_its_last() -> None:
    peer, now = Peer(echo, age_seconds=100.0, age_grace_seconds=50.0, keepalive_seconds=1e9), time.monotonic()
    peer.say(frame(HEADERS, END_HEADERS, 1, block()))
    peer.connection.look(now + 89)
    assert peer.farewell is None
    peer.connection.look(now + 112)
    await settle()
    assert peer.farewell is ErrorCode.NO_ERROR
    assert not peer.pipe.is_closed
    peer.ask(stream=3)
    await settle()
    assert peer.status(3) is None, "it was told that this call will not be looked at"
    peer.say(frame(DATA, END_STREAM, 1, message(b"x")))
    await settle()
    assert peer.status(1) == "0"
    assert peer.pipe.is_closed
    stuck = Peer(forever, age_seconds=100.0, age_grace_seconds=50.0, keepalive_seconds=1e9)
    stuck.ask()
    stuck.connection.look(now + 112)
    stuck.connection.look(now + 165)
    assert stuck.pipe.is_closed


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_it_fail(seed: int, count: int) -> None:
    """Frames at random, whole and mutated: it answers or leaves, and nothing is left of a call."""
    draw = random.Random(seed)
    kinds = [HEADERS, DATA, RST, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, PRIORITY, PUSH, 77]

    def piece() -> bytes:
        payload = draw.choice(
            [
                block(),
                message(draw.randbytes(draw.randrange(40))),
                draw.randbytes(draw.randrange(64)),
                b"\0\0\0\1",
                b"8bytes..",
            ]
        )
        return frame(draw.choice(kinds), draw.randrange(256), draw.choice([0, 1, 3, 5, 2]), payload)

    said = bytearray(b"".join(piece() for _ in range(count)))
    for _ in range(draw.randrange(3)):
        said[draw.randrange(len(said))] = draw.randrange(256)

    async def run() -> None:
        peer = Peer(echo)
        at = 0
        while at < len(said):
            size = draw.randrange(1, 200)
            peer.say(bytes(said[at : at + size]))
            await asyncio.sleep(0)
            at += size
        await settle()
        assert peer.pipe.is_closed or peer.farewell is None
        peer.connection.connection_lost(None)
        await settle()
        assert not peer.connection._calls
        assert not peer.endpoint._unsent
        assert not peer.endpoint._connections

    asyncio.run(run())


@pytest.mark.parametrize(("says", "least", "most"), [(0, 0.19, 0.6), (5, 0.25, 0.7), (1000, 0.75, 1.5)])
async def test_a_client_is_waited_for_until_it_is_quiet_and_not_for_ever(says: int, least: float, most: float) -> None:
    incoming = Incoming(1, "", 1 << 20, lambda _: None)

    async def say() -> None:
        for _ in range(says):
            incoming.take(b"\0\0\0\0\1x", 6, ends=False)
            await asyncio.sleep(0.015)

    saying, began = asyncio.create_task(say()), time.monotonic()
    await incoming.quiet(0.2, 0.8)
    took = time.monotonic() - began
    saying.cancel()
    assert least <= took < most


async def test_who_has_said_all_is_not_waited_for() -> None:
    incoming = Incoming(1, "", 1 << 20, lambda _: None)
    incoming.take(b"\0\0\0\0\1x", 6, ends=True)
    async with asyncio.timeout(1):
        await incoming.quiet(60, 60)
