"""Streams that survive: engine deaths, hangs, poison, dropped connections, steering and draining, without a GPU."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from penstock.config.schema import Config, SupervisionSettings
from penstock.engine.probation import SETTLING_STEPS
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.engine.supervisor import SupervisedEngine
from penstock.server.app import _serve_until_stopped
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.conftest import Serve, serving
from tests.rpc.killable import POISON, MortalEngine, Ward, ward
from tests.rpc.secure import channel as channel_to
from tests.rpc.secure import listening, until
from tests.rpc.test_stream import spec, stream, texts

THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
THOUGHT, ANSWER = "a thought of some length, ünïcödé too", "an answer that goes on for a while"
SLOW = Reply(thought=THOUGHT, answer=ANSWER, step_seconds=0.002)


def outcome(events: list[pb.GenerationEvent]) -> pb.ThinkingOutcome:
    return events[-1].finished.results[0].thinking_outcome


def assert_whole(events: list[pb.GenerationEvent], thought: str = THOUGHT) -> None:
    assert texts(events) == (thought, ANSWER)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].finished.usage.reasoning_tokens == len(thought.encode())


async def disturbed(here: Ward, disturb: str, times: int, streams: int = 16) -> None:
    """Ends the engine under streams that have settled on it: what is in flight alone is rightly refused."""
    for _ in range(times):
        engine = here.engine
        async with asyncio.timeout(60):
            while engine.load().running_requests < streams or engine.chunks < 2 * SETTLING_STEPS * streams:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        if disturb == "kill":
            await engine.kill()
        else:
            engine.hanging = True
        while here.engine is engine:  # noqa: ASYNC110 - the supervisor's own pace
            await asyncio.sleep(0.01)


def assert_told(events: list[pb.GenerationEvent], disturb: str, times: int) -> None:
    """Each death is told at once and each return, between the tokens that came before and after."""
    reason = {"kill": pb.INTERRUPTION_REASON_ENGINE_DIED, "hang": pb.INTERRUPTION_REASON_ENGINE_HUNG}[disturb]
    told = [event for event in events if event.WhichOneof("event") in ("interrupted", "continued")]
    assert [event.WhichOneof("event") for event in told] == ["interrupted", "continued"] * times
    assert [event.interrupted.reason for event in told[::2]] == [reason] * times
    # No start was measured before the first death.
    expected = [event.interrupted.HasField("expected_seconds") for event in told[::2]]
    assert expected == [False] + [True] * (times - 1)
    assert all(event.continued.interrupted_seconds > 0 for event in told[1::2])
    assert all(later.sequence == earlier.sequence + 1 for earlier, later in zip(told[::2], told[1::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("disturb", ["kill", "hang"])
async def test_sixteen_streams_go_on_over_dead_engines(disturb: str) -> None:
    # So long that all run beside each other, though they go on one by one after a death.
    slower = replace(SLOW, thought=THOUGHT * 8, step_seconds=0.01)
    # A start that takes long enough for every stream to hear that the engine is down: one that is back is not told.
    async with ward(slower, hang_seconds=1, max_restarts=10, start_seconds=1.0) as here:
        streams = [asyncio.create_task(stream(here.channel, spec(thinking=THINKING))) for _ in range(16)]
        await disturbed(here, disturb, times=2)
        for events in await asyncio.gather(*streams):
            assert_whole(events, slower.thought)
            assert events[-1].finished.usage.recomputed_tokens > 0
            assert_told(events, disturb, times=2)
        assert here.health == [False, True] * 2
        assert here.supervised.restarts == 2


class Pausing(MortalEngine):
    """Waits after its first chunk until it may go on."""

    def __init__(self) -> None:
        super().__init__((SLOW,))
        self.has_paused, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        async for chunk in super().stream(request):
            yield chunk
            self.has_paused.set()
            await self.may_go_on.wait()


@pytest.mark.slow
async def test_a_standstill_of_the_service_is_no_hang_of_its_engine() -> None:
    engine, changes = Pausing(), list[bool]()

    async def on_change(alive: bool) -> None:
        changes.append(alive)

    async def start() -> MortalEngine:
        return engine

    supervised = SupervisedEngine(engine, start, SupervisionSettings(hang_seconds=1), on_change)
    async with serving(supervised) as (_, channel):
        running = asyncio.create_task(stream(channel, spec(thinking=THINKING)))
        await engine.has_paused.wait()
        await asyncio.sleep(0.6)  # it has been looked at
        time.sleep(2.0)  # noqa: ASYNC251 - as where the process is stopped
        asyncio.get_running_loop().call_later(0.1, engine.may_go_on.set)
        assert_whole(await running)
    await supervised.close()
    assert changes == []


@pytest.mark.slow
async def test_poison_is_refused_and_those_beside_it_complete() -> None:
    async with ward(replace(SLOW, step_seconds=0.01), max_restarts=20) as here:
        streams = [asyncio.create_task(stream(here.channel, spec(thinking=THINKING))) for _ in range(15)]
        while here.engine.chunks < 2 * SETTLING_STEPS * 15:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream(here.channel, spec(POISON))
        assert refused.value.code() is grpc.StatusCode.ABORTED
        for events in await asyncio.gather(*streams):
            assert_whole(events)
        assert here.supervised.restarts == 2


async def test_an_engine_that_dies_too_often_is_given_up() -> None:
    async with ward(Reply(thought=THOUGHT * 90, answer=ANSWER, step_seconds=0.002), max_restarts=1) as here:
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING)))
        for deaths in (1, 2):
            async with asyncio.timeout(60):
                # Nobody is suspected of this death: the one stream has settled, and is not where it was at the first.
                while len(here.engines) < deaths or here.engine.chunks < 5 * deaths * SETTLING_STEPS:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await here.engine.kill()
        await asyncio.wait_for(here.supervised.given_up.wait(), 60)
        with pytest.raises(grpc.aio.AioRpcError) as down:
            await running
        assert down.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_the_process_ends_after_five_restarts_that_no_request_is_suspected_of() -> None:
    said: list[str] = []
    async with ward(SLOW) as here:
        serving = _serve_until_stopped(here.server, here.supervised, asyncio.Event(), Config(), said.append)
        ending = asyncio.create_task(serving)
        for deaths in range(1, 7):
            async with asyncio.timeout(60):
                while len(here.engines) < deaths:  # noqa: ASYNC110 - the supervisor's own pace
                    await asyncio.sleep(0.005)
            assert not ending.done()
            await here.engine.kill()
        assert await asyncio.wait_for(ending, 60) == 1
        assert here.supervised.restarts == 5
    assert said == ["the engine died too often; the process ends, so that it can be started again"]


async def test_new_calls_are_told_to_come_back_while_the_engine_restarts() -> None:
    async with ward(SLOW) as here:
        here.start_seconds = 86_400.0
        await here.engine.kill()
        while here.health != [False]:  # noqa: ASYNC110 - the supervisor's own pace
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as down:
            await stream(here.channel, spec())
        assert down.value.code() is grpc.StatusCode.UNAVAILABLE


# ------------------------------------------------------------------------------------------------------------ resume


async def cut_and_resumed(channel: grpc.aio.Channel, cuts: int, rng: random.Random) -> list[pb.GenerationEvent]:
    """Every event of one stream, read over `cuts` connections that were dropped at random places."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = pb.StreamGenerateRequest(spec=spec(thinking=THINKING), resumable=True)
    call = stub.StreamGenerate(request)
    events: list[pb.GenerationEvent] = []
    for _ in range(cuts):
        for _ in range(rng.randint(0 if events else 1, 12)):
            reply = await call.read()
            if reply is grpc.aio.EOF:
                break
            events.append(reply.event)
        call.cancel()
        started = events[0].started
        call = stub.Resume(
            pb.ResumeRequest(
                generation_id=started.generation_id, resume_token=started.resume_token, last_sequence=len(events)
            )
        )
    return events + [reply.event async for reply in call]


async def test_a_hundred_cuts_over_twenty_streams_lose_and_double_nothing(serve: Serve) -> None:
    channel = await serve(SLOW)
    rng = random.Random(7)
    streams = await asyncio.gather(*(cut_and_resumed(channel, 5, rng) for _ in range(20)))
    for events in streams:
        assert_whole(events)


async def test_any_sequence_can_be_replayed_any_number_of_times(serve: Serve) -> None:
    channel = await serve(SLOW)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(thinking=THINKING), resumable=True))
    events = [reply.event async for reply in call]
    started = events[0].started
    for last in (0, 3, 3, len(events) - 1, len(events)):
        request = pb.ResumeRequest(
            generation_id=started.generation_id, resume_token=started.resume_token, last_sequence=last
        )
        assert [reply.event async for reply in stub.Resume(request)] == events[last:]


@pytest.mark.parametrize("wrong", [{"resume_token": "guess"}, {"generation_id": "guess"}, {"resume_token": ""}])
async def test_only_the_token_holder_may_resume(serve: Serve, wrong: dict[str, str]) -> None:
    channel = await serve(SLOW)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(), resumable=True))
    started = (await call.read()).event.started
    fields = {"generation_id": started.generation_id, "resume_token": started.resume_token} | wrong
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Resume(pb.ResumeRequest(**fields)).read()
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "no such generation (unknown, expired, or wrong resume_token)"


async def live_call(channel: grpc.aio.Channel, text: str = "hello") -> tuple[Any, pb.GenerationStarted]:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(text, thinking=THINKING), resumable=True))
    return call, (await call.read()).event.started


async def test_a_cancelled_generation_ends_and_is_forgotten() -> None:
    engine = ScriptedEngine([Reply(thought=THOUGHT * 90, answer=ANSWER, step_seconds=0.002)])
    async with serving(engine) as (_, channel):
        call, started = await live_call(channel)
        call.cancel()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        fields = {"generation_id": started.generation_id, "resume_token": started.resume_token}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Cancel(pb.CancelRequest(**fields | {"resume_token": "guess"}))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert engine.load().running_requests == 1
        await stub.Cancel(pb.CancelRequest(**fields))
        assert engine.load().running_requests == 0
        for again in (stub.Cancel(pb.CancelRequest(**fields)), stub.Resume(pb.ResumeRequest(**fields)).read()):
            with pytest.raises(grpc.aio.AioRpcError) as gone:
                await again
            assert gone.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
async def test_a_stream_whose_client_is_gone_ends_after_the_grace_though_nobody_calls_again() -> None:
    endless = Reply(thought=THOUGHT * 50, answer=ANSWER, step_seconds=60)
    async with listening({"resume": {"grace_seconds": 1}}, endless) as (server, address):
        async with channel_to(address) as channel:
            await live_call(channel)
            assert server.state().resumable_streams == 1

        async def over() -> bool:
            state = server.state()
            return not state.resumable_streams and state.load is not None and not state.load.running_requests

        await until(over)


async def test_a_resumable_call_that_leaves_the_queue_is_not_run() -> None:
    config = {"server": {"listen": "127.0.0.1:0"}, "admission": {"max_running_sequences": 1}}
    engine = ScriptedEngine([Reply(match="long", thought="x" * 300, answer="a", step_seconds=0.002), SLOW])
    async with serving(engine, Config.model_validate(config)) as (server, channel):
        first, _ = await live_call(channel, "long")
        queued = asyncio.create_task(live_call(channel))
        async with asyncio.timeout(60):
            while not server.admission.queued_calls:  # noqa: ASYNC110 - the queue's own count
                await asyncio.sleep(0.01)
            queued.cancel()
            while server.admission.queued_calls:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        first.cancel()


async def test_streams_that_were_read_to_their_end_give_way_to_new_ones() -> None:
    config = {"server": {"listen": "127.0.0.1:0"}, "resume": {"max_streams": 2}}
    async with serving(ScriptedEngine([SLOW]), Config.model_validate(config)) as (_, channel):
        for _ in range(5):
            call, _ = await live_call(channel)
            while await call.read() is not grpc.aio.EOF:
                pass
        calls = [await live_call(channel) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live_call(channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call, _ in calls:
            call.cancel()


# ------------------------------------------------------------------------------------------------------------- steer


async def interact(channel: grpc.aio.Channel, *later: pb.InteractRequest, after: int = 4) -> list[pb.GenerationEvent]:
    call = generation_pb2_grpc.GenerationServiceStub(channel).Interact()
    await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))
    events = [(await call.read()).event for _ in range(after)]
    for request in later:
        await call.write(request)
    await call.done_writing()
    while (reply := await call.read()) is not grpc.aio.EOF:
        events.append(reply.event)
    return events


async def test_answer_now(serve: Serve) -> None:
    channel = await serve(SLOW)
    events = await interact(channel, pb.InteractRequest(finish_thinking=pb.FinishThinking()))
    thought, answer = texts(events)
    assert THOUGHT.startswith(thought)
    assert len(thought) < len(THOUGHT)
    assert answer == ANSWER
    assert outcome(events) == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT


@pytest.mark.parametrize(("budget", "spent"), [(0, None), (20, 20), (-1, len(THOUGHT.encode()))])
async def test_the_budget_can_be_changed(serve: Serve, budget: int, spent: int | None) -> None:
    channel = await serve(SLOW)
    events = await interact(channel, pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=budget)))
    assert texts(events)[1] == ANSWER
    tokens = events[-1].finished.usage.reasoning_tokens
    if spent is None:
        assert 3 <= tokens < len(THOUGHT)
        assert outcome(events) == pb.THINKING_OUTCOME_BUDGET_REACHED
    else:
        assert tokens == spent


async def test_cancel_still_brings_the_bill(serve: Serve) -> None:
    channel = await serve(SLOW)
    events = await interact(channel, pb.InteractRequest(cancel=pb.Cancel()))
    finished = events[-1].finished
    assert finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED
    assert outcome(events) == pb.THINKING_OUTCOME_CANCELLED
    assert events[-2].thinking_finished.outcome == pb.THINKING_OUTCOME_CANCELLED
    assert events[-2].thinking_finished.reasoning_tokens == finished.usage.reasoning_tokens
    assert 0 < finished.usage.reasoning_tokens < len(THOUGHT.encode())
    assert sum(event.thought.token_count for event in events) == finished.usage.reasoning_tokens


@pytest.mark.parametrize(
    "messages",
    [
        [pb.InteractRequest(cancel=pb.Cancel())],
        [pb.InteractRequest(start=spec(thinking=THINKING)), pb.InteractRequest(start=spec())],
        [
            pb.InteractRequest(start=spec(thinking=THINKING)),
            pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=-2)),
        ],
    ],
)
async def test_steering_that_makes_no_sense_is_refused(serve: Serve, messages: list[pb.InteractRequest]) -> None:
    channel = await serve(SLOW)
    call = generation_pb2_grpc.GenerationServiceStub(channel).Interact(iter(messages))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call:
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("where", ["running", "queued"])
@pytest.mark.parametrize(
    "message", [pb.InteractRequest(), pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=-2))]
)
async def test_bad_steering_is_noticed_at_once_whatever_the_call_waits_for(
    where: str, message: pb.InteractRequest
) -> None:
    settings = {"admission": {"max_running_sequences": 1}}
    never = Reply(answer="never", step_seconds=86_400)
    async with listening(settings, never) as (server, address), channel_to(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        first = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec()))
        if where == "queued":
            await first.read()
        else:
            first.cancel()
        call = stub.Interact()
        await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))
        if where == "queued":
            while not server.admission.queued_calls:  # noqa: ASYNC110 - the server's own count
                await asyncio.sleep(0.01)
        else:
            assert (await call.read()).event.WhichOneof("event") == "started"
        await call.write(message)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        first.cancel()
        while server.admission.running_calls or server.admission.queued_calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------------------------- drain


async def test_draining_waits_for_streams_and_refuses_new_ones() -> None:
    async with ward(SLOW) as here:
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING)))
        while not here.engine.chunks:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.002)
        draining = asyncio.create_task(here.server.drain(60))
        while not here.server.state().draining:  # noqa: ASYNC110 - the server's own state
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream(here.channel, spec())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert_whole(await running)
        await draining


async def test_a_drain_that_takes_too_long_gives_each_stream_its_last_event() -> None:
    async with ward(Reply(thought=THOUGHT * 50, answer=ANSWER, step_seconds=0.002)) as here:
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING)))
        while here.engine.chunks < 5:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.005)
        await here.server.drain(0.1)
        finished = (await running)[-1].finished
        assert finished.results[0].finish_reason == pb.FINISH_REASON_DRAINED
        assert finished.usage.reasoning_tokens > 0


@asynccontextmanager
async def replica(key: Path, thought: str) -> AsyncIterator[Ward]:
    async with ward(Reply(thought=thought, answer=ANSWER, step_seconds=0.002), key_file=key) as here:
        yield here


async def carried(
    there: Ward, last: pb.GenerationEvent, started: pb.GenerationStarted, **wrong: object
) -> list[pb.GenerationEvent]:
    fields = {
        "generation_id": started.generation_id,
        "resume_token": last.finished.resume_token,
        "last_sequence": last.sequence,
    } | wrong
    stub = generation_pb2_grpc.GenerationServiceStub(there.channel)
    return [reply.event async for reply in stub.Resume(pb.ResumeRequest(**fields))]


@pytest.mark.slow
async def test_what_one_server_drained_another_goes_on_with(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    thought = THOUGHT * 4
    output = pb.OutputConfig(stop_strings=["while"], candidate_count=2)
    async with replica(key, thought) as here, replica(key, thought) as there:
        whole = await stream(there.channel, spec(thinking=THINKING, output=output))
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING, output=output)))
        while here.engine.chunks < 20:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.005)
        await here.server.drain(0.01)
        first = await running
        assert first[-1].finished.results[0].finish_reason == pb.FINISH_REASON_DRAINED
        rest = await carried(there, first[-1], first[0].started)
        assert [e.sequence for e in rest] == list(range(len(first) + 1, len(first) + len(rest) + 1))
        assert candidate_texts([*first, *rest]) == candidate_texts(whole)
        ours, theirs = rest[-1].finished, whole[-1].finished
        assert ours.usage.output_tokens == theirs.usage.output_tokens
        assert [r.finish_reason for r in ours.results] == [r.finish_reason for r in theirs.results]
        for wrong in (
            {"last_sequence": 1},
            {"generation_id": "x"},
            {"resume_token": first[-1].finished.resume_token[:-4]},
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await carried(there, first[-1], first[0].started, **wrong)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def candidate_texts(events: list[pb.GenerationEvent]) -> list[tuple[str, str]]:
    def text(kind: str, index: int) -> str:
        deltas = (getattr(event, kind) for event in events if event.WhichOneof("event") == kind)
        return "".join(delta.text for delta in deltas if delta.candidate_index == index)

    return [(text("thought", index), text("answer", index)) for index in (0, 1)]


async def test_without_a_shared_key_no_token_is_given_or_taken(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with replica(key, THOUGHT * 9) as here, ward(SLOW) as there:
        running = asyncio.create_task(stream(here.channel, spec(thinking=THINKING)))
        unkeyed = asyncio.create_task(stream(there.channel, spec(thinking=THINKING)))
        while min(here.engine.chunks, there.engine.chunks) < 5:  # noqa: ASYNC110 - the engines' own counts
            await asyncio.sleep(0.005)
        await here.server.drain(0.01)
        first = await running
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await carried(there, first[-1], first[0].started)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        await there.server.drain(0)
        assert (await unkeyed)[-1].finished.resume_token == ""


# ------------------------------------------------------------------------------------------------------ slow readers


@pytest.mark.slow
async def test_a_client_that_stops_reading_is_cut_off_and_slows_nobody() -> None:
    config = {"server": {"listen": "127.0.0.1:0", "slow_reader_seconds": 2.0}}
    engine = ScriptedEngine(
        [Reply(match="long", thought="x" * 40_000, answer="a"), SLOW], context_window_tokens=100_000
    )
    async with serving(engine, Config.model_validate(config)) as (_, channel):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        output = pb.OutputConfig(return_token_ids=True, top_logprobs=1)
        stalled = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec("long", thinking=THINKING, output=output)))
        await stalled.read()
        assert_whole(await stream(channel, spec(thinking=THINKING)))
        async with asyncio.timeout(60):
            while engine.load().running_requests:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.05)
        stalled.cancel()


@pytest.mark.parametrize("where", ["before its first token", "queued"])
async def test_cancel_is_noticed_at_once_whatever_the_call_waits_for(where: str) -> None:
    never = Reply(thought=THOUGHT, answer="never", step_seconds=86_400)
    async with (
        listening({"admission": {"max_running_sequences": 1}}, never) as (server, address),
        channel_to(address) as channel,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        first = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec()))
        await first.read()
        if where != "queued":
            first.cancel()
        call = stub.Interact()
        await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))
        events = []
        if where == "queued":
            while not server.admission.queued_calls:  # noqa: ASYNC110 - the server's own count
                await asyncio.sleep(0.01)
        else:
            events.append((await call.read()).event)
        await call.write(pb.InteractRequest(cancel=pb.Cancel()))
        while (reply := await call.read()) is not grpc.aio.EOF:
            events.append(reply.event)
        assert_cancelled(events, prompt_tokens=0 if where == "queued" else None)
        assert server.admission.queued_calls == 0


def assert_cancelled(events: list[pb.GenerationEvent], prompt_tokens: int | None) -> None:
    """Whole, numbered and billed: of a call that no engine saw, nothing."""
    assert [event.WhichOneof("event") for event in events if event.WhichOneof("event") != "interrupted"] == [
        "started",
        "thinking_finished",
        "finished",
    ]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    finished = events[-1].finished
    assert finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED
    assert outcome(events) == pb.THINKING_OUTCOME_CANCELLED
    assert finished.usage.reasoning_tokens == finished.usage.answer_tokens == 0
    if prompt_tokens is not None:
        assert finished.usage.prompt_tokens == prompt_tokens


@pytest.mark.parametrize("message", ["cancel", "drain"])
async def test_the_end_of_a_call_does_not_wait_for_an_engine_that_restarts(message: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("k" * 64)
    key_file.chmod(0o600)
    slower = replace(SLOW, step_seconds=0.02)
    async with ward(slower, start_seconds=0.05, key_file=key_file) as here:
        call = generation_pb2_grpc.GenerationServiceStub(here.channel).Interact()
        await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))
        events = [(await call.read()).event]
        while here.engine.chunks < 2 * SETTLING_STEPS:  # noqa: ASYNC110 - the engine's own count
            await asyncio.sleep(0.005)
        here.start_seconds = 86_400.0
        await here.engine.kill()
        while events[-1].WhichOneof("event") != "interrupted":
            events.append((await call.read()).event)
        draining = None
        if message == "cancel":
            await call.write(pb.InteractRequest(cancel=pb.Cancel()))
        else:
            draining = asyncio.create_task(here.server.drain(0.0))
        while (reply := await call.read()) is not grpc.aio.EOF:
            events.append(reply.event)
        expected = pb.FINISH_REASON_CANCELLED if message == "cancel" else pb.FINISH_REASON_DRAINED
        assert events[-1].finished.results[0].finish_reason == expected
        assert bool(events[-1].finished.resume_token) == (message == "drain")
        assert not any(event.WhichOneof("event") == "continued" for event in events)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        if draining is not None:
            await draining
