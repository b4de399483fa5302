"""Steer: the actions of Interact in one call, by the id and the token of a resumable generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from penstock.auth.api_keys import make
from penstock.config.schema import Config
from penstock.engine.probation import SETTLING_STEPS
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.conftest import Serve, serving
from tests.rpc.killable import Ward, ward
from tests.rpc.secure import bearer, listening
from tests.rpc.secure import channel as channel_to
from tests.rpc.test_stream import spec, stream, texts

THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
THOUGHT, ANSWER = "a thought of some length, ünïcödé too", "an answer that goes on for a while"
SLOW = Reply(thought=THOUGHT, answer=ANSWER, step_seconds=0.01)
LONG = Reply(thought=THOUGHT * 50, answer=ANSWER, step_seconds=0.01)
FINISH: dict[str, Any] = {"finish_thinking": pb.FinishThinking()}
CANCEL: dict[str, Any] = {"cancel": pb.Cancel()}


def budget(tokens: int) -> dict[str, Any]:
    return {"change_budget": pb.ChangeBudget(thinking_budget=tokens)}


class Running:
    """A resumable generation that thinks, and a caller that reads it."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any = None) -> None:
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self.metadata = metadata
        self.events: list[pb.GenerationEvent] = []

    async def start(self, **fields: Any) -> Running:
        request = pb.StreamGenerateRequest(spec=spec(**{"thinking": THINKING} | fields), resumable=True)
        self.call = self.stub.StreamGenerate(request, metadata=self.metadata)
        await self.until("started")
        return self

    async def until(self, *kinds: str, count: int = 1) -> None:
        """Read until the kind of event has come so often; "end" reads to the end."""
        while count and (reply := await self.call.read()) is not grpc.aio.EOF:
            self.events.append(reply.event)
            count -= reply.event.WhichOneof("event") in kinds

    async def rest(self) -> list[pb.GenerationEvent]:
        await self.until("end")
        return self.events

    @property
    def started(self) -> pb.GenerationStarted:
        return self.events[0].started

    def steer(self, **fields: Any) -> Any:
        given = {"generation_id": self.started.generation_id, "resume_token": self.started.resume_token} | fields
        return self.stub.Steer(pb.SteerRequest(**given), metadata=self.metadata)


async def thinking(channel: grpc.aio.Channel, thoughts: int = 3, **fields: Any) -> Running:
    running = await Running(channel).start(**fields)
    await running.until("thought", count=thoughts)
    return running


def outcome(events: list[pb.GenerationEvent]) -> pb.ThinkingOutcome:
    return events[-1].finished.results[0].thinking_outcome


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(found)
    return found


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = info(caught.value)
    return caught.value.code(), found.reason, dict(found.metadata), caught.value.details()


async def test_answer_now(serve: Serve) -> None:
    running = await thinking(await serve(SLOW))
    reply = await running.steer(**FINISH)
    assert (reply.applied, reply.phase) == (True, pb.GENERATION_PHASE_THINKING)
    assert reply.thinking_budget == running.started.effective_settings.thinking_budget
    assert reply.reasoning_tokens >= 3
    events = await running.rest()
    thought, answer = texts(events)
    assert THOUGHT.startswith(thought)
    assert len(thought) < len(THOUGHT)
    assert answer == ANSWER
    assert outcome(events) == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_every_candidate_answers_now(serve: Serve) -> None:
    running = await thinking(await serve(SLOW), 6, output=pb.OutputConfig(candidate_count=2))
    assert (await running.steer(**FINISH)).reasoning_tokens >= 6
    results = (await running.rest())[-1].finished.results
    assert [result.thinking_outcome for result in results] == [pb.THINKING_OUTCOME_FINISHED_BY_CLIENT] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "holds", "spent"), [(0, 0, None), (20, 20, 20), (-1, None, 41), (2**31 - 1, None, 41)]
)
async def test_the_budget_can_be_changed(serve: Serve, asked: int, holds: int | None, spent: int | None) -> None:
    assert len(THOUGHT.encode()) == 41
    running = await thinking(await serve(SLOW), output=pb.OutputConfig(max_output_tokens=200))
    effective = running.started.effective_settings
    reply = await running.steer(**budget(asked))
    room = effective.max_output_tokens - effective.answer_reserve
    assert (reply.applied, reply.thinking_budget) == (True, room if holds is None else holds)
    events = await running.rest()
    assert texts(events)[1] == ANSWER
    tokens = events[-1].finished.usage.reasoning_tokens
    if spent is None:
        assert 3 <= tokens < len(THOUGHT)
        assert outcome(events) == pb.THINKING_OUTCOME_BUDGET_REACHED
    else:
        assert tokens == spent


@pytest.mark.slow
async def test_the_last_budget_before_a_step_holds(serve: Serve) -> None:
    running = await thinking(await serve(replace(SLOW, step_seconds=0.3)))
    replies = await asyncio.gather(*(running.steer(**budget(tokens)) for tokens in (9, 30, 12)))
    assert {reply.thinking_budget for reply in replies} == {9, 30, 12}
    assert (await running.steer(**budget(11))).thinking_budget == 11
    assert (await running.rest())[-1].finished.usage.reasoning_tokens == 11


async def test_cancel_brings_the_bill_and_the_stream_can_still_be_read(serve: Serve) -> None:
    running = await thinking(await serve(SLOW))
    assert (await running.steer(**CANCEL)).applied
    finished = (await running.rest())[-1].finished
    assert finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED
    assert finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_CANCELLED
    assert 0 < finished.usage.reasoning_tokens < len(THOUGHT.encode())
    again = pb.ResumeRequest(generation_id=running.started.generation_id, resume_token=running.started.resume_token)
    assert [reply.event async for reply in running.stub.Resume(again)] == running.events


@pytest.mark.slow
@pytest.mark.parametrize("action", [FINISH, budget(5)])
async def test_what_comes_after_the_thought_changes_nothing_and_says_so(serve: Serve, action: dict[str, Any]) -> None:
    running = await Running(await serve(SLOW)).start()
    await running.until("answer", count=2)
    reply = await running.steer(**action)
    assert (reply.applied, reply.phase) == (False, pb.GENERATION_PHASE_ANSWERING)
    assert reply.thinking_budget == running.started.effective_settings.thinking_budget
    assert reply.reasoning_tokens == len(THOUGHT.encode())
    assert texts(await running.rest()) == (THOUGHT, ANSWER)


async def test_there_is_no_thought_to_steer_where_there_is_none(serve: Serve) -> None:
    never = Reply(answer=ANSWER, step_seconds=86_400)
    running = await Running(await serve(never)).start(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST))
    reply = await running.steer(**budget(50))
    assert (reply.applied, reply.phase, reply.thinking_budget) == (False, pb.GENERATION_PHASE_WAITING, 0)
    assert (await running.steer(**CANCEL)).applied
    reply = await running.stub.Resume(
        pb.ResumeRequest(generation_id=running.started.generation_id, resume_token=running.started.resume_token)
    ).read()
    assert reply.event.started == running.started
    assert (await running.rest())[-1].finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED


@pytest.mark.slow
async def test_before_the_first_token_the_answer_can_be_asked_for(serve: Serve) -> None:
    running = await Running(await serve(replace(SLOW, step_seconds=0.3))).start()
    reply = await running.steer(**FINISH)
    assert (reply.applied, reply.phase, reply.reasoning_tokens) == (True, pb.GENERATION_PHASE_WAITING, 0)
    assert outcome(await running.rest()) == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "reason", "path"),
    [
        ({}, "MISSING_FIELD", "action"),
        (budget(-2), "INVALID_FIELD", "change_budget.thinking_budget"),
        ({"generation_id": "guess", **budget(-2)}, "INVALID_FIELD", "change_budget.thinking_budget"),
    ],
)
async def test_an_action_that_makes_no_sense_is_refused_and_disturbs_nothing(
    serve: Serve, fields: dict[str, Any], reason: str, path: str
) -> None:
    running = await thinking(await serve(SLOW))
    code, said, _, text = await refusal(running.steer(**fields))
    assert (code, said) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert str(text).startswith(f"{path}: must be ")
    assert texts(await running.rest()) == (THOUGHT, ANSWER)


async def test_who_has_no_token_learns_nothing() -> None:
    """Another caller, a wrong token and an unknown id are told the same, whatever the generation does."""
    (mine, one), (other, two) = make("team-a"), make("team-b")
    settings = {"auth": {"keys": [entry.model_dump(mode="json") for entry in (one, two)]}}
    async with listening(settings, SLOW) as (_, address), channel_to(address) as at:
        running = await Running(at, bearer(mine)).start()
        ended = await Running(at, bearer(mine)).start()
        await ended.rest()
        nobody, guess = {"generation_id": "no-such"}, {"resume_token": "guess"}
        told = [await refusal(running.steer(**FINISH, **wrong)) for wrong in (nobody, guess, {"resume_token": ""})]
        told.append(await refusal(ended.steer(**FINISH, **guess)))
        running.metadata = ended.metadata = bearer(other)
        told += [await refusal(running.steer(**FINISH)), await refusal(ended.steer(**CANCEL))]
        assert told == [told[0]] * len(told)
        assert told[0][:3] == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND", {})
        assert texts(await running.rest()) == (THOUGHT, ANSWER)
        ended.metadata = bearer(mine)
        assert (await refusal(ended.steer(**CANCEL)))[2] == {"state": "finished"}


async def test_without_permission_or_quota_nothing_is_steered(tmp_path: Path) -> None:
    (mine, one), (other, two) = make("team-a"), make("watcher")
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers.watcher]\npermissions = ["diagnostics"]\n')
    settings = {
        "auth": {"keys": [e.model_dump(mode="json") for e in (one, two)], "callers_file": str(callers)},
        "quotas": {"requests_per_minute": 3},
    }
    async with listening(settings, LONG) as (_, address), channel_to(address) as at:
        running = await Running(at, bearer(mine)).start()
        running.metadata = bearer(other)
        assert (await refusal(running.steer(**FINISH)))[:2] == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_REFUSED")
        running.metadata = None
        assert (await refusal(running.steer(**FINISH)))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_REFUSED")
        running.metadata = bearer(mine)
        for tokens in (1000, 1001):
            await running.steer(**budget(tokens))
        code, reason, metadata, _ = await refusal(running.steer(**budget(1002)))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert metadata["quota"] == "requests_per_minute"
        end = pb.CancelRequest(generation_id=running.started.generation_id, resume_token=running.started.resume_token)
        await running.stub.Cancel(end, metadata=bearer(mine))  # not counted


async def test_a_flood_of_actions_costs_the_engine_no_more_than_the_limit() -> None:
    async with ward(replace(LONG, step_seconds=0.02)) as here:
        running = await thinking(here.channel)
        replies = await asyncio.gather(
            *(running.steer(**budget(1000 + number)) for number in range(600)), return_exceptions=True
        )
        refused = [reply for reply in replies if isinstance(reply, grpc.aio.AioRpcError)]
        assert len(refused) == 600 - 64
        assert {(error.code(), info(error).reason) for error in refused} == {
            (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_EXCEEDED")
        }
        assert here.engine.runs <= 1 + 64
        assert (await running.steer(**CANCEL)).applied
        finished = (await running.rest())[-1].finished
        assert finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED


@pytest.mark.slow
async def test_steering_does_not_keep_an_unread_generation() -> None:
    config = {"server": {"listen": "127.0.0.1:0"}, "resume": {"grace_seconds": 1.0}}
    engine = ScriptedEngine([replace(LONG, step_seconds=0.2)])
    async with serving(engine, Config.model_validate(config)) as (server, channel):
        running = await thinking(channel, 1)
        running.call.cancel()
        async with asyncio.timeout(60):
            while True:
                try:
                    await running.steer(**budget(1000))
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        break
                await asyncio.sleep(0.05)
            while engine.load().running_requests or server.state().resumable_streams:  # noqa: ASYNC110 - their counts
                await asyncio.sleep(0.01)


# -------------------------------------------------------------------------------------------- engine deaths and drains


async def interrupted(here: Ward) -> Running:
    running = await Running(here.channel).start()
    while here.engine.chunks < 2 * SETTLING_STEPS:  # noqa: ASYNC110 - the engine's own count
        await asyncio.sleep(0.005)
    await here.engine.kill()
    await running.until("interrupted")
    return running


@pytest.mark.slow
async def test_an_answer_asked_for_while_the_engine_restarts_comes_after_it() -> None:
    async with ward(replace(LONG, step_seconds=0.02), start_seconds=1.0) as here:
        running = await interrupted(here)
        reply = await running.steer(**FINISH)
        assert (reply.applied, reply.phase) == (True, pb.GENERATION_PHASE_THINKING)
        events = await running.rest()
        assert [event.WhichOneof("event") for event in events].count("continued") == 1
        assert outcome(events) == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT
        assert texts(events)[1] == ANSWER


async def test_a_cancel_does_not_wait_for_an_engine_that_restarts() -> None:
    async with ward(replace(LONG, step_seconds=0.02), start_seconds=0.05) as here:
        here.start_seconds = 86_400.0
        running = await interrupted(here)
        assert (await running.steer(**CANCEL)).applied
        assert (await running.rest())[-1].finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED


@asynccontextmanager
async def replicas(tmp_path: Path, reply: Reply) -> AsyncIterator[tuple[Ward, Ward]]:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    async with ward(reply, key_file=key) as here, ward(reply, key_file=key) as there:
        yield here, there


@pytest.mark.slow
@pytest.mark.parametrize("action", [FINISH, budget(7)])
async def test_what_a_draining_server_was_asked_the_next_one_does(tmp_path: Path, action: dict[str, Any]) -> None:
    async with replicas(tmp_path, replace(LONG, step_seconds=0.3)) as (here, there):
        running = await thinking(here.channel, 1)
        assert (await running.steer(**action)).applied
        draining = asyncio.create_task(here.server.drain(0.0))  # before the engine's next step, as a rule
        first = await running.rest()
        await draining
        moved = Running(there.channel)
        request = pb.ResumeRequest(
            generation_id=running.started.generation_id,
            resume_token=first[-1].finished.resume_token,
            last_sequence=first[-1].sequence,
        )
        moved.call = moved.stub.Resume(request)
        rest = await moved.rest()
        expected = {"finish_thinking": pb.THINKING_OUTCOME_FINISHED_BY_CLIENT}
        assert outcome(rest) == expected.get(next(iter(action)), pb.THINKING_OUTCOME_BUDGET_REACHED)
        assert rest[-1].finished.usage.reasoning_tokens <= 7
        assert texts([*first, *rest])[1] == ANSWER


@pytest.mark.slow
async def test_a_generation_is_steered_where_it_runs(tmp_path: Path) -> None:
    async with replicas(tmp_path, replace(LONG, step_seconds=0.02)) as (here, there):
        running = await thinking(here.channel)
        elsewhere = Running(there.channel)
        elsewhere.events = running.events
        assert (await refusal(elsewhere.steer(**FINISH)))[:3] == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND", {})
        draining = asyncio.create_task(here.server.drain(3.0))
        while not here.server.state().draining:  # noqa: ASYNC110 - the server's own state
            await asyncio.sleep(0.01)
        assert (await running.steer(**budget(1500))).thinking_budget == 1500  # a server that drains serves on
        first = await running.rest()
        await draining
        last = first[-1].finished
        assert last.results[0].finish_reason == pb.FINISH_REASON_DRAINED
        token = {"resume_token": last.resume_token}
        assert (await refusal(elsewhere.steer(**FINISH, **token)))[0] is grpc.StatusCode.NOT_FOUND  # not resumed yet
        resume = {"generation_id": running.started.generation_id, "last_sequence": first[-1].sequence}
        moved = Running(there.channel)
        moved.call = moved.stub.Resume(pb.ResumeRequest(**resume, **token))
        await moved.until("thought", count=2)
        reply = await elsewhere.steer(**FINISH, **token)
        assert (reply.applied, reply.thinking_budget) == (True, 1500)
        assert outcome(await moved.rest()) == pb.THINKING_OUTCOME_FINISHED_BY_CLIENT


@pytest.mark.slow
async def test_a_stream_that_nobody_can_resume_cannot_be_steered(serve: Serve) -> None:
    channel = await serve(SLOW)
    plain = Running(channel)
    plain.call = plain.stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec(thinking=THINKING)))
    await plain.until("thought", count=2)
    assert plain.started.resume_token == ""
    assert (await refusal(plain.steer(**CANCEL)))[0] is grpc.StatusCode.NOT_FOUND
    assert texts(await plain.rest()) == (THOUGHT, ANSWER)
    assert texts(await stream(channel, spec(thinking=THINKING))) == (THOUGHT, ANSWER)
