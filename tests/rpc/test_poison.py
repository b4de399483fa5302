"""Requests that kill the engine: found out at their second death, refused after it, and nobody else is."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.auth import api_keys as keys
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.killable import POISON, Ward, ward
from tests.rpc.test_stream import spec, texts

THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
THOUGHT, ANSWER = "a thought of some length", "an answer that goes on for a while"
SLOW = Reply(thought=THOUGHT, answer=ANSWER, step_seconds=0.002)
LONG = Reply(match="long", thought="x" * 800, answer=ANSWER, step_seconds=0.002)
TOKENS = {name: keys.make(name) for name in ("killer", "other")}
AUTH = {"keys": [key for _, key in TOKENS.values()]}


def call(here: Ward, who: str, request: pb.GenerationSpec) -> Any:
    stub = generation_pb2_grpc.GenerationServiceStub(here.channel)
    metadata = (("authorization", f"Bearer {TOKENS[who][0]}"),)
    return stub.StreamGenerate(pb.StreamGenerateRequest(spec=request), metadata=metadata)


async def said(here: Ward, who: str, request: pb.GenerationSpec) -> tuple[str, str]:
    return texts([reply.event async for reply in call(here, who, request)])


async def refusal(here: Ward, who: str, request: pb.GenerationSpec) -> str:
    """The reason of the status that the call ended with; empty where it was answered."""
    try:
        await said(here, who, request)
    except grpc.aio.AioRpcError as error:
        status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
        status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
        assert any(detail.Unpack(info) for detail in status.details)
        return info.reason
    return ""


async def until_up(here: Ward, restarts: int) -> None:
    async with asyncio.timeout(60):
        while here.supervised.restarts < restarts or not here.health or not here.health[-1]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def others(here: Ward, count: int) -> list[asyncio.Task[tuple[str, str]]]:
    """Long streams of the other caller, each of which has begun."""
    running = [asyncio.create_task(said(here, "other", spec("long", thinking=THINKING))) for _ in range(count)]
    async with asyncio.timeout(60):
        while here.engine.load().running_requests < count or here.engine.chunks < 20 * count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return running


@pytest.mark.parametrize("poison_after", [0, 1, 3])
async def test_one_caller_kills_twice_however_often_it_tries(poison_after: int) -> None:
    async with ward(LONG, SLOW, auth=AUTH, max_restarts=1, poison_after=poison_after) as here:
        running = await others(here, 8)
        reasons = []
        for _ in range(20):
            reasons.append(await refusal(here, "killer", spec(POISON)))
            # It is told before the engine that it ended is counted.
            await until_up(here, 2)
        assert set(reasons) == {"POISONOUS_REQUEST"}
        assert here.supervised.restarts == 2
        assert not here.supervised.given_up.is_set()
        assert set(await asyncio.gather(*running)) == {("x" * 800, ANSWER)}


async def test_twenty_at_once_kill_twice_too_and_no_innocent_is_refused() -> None:
    async with ward(LONG, SLOW, auth=AUTH, max_restarts=1) as here:
        running = await others(here, 4)
        killers = [asyncio.create_task(refusal(here, "killer", spec(POISON))) for _ in range(20)]
        # These begin with the killers, and are suspected with them.
        beside = [asyncio.create_task(refusal(here, "other", spec(thinking=THINKING))) for _ in range(8)]
        reasons = await asyncio.gather(*killers)
        assert set(reasons) <= {"POISONOUS_REQUEST", "ENGINE_DOWN"}
        assert "POISONOUS_REQUEST" in reasons
        assert set(await asyncio.gather(*beside)) <= {"", "ENGINE_DOWN"}
        assert set(await asyncio.gather(*running)) == {("x" * 800, ANSWER)}
        assert here.supervised.restarts == 2
        assert not here.supervised.given_up.is_set()


async def test_only_that_caller_and_only_what_is_asked_like_it_is_refused() -> None:
    async with ward(SLOW, auth=AUTH) as here:
        assert await refusal(here, "killer", spec(POISON)) == "POISONOUS_REQUEST"
        await until_up(here, 2)
        assert await refusal(here, "killer", spec("harmless")) == "POISONOUS_REQUEST"
        warm = pb.SamplingConfig(temperature=0.5)
        assert await refusal(here, "killer", spec("harmless", sampling=warm)) == ""
        assert await refusal(here, "other", spec("harmless")) == ""
        assert here.supervised.restarts == 2


async def test_the_verdict_expires() -> None:
    async with ward(SLOW, auth=AUTH, poison_seconds=0.2) as here:
        assert await refusal(here, "killer", spec(POISON)) == "POISONOUS_REQUEST"
        await until_up(here, 2)
        async with asyncio.timeout(60):
            while await refusal(here, "killer", spec("harmless")):  # noqa: ASYNC110 - the clock is the supervisor's
                await asyncio.sleep(0.05)


async def test_a_killer_that_hangs_up_after_the_first_death_does_not_get_away() -> None:
    async with ward(SLOW, auth=AUTH, max_restarts=1) as here:
        first = call(here, "killer", spec(POISON))
        await first.read()  # `started`
        async with asyncio.timeout(60):
            while True not in here.health:
                if here.health == [False]:
                    first.cancel()
                await asyncio.sleep(0.002)
        deaths = here.supervised.restarts
        assert await refusal(here, "killer", spec(POISON)) == "POISONOUS_REQUEST"
        await until_up(here, deaths + 1)
        assert here.supervised.restarts == 2


async def test_three_convictions_refuse_all_that_the_caller_asks() -> None:
    async with ward(SLOW, auth=AUTH) as here:
        for number, top_k in enumerate((1, 2, 3), 1):
            sampling = pb.SamplingConfig(temperature=1.0, top_k=top_k)
            assert await refusal(here, "killer", spec(POISON, sampling=sampling)) == "POISONOUS_REQUEST"
            await until_up(here, 2 * number)
        assert await refusal(here, "killer", spec("harmless")) == "POISONOUS_REQUEST"
        assert await refusal(here, "other", spec("harmless")) == ""
        assert not here.supervised.given_up.is_set()


async def test_deaths_that_all_suspects_survive_alone_count() -> None:
    async with ward(SLOW, auth=AUTH, max_restarts=2) as here:
        for _ in range(4):
            here.engine.hanging = True
            waiting = asyncio.create_task(refusal(here, "other", spec("harmless")))
            engine = here.engine
            while not engine.runs:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await engine.kill()
            reason = await waiting
        assert reason == "ENGINE_DOWN"
        assert here.supervised.given_up.is_set()
