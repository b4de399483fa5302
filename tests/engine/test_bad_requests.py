"""Every bad request gets its status, reason and field path, and the real engine answers the next one."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.engine.base import Engine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import Bad, bad_requests, hello


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    status = status_pb2.Status()
    status.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    return info, bad


async def refusal(channel: grpc.aio.Channel, spec: pb.GenerationSpec) -> grpc.aio.AioRpcError:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec)):
            pass
    return refused.value


async def check(channel: grpc.aio.Channel, bad: Bad) -> str:
    """Return what is wrong with how this one was refused; empty where nothing is."""
    error = await refusal(channel, bad.spec)
    info, violations = details(error)
    field = violations.field_violations[0].field if violations.field_violations else ""
    reason = violations.field_violations[0].reason if violations.field_violations else info.reason
    got = (error.code(), info.domain, info.reason, reason, field)
    wanted = (bad.code, "penstock.v1", bad.reason, bad.reason, bad.field)
    return "" if got == wanted else f"{bad.name}: got {got}, wanted {wanted}"


async def test_each_is_refused_as_documented_and_the_engine_goes_on(engine: Engine, channel: grpc.aio.Channel) -> None:
    an_id = engine.tokenizer.encode("a")[0]
    cases = bad_requests(engine.card.vocab_size, engine.card.context_window_tokens, an_id)
    assert len(cases) >= 40
    assert len({case.name for case in cases}) == len(cases)
    assert [wrong for case in cases if (wrong := await check(channel, case))] == []
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    reply = await stub.Generate(pb.GenerateRequest(spec=hello(output=pb.OutputConfig(max_output_tokens=8))))
    assert reply.usage.output_tokens > 0


async def test_overflow_says_by_how_much(engine: Engine, channel: grpc.aio.Channel) -> None:
    window = engine.card.context_window_tokens
    spec = pb.GenerationSpec(token_ids=pb.TokenIds(ids=[engine.tokenizer.encode("a")[0]] * (window + 4)))
    info, _ = details(await refusal(channel, spec))
    assert info.metadata["prompt_tokens"] == str(window + 4)
    assert info.metadata["window_tokens"] == str(window)
    assert info.metadata["overflow_tokens"] == "5"


async def test_bytes_that_are_no_message_and_strings_that_are_no_utf8(channel: grpc.aio.Channel) -> None:
    good = pb.GenerateRequest(spec=pb.GenerationSpec(text="ab")).SerializeToString()
    for bad in (good.replace(b"ab", b"\xff\xfe"), b"\xff\xff\xff", good[:-1]):
        call = channel.unary_unary("/penstock.v1.GenerationService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bad)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(refused.value)[0].reason == "INVALID_FIELD"
