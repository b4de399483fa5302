"""HTTP/2 frames as bytes (RFC 9113, section 6), and what is wrong with those a peer should not send."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEAD_BYTES = 9
MAX_FRAME_BYTES = 16_384
"""What every peer must take, and all that is taken here."""
DEFAULT_WINDOW = 65_535
MOST_WINDOW = 2**31 - 1
MESSAGE_HEAD_BYTES = 5
_MESSAGE_HEAD = struct.Struct(">IBIBI")


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC


class Setting(IntEnum):
    """RFC 9113, section 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ConnectionFault(Exception):
    """The peer broke the protocol so that nothing it says can be relied on."""

    def __init__(self, code: ErrorCode, said: str) -> None:
        super().__init__(said)
        self.code = code


class StreamFault(Exception):
    """One stream is beyond repair; the others go on."""

    def __init__(self, stream: int, code: ErrorCode) -> None:
        super().__init__()
        self.stream = stream
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(values: dict[Setting, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values.items()))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: ErrorCode) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: ErrorCode, said: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + said.encode())


def header_frames(stream: int, block: bytes, *, ends: bool) -> bytes:
    """A header block in as many frames as it takes."""
    flags = END_STREAM if ends else 0
    if len(block) <= MAX_FRAME_BYTES:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[at : at + MAX_FRAME_BYTES] for at in range(0, len(block), MAX_FRAME_BYTES)]
    middle = b"".join(frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1])
    return frame(HEADERS, flags, stream, pieces[0]) + middle + frame(CONTINUATION, END_HEADERS, stream, pieces[-1])


def message_frame(stream: int, message: bytes) -> bytes:
    """A gRPC message, uncompressed, as one DATA frame; the caller has seen to it that it fits."""
    size = len(message)
    return _MESSAGE_HEAD.pack((size + MESSAGE_HEAD_BYTES) << 8 | DATA, 0, stream, 0, size) + message


def pieces_of(message: bytes) -> Iterator[bytes]:
    """A gRPC message, uncompressed, cut for DATA frames."""
    whole = b"\0" + len(message).to_bytes(4, "big") + message
    for at in range(0, len(whole), MAX_FRAME_BYTES):
        yield whole[at : at + MAX_FRAME_BYTES]


def unpadded(payload: bytes) -> bytes:
    """Raises ConnectionFault where there is more padding than payload."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def settings_in(payload: bytes) -> Iterator[tuple[int, int]]:
    """Raises ConnectionFault for values that may not be."""
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "half a setting")
    for key, value in struct.iter_unpack(">HI", payload):
        if key == Setting.INITIAL_WINDOW_SIZE and value > MOST_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        if key == Setting.MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value < 2**24:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame size that may not be")
        if key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a push that is neither on nor off")
        yield key, value
