"""What the headers of a call say, and what is said in ours (gRPC's PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import grpc

Metadata = Sequence[tuple[str, str | bytes]]
Pair = tuple[bytes, bytes]
ENCODINGS = ("identity", "deflate", "gzip")
# Of each header field, by RFC 9113, section 6.5.2.
_FIELD_BYTES = 32
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# Of a connection, not of a request (RFC 9113, section 8.2.2).
_FORBIDDEN = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# The protocol's own; no metadata.
_OWN = frozenset({b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"})
_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?(;.*)?")
_NAME = re.compile(rb"[0-9a-z_.\-]+")
_VALUE = re.compile(rb"[\x20-\x7e]*")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
Code = grpc.StatusCode


class Malformed(Exception):
    """No request of HTTP/2: the stream is reset."""


class Refused(Exception):
    """A call that cannot be served as it stands. `http_status` other than 200 is for those who do not speak gRPC."""

    def __init__(self, code: grpc.StatusCode, said: str, *, http_status: int = 200) -> None:
        super().__init__(said)
        self.code = code
        self.said = said
        self.http_status = http_status


@dataclass(frozen=True, slots=True)
class Head:
    """`method` is `/package.Service/Method`; `timeout_seconds` None is no deadline."""

    method: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_seconds: float | None = None
    encoding: str = "identity"


def head_of(pairs: Iterable[Pair], most_bytes: int) -> Head:
    """Raises Malformed and Refused. `most_bytes` bounds names, values and 32 bytes for each."""
    pseudo: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    metadata: list[Pair] = []
    size = 0
    for name, value in pairs:
        size += len(name) + len(value) + _FIELD_BYTES
        if name in _OWN:
            own[name] = value
        elif name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or metadata or own:
                raise Malformed
            pseudo[name] = value
        elif name in _FORBIDDEN or not _NAME.fullmatch(name):
            raise Malformed
        else:
            metadata.append((name, value))
    if b":path" not in pseudo or b":method" not in pseudo:
        raise Malformed
    if pseudo[b":method"] != b"POST":
        raise Refused(Code.INTERNAL, "gRPC calls are POST requests", http_status=405)
    if not _CONTENT_TYPE.fullmatch(own.get(b"content-type", b"")):
        raise Refused(Code.INTERNAL, "the content type must be application/grpc", http_status=415)
    if size > most_bytes:
        raise Refused(Code.RESOURCE_EXHAUSTED, f"metadata of {size} bytes; at most {most_bytes} may be")
    encoding = own.get(b"grpc-encoding", b"identity").decode("latin-1")
    if encoding not in ENCODINGS:
        raise Refused(Code.UNIMPLEMENTED, f"messages may be compressed by {' or '.join(ENCODINGS[1:])}")
    timeout = own.get(b"grpc-timeout")
    method = pseudo[b":path"].decode("latin-1")
    return Head(method, _metadata(metadata), None if timeout is None else _seconds(timeout), encoding)


def _metadata(pairs: Iterable[Pair]) -> tuple[tuple[str, str | bytes], ...]:
    out: list[tuple[str, str | bytes]] = []
    for name, value in pairs:
        if not _VALUE.fullmatch(value):
            raise Refused(Code.INVALID_ARGUMENT, f"metadata {name.decode()} is not printable ASCII")
        if name.endswith(b"-bin"):
            out += [(name.decode(), _unpacked(name, one)) for one in value.split(b",")]
        else:
            out.append((name.decode(), value.decode()))
    return tuple(out)


def _unpacked(name: bytes, value: bytes) -> bytes:
    try:
        return base64.b64decode(value.strip() + b"=" * (-len(value.strip()) % 4), validate=True)
    except binascii.Error:
        raise Refused(Code.INVALID_ARGUMENT, f"metadata {name.decode()} is not base64") from None


def _seconds(timeout: bytes) -> float:
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise Refused(Code.INVALID_ARGUMENT, "grpc-timeout is not a number of up to eight digits and a unit")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def _integer(value: int, prefix_bits: int) -> bytes:
    """RFC 7541, section 5.1, under a prefix of zeros."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((value,))
    out, value = bytearray((most,)), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _literal(name: bytes, value: bytes) -> bytes:
    """A field that nobody's table keeps (RFC 7541, section 6.2.2), so that there is no state to keep in step."""
    return b"\0" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


# `:status: 200` is entry 8 of HPACK's static table.
RESPONSE: Final = b"\x88" + _literal(b"content-type", b"application/grpc")
_STATUS = {code.value[0]: _literal(b"grpc-status", str(code.value[0]).encode()) for code in Code}
_ACCEPTED = _literal(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())
OK: Final = _STATUS[0]


def trailers(code: grpc.StatusCode, said: str = "", metadata: Metadata = ()) -> bytes:
    """The header block that ends a call."""
    number: int = code.value[0]
    block = _STATUS[number]
    if code is Code.UNIMPLEMENTED:
        block += _ACCEPTED
    if said:
        block += _literal(b"grpc-message", quote(said, safe=_PRINTABLE).encode())
    return block + b"".join(_literal(name.encode(), _packed(value)) for name, value in metadata)


def _packed(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")


def no_grpc(http_status: int) -> bytes:
    """The header block for a request that is not gRPC's."""
    return _literal(b":status", str(http_status).encode())
