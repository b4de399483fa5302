"""The crowd of bench.overload reads the trailers of refusals as gRPC's core writes them: Huffman-coded and plain."""

from __future__ import annotations

import base64
import string

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from tests.chaos.crowd import Seen, fields, huffman, retry_delay_seconds
from tests.hostile.frames import literal

# Of RFC 7541, appendix C.4 and C.6.
_EXAMPLES = {
    "f1e3c2e5f23a6ba0ab90f4ff": "www.example.com",
    "a8eb10649cbf": "no-cache",
    "25a849e95ba97d7f": "custom-key",
    "25a849e95bb8e8b4bf": "custom-value",
    "6402": "302",
    "aec3771a4b": "private",
    "d07abe941054d444a8200595040b8166e082a62d1bff": "Mon, 21 Oct 2013 20:13:21 GMT",
    "9d29ad171863c78f0b97c8e9ae82ae43d3": "https://www.example.com",
}


@pytest.mark.parametrize(("packed", "text"), _EXAMPLES.items())
def test_the_examples_of_the_specification_are_read(packed: str, text: str) -> None:
    assert huffman(bytes.fromhex(packed)) == text.encode()


def _details(seconds: int) -> bytes:
    status = status_pb2.Status(code=8, message="the queue is full")
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="penstock.v1")
    for detail in (info, error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=500_000_000))):
        status.details.add().Pack(detail)
    return base64.b64encode(status.SerializeToString()).rstrip(b"=")


def test_a_delay_is_read_from_details_without_padding() -> None:
    assert [retry_delay_seconds(_details(seconds)) for seconds in (1, 22, 333)] == [1.5, 22.5, 333.5]
    assert retry_delay_seconds(base64.b64encode(status_pb2.Status(code=8).SerializeToString())) == 0


def test_a_refused_call_is_counted_as_refused_and_one_without_a_delay_as_wrong() -> None:
    seen = Seen()
    block = literal(b"grpc-status", b"8") + literal(b"grpc-status-details-bin", _details(1))
    seen.ended(dict(fields(block)), 0.0)
    seen.ended({b"grpc-status": b"8", b"grpc-status-details-bin": b""}, 0.0)
    seen.ended({b"grpc-status": b"0"}, 0.0)
    seen.ended({}, 0.0)
    assert len(seen.refused) == seen.done == 1
    assert seen.wrong == ["8", "none"]


def test_fields_that_are_coded_indexed_or_long_are_read() -> None:
    coded = b"\x00" + bytes([0x80 | 8]) + bytes.fromhex("25a849e95ba97d7f") + bytes([0x80 | 9])
    coded += bytes.fromhex("25a849e95bb8e8b4bf")
    block = b"\x88" + b"\x20" + coded + literal(b"long", b"v" * 1000) + literal(b"kept", b"1", indexed=True)
    assert list(fields(block)) == [(b"custom-key", b"custom-value"), (b"long", b"v" * 1000), (b"kept", b"1")]


def test_every_character_of_base64_has_a_code() -> None:
    from tests.chaos.crowd import _CODES

    assert set((string.ascii_letters + string.digits + "+/=").encode()) <= set(_CODES.values())
