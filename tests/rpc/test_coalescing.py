"""Deltas are coalesced by themselves while the event loop lags: fewer messages than steps, and the same text."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import channel, listening, spec, stub, until

_THOUGHT, _ANSWER = "hm, " * 15, "well, " * 10
_STEPS = (len(_THOUGHT) + len(_ANSWER)) // 2
REPLY = Reply(thought=_THOUGHT, answer=_ANSWER, chunk_tokens=2, step_seconds=0.005)


async def generated(at: grpc.aio.Channel) -> list[pb.GenerationEvent]:
    request = pb.StreamGenerateRequest(spec=spec())
    request.spec.thinking.mode = pb.THINKING_MODE_THINKING
    return [reply.event async for reply in stub(at).StreamGenerate(request)]


def deltas(events: list[pb.GenerationEvent]) -> list[pb.Delta]:
    return [
        e.thought if e.HasField("thought") else e.answer
        for e in events
        if e.HasField("thought") or e.HasField("answer")
    ]


def tokens(events: list[pb.GenerationEvent]) -> int:
    return sum(delta.token_count for delta in deltas(events))


def check_whole(events: list[pb.GenerationEvent]) -> None:
    """The text is whole, and sequence numbers have no gap."""
    assert "".join(event.thought.text for event in events) == _THOUGHT
    assert "".join(event.answer.text for event in events) == _ANSWER
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def hold_the_loop(busy_seconds: float, free_seconds: float) -> None:
    while True:
        time.sleep(busy_seconds)  # noqa: ASYNC251 - the lag is what is tested
        await asyncio.sleep(free_seconds)


@pytest.mark.slow
async def test_a_loop_that_lags_sends_fewer_messages_of_the_same_text() -> None:
    async with (
        listening({"server": {"adaptive_flush_seconds": 1.0}}, REPLY) as (server, address),
        channel(address) as at,
    ):

        async def lags() -> bool:
            return server.state().loop_lag_seconds > 0.1

        plain = await generated(at)
        holding = asyncio.create_task(hold_the_loop(0.3, 0.03))
        try:
            await until(lags, 60)
            streams = await asyncio.gather(*(generated(at) for _ in range(8)))
        finally:
            holding.cancel()
    for events in (plain, *streams):
        check_whole(events)
        assert tokens(events) == tokens(plain)
    assert max(len(deltas(events)) for events in streams) < _STEPS / 2
