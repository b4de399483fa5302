"""Requests that kill the engine: found out at their second death, refused after it, and nobody else is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
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


async def tried(here: Ward, times: int) -> list[str]:
    """Return what the killer's calls, one after another, ended with."""
    reasons = []
    for _ in range(times):
        reasons.append(await refusal(here, "killer", spec(POISON, thinking=THINKING)))
        # It is told before the engine that it ended is counted.
        await until_up(here, 1 if reasons == [""] else 2)
    return reasons


async def assert_two_deaths(here: Ward, running: list[asyncio.Task[tuple[str, str]]]) -> None:
    assert set(await asyncio.gather(*running)) == {("x" * 800, ANSWER)}
    assert here.supervised.restarts == 2
    assert not here.supervised.given_up.is_set()


# Before the first token, while it is unsettled, and long after that.
@pytest.mark.slow
@pytest.mark.parametrize("poison_after", [0, 1, 3, 4, 5, 8, 20, 60])
async def test_one_caller_kills_twice_however_often_it_tries(poison_after: int) -> None:
    async with ward(
        LONG, replace(SLOW, thought=THOUGHT * 8), auth=AUTH, max_restarts=1, poison_after=poison_after
    ) as here:
        running = await others(here, 8)
        assert set(await tried(here, 20)) == {"POISONOUS_REQUEST"}
        await assert_two_deaths(here, running)


@pytest.mark.slow
async def test_one_whose_continuation_is_too_short_to_kill_is_refused_at_its_third_try() -> None:
    # Its place is near the end of its output: what is left after each death is shorter, and is answered.
    async with ward(SLOW, auth=AUTH, max_restarts=1, poison_after=len(THOUGHT) + len(ANSWER) - 8) as here:
        reasons = []
        for number in range(1, 21):
            reasons.append(await refusal(here, "killer", spec(POISON, thinking=THINKING)))
            await until_up(here, min(number, 3))
        assert reasons == ["", "", *["POISONOUS_REQUEST"] * 18]
        assert here.supervised.restarts == 3
        assert not here.supervised.given_up.is_set()


async def test_calls_that_meet_deaths_at_the_same_place_by_chance_are_answered() -> None:
    """Each is answered with less after the death than before it, and the next one is at the same place at the next."""
    async with ward(SLOW, auth=AUTH, max_restarts=2) as here:
        for number in (1, 2):
            place = here.engine.chunks + len(THOUGHT) + len(ANSWER) - 12
            asked = asyncio.create_task(said(here, "other", spec(thinking=THINKING)))
            async with asyncio.timeout(60):
                while here.engine.chunks < place:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await here.engine.kill()
            assert await asked == (THOUGHT, ANSWER)
            await until_up(here, number)
        assert await refusal(here, "other", spec(thinking=THINKING)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("place", [1, 12, 40])
async def test_one_that_kills_at_a_place_of_its_whole_output(place: int) -> None:
    async with ward(LONG, SLOW, auth=AUTH, max_restarts=1, poison_at=place) as here:
        running = await others(here, 8)
        assert set(await tried(here, 20)) == {"POISONOUS_REQUEST"}
        await assert_two_deaths(here, running)


@pytest.mark.slow
@pytest.mark.parametrize("kills", ["poison_at", "poison_after"])
async def test_one_that_had_given_more_than_those_beside_it(kills: str) -> None:
    killer = Reply(match=POISON, thought="y" * 800, answer=ANSWER, step_seconds=0.002)
    async with ward(killer, LONG, auth=AUTH, max_restarts=1, **{kills: 300}) as here:
        trying = asyncio.create_task(tried(here, 3))
        async with asyncio.timeout(60):
            while not here.engines or here.engine.chunks < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        running = await others(here, 6)
        assert here.supervised.restarts == 0
        assert set(await trying) == {"POISONOUS_REQUEST"}
        await assert_two_deaths(here, running)


@pytest.mark.slow
@pytest.mark.parametrize("poison_after", [2, 5])
async def test_one_that_kills_an_engine_of_slow_steps(poison_after: int) -> None:
    slow = Reply(match=POISON, thought=THOUGHT, answer=ANSWER, step_seconds=1.2)
    async with ward(slow, LONG, auth=AUTH, max_restarts=1, poison_after=poison_after) as here:
        running = await others(here, 4)
        assert set(await tried(here, 3)) == {"POISONOUS_REQUEST"}
        await assert_two_deaths(here, running)


@pytest.mark.slow
@pytest.mark.parametrize("poison_after", [3, 20])
async def test_it_is_found_among_calls_that_begin_all_the_time(poison_after: int) -> None:
    # Steps that all streams keep, however busy the machine is: an engine's own steps are the same for all.
    slower = replace(SLOW, thought=THOUGHT * 8, step_seconds=0.02)
    async with ward(LONG, slower, auth=AUTH, max_restarts=1, poison_after=poison_after) as here:
        running = await others(here, 4)
        stop = asyncio.Event()

        async def one_after_another() -> set[str]:
            reasons = set()
            while not stop.is_set():
                reasons.add(await refusal(here, "other", spec("short")))
                await asyncio.sleep(0.002)
            return reasons

        beginning = [asyncio.create_task(one_after_another()) for _ in range(4)]
        assert set(await tried(here, 5)) == {"POISONOUS_REQUEST"}
        stop.set()
        for reasons in await asyncio.gather(*beginning):
            assert reasons <= {"", "ENGINE_DOWN"}
        await assert_two_deaths(here, running)


@pytest.mark.parametrize("changes", [False, True], ids=["asks the same", "asks otherwise"])
async def test_a_late_killer_that_hangs_up_after_each_death_does_not_get_away(changes: bool) -> None:
    async with ward(SLOW, auth=AUTH, max_restarts=1, poison_after=20) as here:
        first = call(here, "killer", spec(POISON, thinking=THINKING))
        await first.read()  # `started`
        async with asyncio.timeout(60):
            while here.health != [False]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        first.cancel()
        await until_up(here, 1)
        sampling = pb.SamplingConfig(temperature=0.5) if changes else pb.SamplingConfig()
        again = spec(POISON, thinking=THINKING, sampling=sampling)
        assert await refusal(here, "killer", again) == "POISONOUS_REQUEST"
        await until_up(here, 2)
        assert await refusal(here, "killer", again) == "POISONOUS_REQUEST"
        assert here.supervised.restarts == 2


@pytest.mark.slow
async def test_several_ends_of_the_engine_from_outside_convict_nobody() -> None:
    # Each comes when all are beyond the place where they were at the one before.
    long = replace(LONG, thought="x" * 1600)
    async with ward(long, auth=AUTH, max_restarts=3) as here:
        running = [asyncio.create_task(said(here, "other", spec("long", thinking=THINKING))) for _ in range(16)]
        for number in (1, 2, 3):
            engine, chunks = here.engine, 16 * 100 * 2 ** (number - 1)
            async with asyncio.timeout(60):
                while engine.load().running_requests < 16 or engine.chunks < chunks:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            await engine.kill()
            await until_up(here, number)
        assert set(await asyncio.gather(*running)) == {(long.thought, ANSWER)}
        assert not here.supervised.given_up.is_set()
        assert await refusal(here, "other", spec("short")) == ""


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("poison_after", [3, 8, 20])
async def test_twenty_late_ones_at_once_kill_once_more_and_no_innocent_is_refused(poison_after: int) -> None:
    killer = Reply(match=POISON, thought=THOUGHT * 8, answer=ANSWER, step_seconds=0.002)
    async with ward(LONG, killer, auth=AUTH, max_restarts=2, poison_after=poison_after, together=20) as here:
        running = await others(here, 4)
        asked = spec(POISON, thinking=THINKING)
        reasons = await asyncio.gather(*(refusal(here, "killer", asked) for _ in range(20)))
        assert set(reasons) <= {"POISONOUS_REQUEST", "ENGINE_DOWN"}
        assert set(await asyncio.gather(*running)) == {("x" * 800, ANSWER)}
        # The first verdict leaves those of its kind that run already, the second does not.
        assert here.supervised.restarts <= 3
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


@pytest.mark.slow
async def test_three_convictions_refuse_all_that_the_caller_asks() -> None:
    async with ward(SLOW, auth=AUTH) as here:
        for number, top_k in enumerate((1, 2, 3), 1):
            sampling = pb.SamplingConfig(temperature=1.0, top_k=top_k)
            assert await refusal(here, "killer", spec(POISON, sampling=sampling)) == "POISONOUS_REQUEST"
            await until_up(here, 2 * number)
        assert await refusal(here, "killer", spec("harmless")) == "POISONOUS_REQUEST"
        assert await refusal(here, "other", spec("harmless")) == ""
        assert not here.supervised.given_up.is_set()


@pytest.mark.slow
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
