"""Early exit in a running service: deaths, drains, steering and deadlines in the middle of a probe lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.conftest import serving
from tests.rpc.killable import ward
from tests.rpc.test_stream import spec, stream, texts
from tests.rpc.test_survival import ANSWER, THOUGHT, assert_whole, outcome

PROBING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, early_exit=pb.EARLY_EXIT_PROBE)
EAGER = {"early_exit_interval_tokens": 1, "early_exit_share": 64.0, "early_exit_answer_tokens": 256}
LASTING = EAGER | {"early_exit_agreements": 16}
# A probe needs as many steps as the answer has letters, so that it lasts from the first line of the thought on.
LINES = "a\n" + THOUGHT


class SlowProbes(ScriptedEngine):
    """Its probes never come to an end by themselves."""

    def __init__(self, reply: Reply) -> None:
        super().__init__([reply])
        self.probes = self.running_probes = 0

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        if "-probe" not in request.request_id:
            async for chunk in super().stream(request):
                yield chunk
            return
        self.probes += 1
        self.running_probes += 1
        try:
            async for chunk in super().stream(request):
                yield chunk
                await asyncio.Event().wait()
        finally:
            self.running_probes -= 1


@asynccontextmanager
async def probing(
    step_seconds: float = 0.002, **sections: object
) -> AsyncIterator[tuple[SlowProbes, grpc.aio.Channel]]:
    engine = SlowProbes(Reply(thought=LINES, answer=ANSWER, step_seconds=step_seconds))
    config = {"server": {"listen": "127.0.0.1:0"}, "thinking": EAGER, **sections}
    async with serving(engine, Config.model_validate(config)) as (_, channel):
        yield engine, channel


@pytest.mark.slow
async def test_a_killed_engine_in_the_middle_of_probes_loses_nothing() -> None:
    slow = Reply(thought=LINES * 3, answer=ANSWER, step_seconds=0.01, probability=0.5)
    async with ward(slow, max_restarts=10, thinking=LASTING) as here:
        streams = [asyncio.create_task(stream(here.channel, spec(thinking=PROBING))) for _ in range(8)]
        async with asyncio.timeout(60):
            # Sixteen runs of eight calls: each has its probe.
            while here.engine.load().running_requests < 16:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.002)
        await here.engine.kill()
        for events in await asyncio.gather(*streams):
            assert texts(events) == (LINES * 3, ANSWER)
            assert outcome(events) == pb.THINKING_OUTCOME_NATURAL_END
        assert here.supervised.restarts == 1
        # Nobody is taken for a poisoner: the same request is served again.
        assert texts(await stream(here.channel, spec(thinking=PROBING))) == (LINES * 3, ANSWER)
        assert here.supervised.restarts == 1


async def test_a_drain_in_the_middle_of_a_probe_moves_the_thought(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    moved = Reply(thought=LINES, answer=ANSWER, step_seconds=0.002, probability=0.5)
    settings = {"key_file": key, "thinking": LASTING}
    async with ward(moved, **settings) as here, ward(moved, **settings) as there:
        reading = asyncio.create_task(stream(here.channel, spec(thinking=PROBING)))
        async with asyncio.timeout(60):
            while here.engine.load().running_requests < 2:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.002)
        await here.server.drain(0.0)
        events = await reading
        finished = events[-1].finished
        assert finished.results[0].finish_reason == pb.FINISH_REASON_DRAINED
        request = pb.ResumeRequest(
            generation_id=events[0].started.generation_id,
            resume_token=finished.resume_token,
            last_sequence=events[-1].sequence,
        )
        rest = [reply.event async for reply in generation_pb2_grpc.GenerationServiceStub(there.channel).Resume(request)]
        assert texts([*events[:-1], *rest]) == (LINES, ANSWER)
        assert rest[-1].finished.usage.reasoning_tokens == len(LINES.encode())


@pytest.mark.parametrize("action", ["finish_thinking", "change_budget", "cancel"])
async def test_steering_in_the_middle_of_a_probe(action: str) -> None:
    async with probing() as (engine, channel):
        call = generation_pb2_grpc.GenerationServiceStub(channel).Interact()
        await call.write(pb.InteractRequest(start=spec(thinking=PROBING)))
        events = []
        while not engine.running_probes:
            events.append((await call.read()).event)
        later = {
            "finish_thinking": pb.InteractRequest(finish_thinking=pb.FinishThinking()),
            "change_budget": pb.InteractRequest(change_budget=pb.ChangeBudget(thinking_budget=30)),
            "cancel": pb.InteractRequest(cancel=pb.Cancel()),
        }
        await call.write(later[action])
        await call.done_writing()
        while (reply := await call.read()) is not grpc.aio.EOF:
            events.append(reply.event)
        thought, answer = texts(events)
        assert LINES.startswith(thought)
        assert answer == ("" if action == "cancel" else ANSWER)
        usage = events[-1].finished.usage
        assert usage.reasoning_tokens == len(thought.encode())
        if action == "change_budget":
            assert usage.reasoning_tokens == 30
        assert engine.running_probes == 0
        assert usage.probe_tokens > 0


@pytest.mark.slow
async def test_a_deadline_in_the_middle_of_a_probe_ends_both() -> None:
    async with probing(step_seconds=0.05) as (engine, channel):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        long = spec(thinking=PROBING)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Generate(pb.GenerateRequest(spec=long), timeout=2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(60):
            while engine.load().running_requests:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.002)
        assert engine.probes > 0
        assert engine.running_probes == 0


@pytest.mark.slow
async def test_probes_stop_while_calls_wait_in_the_queue() -> None:
    async with probing(admission={"max_running_sequences": 2}) as (engine, channel):
        calls = [asyncio.create_task(stream(channel, spec(thinking=PROBING))) for _ in range(12)]
        seen = 0
        while not all(call.done() for call in calls):
            seen = max(seen, engine.running_probes)
            await asyncio.sleep(0.001)
        for events in await asyncio.gather(*calls):
            assert texts(events) == (LINES, ANSWER)
        assert engine.running_probes == 0


async def test_the_whole_thought_is_there_where_nothing_converges() -> None:
    reply = Reply(thought=THOUGHT, answer=ANSWER, step_seconds=0.001, probability=0.5)
    config = {"server": {"listen": "127.0.0.1:0"}, "thinking": EAGER}
    async with serving(ScriptedEngine([reply]), Config.model_validate(config)) as (_, channel):
        assert_whole(await stream(channel, spec(thinking=PROBING)))
