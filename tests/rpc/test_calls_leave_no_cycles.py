"""Test that what a call held is freed with it, and does not wait for Python's collector."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import channel, listening, spec, stub

_CALLS = 5
"""The last one's task may still be there."""
_REPLY = Reply(answer="one two three four", step_seconds=0.01)
Ask = Callable[[grpc.aio.Channel], Awaitable[Any]]


async def _read(at: grpc.aio.Channel, spec: pb.GenerationSpec, **more: Any) -> None:
    async for _ in stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec), **more):
        pass


async def answered(at: grpc.aio.Channel) -> None:
    await _read(at, spec())


async def refused(at: grpc.aio.Channel) -> None:
    await stub(at).CountTokens(pb.CountTokensRequest(spec=spec("x" * 3_000_000)))


async def refused_as_a_stream(at: grpc.aio.Channel) -> None:
    await _read(at, spec("x" * 3_000_000))


async def no_message(at: grpc.aio.Channel) -> None:
    await at.unary_unary("/penstock.v1.GenerationService/Generate")(b"\xff" * 100)


async def no_method(at: grpc.aio.Channel) -> None:
    await at.unary_unary("/penstock.v1.GenerationService/Nothing")(b"")


async def no_health(at: grpc.aio.Channel) -> None:
    await health_pb2_grpc.HealthStub(at).Check(health_pb2.HealthCheckRequest(service="nothing"))


async def late(at: grpc.aio.Channel) -> None:
    await _read(at, spec("late"), timeout=0.1)


async def cancelled(at: grpc.aio.Channel) -> None:
    await _cut_off(at, pb.StreamGenerateRequest(spec=spec("late")))


async def failed(at: grpc.aio.Channel) -> None:
    """By an engine that raises what nobody expects."""
    await _read(at, spec())


def _no_stream(self: ScriptedEngine, request: object) -> None:
    raise RuntimeError("an engine that fails")


async def badly_steered(at: grpc.aio.Channel) -> None:
    call = stub(at).Interact()
    await call.write(pb.InteractRequest(start=spec("late")))
    await call.write(pb.InteractRequest(start=spec("late")))
    while await call.read() is not grpc.aio.EOF:
        pass


async def steering_cancelled(at: grpc.aio.Channel) -> None:
    call = stub(at).Interact()
    await call.write(pb.InteractRequest(start=spec("late")))
    await call.read()
    call.cancel()
    await call.read()


async def candidates_cancelled(at: grpc.aio.Channel) -> None:
    request = pb.StreamGenerateRequest(spec=spec("late"))
    request.spec.output.candidate_count = 3
    await _cut_off(at, request)


async def coalesced_and_cancelled(at: grpc.aio.Channel) -> None:
    request = pb.StreamGenerateRequest(spec=spec("late"))
    request.flush_interval.FromMilliseconds(500)
    await _cut_off(at, request, events=4)


async def resumable_and_ended(at: grpc.aio.Channel) -> None:
    call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec("late"), resumable=True))
    started = (await call.read()).event.started
    await stub(at).Cancel(pb.CancelRequest(generation_id=started.generation_id, resume_token=started.resume_token))
    while await call.read() is not grpc.aio.EOF:
        pass


async def steered_to_its_end(at: grpc.aio.Channel) -> None:
    call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=spec("late"), resumable=True))
    started = (await call.read()).event.started
    steer = {"generation_id": started.generation_id, "resume_token": started.resume_token}
    await stub(at).Steer(pb.SteerRequest(change_budget=pb.ChangeBudget(thinking_budget=9), **steer))
    await stub(at).Steer(pb.SteerRequest(cancel=pb.Cancel(), **steer))
    while await call.read() is not grpc.aio.EOF:
        pass
    await stub(at).Cancel(pb.CancelRequest(**steer))


async def _cut_off(at: grpc.aio.Channel, request: pb.StreamGenerateRequest, events: int = 2) -> None:
    call = stub(at).StreamGenerate(request)
    for _ in range(events):
        await call.read()
    call.cancel()
    await call.read()


@pytest.fixture
def kept() -> Iterator[list[Any]]:
    """Return what only the collector would free, from here on."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def _ours(kept: list[Any]) -> Counter[str]:
    """Return what the collector finds now of the service's objects and of requests, by type."""
    gc.collect()
    messages = (pb.GenerationSpec, pb.StreamGenerateRequest, pb.CountTokensRequest)
    ours = [one for one in kept if type(one).__module__.startswith("penstock.") or isinstance(one, messages)]
    found = Counter(type(one).__qualname__ for one in ours)
    kept.clear()
    return found


async def _until_others_are_gone(kept: list[Any]) -> None:
    """Servers of earlier tests end on threads of gRPC's."""
    async with asyncio.timeout(60):
        while _ours(kept):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask",
    [
        answered,
        refused,
        refused_as_a_stream,
        no_message,
        no_method,
        no_health,
        late,
        cancelled,
        failed,
        badly_steered,
        steering_cancelled,
        candidates_cancelled,
        coalesced_and_cancelled,
        resumable_and_ended,
        steered_to_its_end,
    ],
    ids=lambda ask: ask.__name__,
)
async def test_no_call_leaves_objects_of_ours_in_cycles(
    ask: Ask, kept: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Reply(match="late", answer="one two three four" * 50, step_seconds=0.05)
    async with listening({}, slow, _REPLY) as (_, address), channel(address) as at:
        await answered(at)
        if ask is failed:
            monkeypatch.setattr(ScriptedEngine, "stream", _no_stream)
        await _until_others_are_gone(kept)
        for _ in range(_CALLS):
            with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await ask(at)
        await asyncio.sleep(0.3)
        found = {name: count for name, count in _ours(kept).items() if count >= _CALLS - 1}
    assert not found
