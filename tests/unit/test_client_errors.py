"""Statuses to exceptions, and the small rules of a channel."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import grpc
import penstock_client as pc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from penstock_client import channel, errors
from penstock_proto.v1 import error_reason_pb2


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, message: str, details: bytes | None = None) -> None:
        self._answers = code, message, details

    def code(self) -> grpc.StatusCode:
        return self._answers[0]

    def details(self) -> str:
        return self._answers[1]

    def trailing_metadata(self) -> Any:
        details = self._answers[2]
        return None if details is None else (("x", "y"), ("grpc-status-details-bin", details))


def with_reason(reason: str, domain: str = "penstock.v1") -> bytes:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return status_pb2.Status(details=[packed]).SerializeToString()


def test_every_reason_has_its_exception() -> None:
    named = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert set(errors.BY_REASON) == named - {"UNSPECIFIED"}


@pytest.mark.parametrize(
    ("code", "message", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "m", with_reason("CONTEXT_OVERFLOW"), pc.ContextOverflow),
        (grpc.StatusCode.INVALID_ARGUMENT, "m", with_reason("CONTEXT_OVERFLOW", "else.where"), pc.InvalidRequest),
        (grpc.StatusCode.INVALID_ARGUMENT, "m", with_reason("FROM_THE_FUTURE"), pc.InvalidRequest),
        (grpc.StatusCode.INVALID_ARGUMENT, "m", b"\xff not a status", pc.InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate limit", None, pc.Overloaded),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Sent message larger than max (9 vs. 4)",
            None,
            pc.MessageTooLarge,
        ),
        (grpc.StatusCode.UNIMPLEMENTED, "", None, pc.NotImplementedYet),
        (grpc.StatusCode.CANCELLED, "", None, pc.Cancelled),
        (grpc.StatusCode.UNAUTHENTICATED, "", with_reason("CALLER_REFUSED"), pc.CallerRefused),
        (grpc.StatusCode.ALREADY_EXISTS, "", None, pc.PenstockError),
    ],
)
def test_the_reason_decides_then_the_code(code: Any, message: str, details: Any, kind: type[Exception]) -> None:
    error = errors.from_rpc_error(Failed(code, message, details))
    assert type(error) is kind
    assert error.code is code
    assert error.message


def test_values_of_a_newer_server_are_unknown() -> None:
    from penstock_client.values import from_proto_enum
    from penstock_proto.v1 import generation_pb2 as pb

    assert from_proto_enum(pc.FinishReason, pb.FinishReason, 999) is pc.FinishReason.UNKNOWN
    assert from_proto_enum(pc.FinishReason, pb.FinishReason, 0) is pc.FinishReason.UNKNOWN
    for kind, wrapper in ((pc.FinishReason, pb.FinishReason), (pc.ThinkingOutcome, pb.ThinkingOutcome)):
        assert [from_proto_enum(kind, wrapper, number).name for number in wrapper.values()[1:]] == [
            member.name for member in kind if member.name != "UNKNOWN"
        ]


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x", "dns:///localhost:5"])
def test_loopback_targets_go_past_the_proxy(target: str) -> None:
    assert ("grpc.enable_http_proxy", 0) in channel.options_for(target, ())


def test_a_key_is_not_sent_in_the_clear_by_accident() -> None:
    with pytest.raises(ValueError, match="in plaintext"):
        channel.metadata_for("models.example:443", "key", None)
    for tls in (True, False):
        assert channel.metadata_for("models.example:443", "key", tls) == (("authorization", "Bearer key"),)


def test_the_client_pulls_in_nothing_heavy() -> None:
    heavy = ("penstock", "pydantic", "torch", "typer", "vllm")
    code = f"import sys, penstock_client; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
