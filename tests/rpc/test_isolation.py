"""Test what one caller does takes nothing from another, and bounds itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from penstock.auth.api_keys import make
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import bearer, channel, listening, spec, stub
from tests.rpc.test_quotas import fast

KEY, ENTRY = make("team-a")
OTHER, OTHER_ENTRY = make("team-b")
KEYS = [entry.model_dump(mode="json") for entry in (ENTRY, OTHER_ENTRY)]


async def test_a_caller_who_leaves_streams_lying_about_takes_no_room_from_another() -> None:
    config = {"auth": {"keys": KEYS}, "resume": {"max_streams": 4, "max_streams_per_caller": 2}}
    slow = Reply(answer="x" * 200, step_seconds=0.05)
    async with listening(config, slow) as (server, address), channel(address) as at:

        async def leave(key: str) -> grpc.StatusCode | None:
            request = pb.StreamGenerateRequest(spec=fast(), resumable=True)
            call = stub(at).StreamGenerate(request, metadata=bearer(key))
            try:
                await anext(aiter(call))
            except grpc.aio.AioRpcError as error:
                return error.code()
            call.cancel()
            return None

        assert [await leave(KEY) for _ in range(3)] == [None, None, grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert [await leave(OTHER) for _ in range(2)] == [None, None]
        assert server.state().resumable_streams == 4


async def test_steering_has_an_end() -> None:
    """gRPC's Python client says INTERNAL where the end comes while it still sends: told to all the same, every time."""
    slow = Reply(thought="t" * 2000, answer="a", step_seconds=0.01)
    async with listening({"limits": {"max_steering_messages": 3}}, slow) as (_, address), channel(address) as at:

        async def messages() -> AsyncIterator[pb.InteractRequest]:
            start = spec()
            start.thinking.mode = pb.THINKING_MODE_THINKING
            yield pb.InteractRequest(start=start)
            for budget in range(1500, 1510):
                yield pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget))

        for _ in range(30):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub(at).Interact(messages()):
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "at most 3 actions may steer a generation" in str(caught.value.details())


async def test_metadata_has_an_end() -> None:
    config = {"server": {"max_metadata_bytes": 8192}}
    async with listening(config) as (_, address), channel(address) as at:
        for size, code in ((4000, grpc.StatusCode.OK), (20_000, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            call = stub(at).CountTokens(pb.CountTokensRequest(spec=spec()), metadata=(("x-note", "n" * size),))
            assert await call.code() is code


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"output": pb.OutputConfig(candidate_count=9)}, "spec.output.candidate_count"),
        ({"output": pb.OutputConfig(top_logprobs=21)}, "spec.output.top_logprobs"),
        ({"output": pb.OutputConfig(stop_strings=["s"] * 17)}, "spec.output.stop_strings"),
        ({"sampling": pb.SamplingConfig(logit_bias=dict.fromkeys(range(200), 1.0))}, "spec.sampling.logit_bias"),
        ({"messages": pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="x")] * 1100)}, "messages"),
    ],
)
async def test_a_request_has_an_end_in_every_direction(extra: dict[str, object], field: str) -> None:
    config = {"limits": {"max_logit_biases": 100}}
    async with listening(config) as (_, address), channel(address) as at:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(at).Generate(pb.GenerateRequest(spec=fast(**extra)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(caught.value.details())
