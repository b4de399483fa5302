"""Test what a client may still send on a stream of requests is bounded, over all such calls."""

from __future__ import annotations

import grpc
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import channel, listening, spec, stub, until

_MIB = 1 << 20
_ENDLESS = Reply(match="endless", answer="never", step_seconds=86_400)
_BOUNDS = {"max_message_bytes": _MIB, "max_request_memory_bytes": 3 * _MIB}


async def begun(at: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[pb.InteractRequest, pb.InteractResponse]:
    """An Interact call that has begun, and waits for its engine for ever."""
    call = stub(at).Interact()
    await call.write(pb.InteractRequest(start=spec("endless")))
    assert (await call.read()).event.WhichOneof("event") == "started"
    return call  # type: ignore[no-any-return]


async def test_calls_that_may_send_more_are_bounded_by_the_memory_of_requests() -> None:
    async with listening({"server": _BOUNDS}, _ENDLESS) as (_, address), channel(address) as at:
        calls = [await begun(at) for _ in range(3)]
        refused = stub(at).Interact()
        await refused.write(pb.InteractRequest(start=spec("endless")))
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "exceeded: 3 of 3 in use" in await refused.details()
        await calls[0].done_writing()

        async def is_let_in() -> bool:
            call = stub(at).Interact()
            await call.write(pb.InteractRequest(start=spec("endless")))
            try:
                calls.append(call)
                return bool(await call.read())
            except grpc.aio.AioRpcError:
                return False

        await until(is_let_in)
        for call in calls:
            call.cancel()


async def test_a_message_that_steers_is_small() -> None:
    async with listening({}, _ENDLESS) as (_, address), channel(address) as at:
        call = await begun(at)
        await call.write(pb.InteractRequest(start=spec("x" * 100_000)))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "65536 bytes" in await call.details()
