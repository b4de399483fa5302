"""AUTO asks the engine how certain the answer is without a thought: in any language, and never at another's cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.rpc.conftest import serving
from tests.rpc.killable import ward
from tests.rpc.test_stream import spec, stream, texts

AUTO = pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO)
ASKS = {"auto_decision": "probe", "auto_probability": 0.9}
CERTAIN = Reply(match="sure", thought="hm", answer="done")
UNSURE = Reply(thought="hm hm", answer="done", probability=0.8)


@asynccontextmanager
async def asking(*replies: Reply, **sections: object) -> AsyncIterator[tuple[ScriptedEngine, grpc.aio.Channel]]:
    engine = ScriptedEngine(replies or (CERTAIN, UNSURE))
    config = {"server": {"listen": "127.0.0.1:0"}, "thinking": ASKS, **sections}
    async with serving(engine, Config.model_validate(config)) as (_, channel):
        yield engine, channel


@pytest.mark.parametrize("question", ["Are you sure?", "sure, 17 + 25 + 8 + 31 times two, step by step", "sure: 你好"])
async def test_a_certain_answer_needs_no_thought_whatever_the_words_are(question: str) -> None:
    async with asking() as (_, channel):
        events = await stream(channel, spec(question, thinking=AUTO))
        assert texts(events) == ("", "done")
        finished = events[-1].finished
        told = events[0].started.effective_settings
        assert told == finished.effective_settings
        assert told.thinking_mode == pb.THINKING_MODE_FAST
        assert told.requested_thinking_mode == pb.THINKING_MODE_AUTO
        assert told.thinking_reason == "auto: answer without a thought at least 0.9 certain (1.00)"
        assert finished.results[0].thinking_outcome == pb.THINKING_OUTCOME_DISABLED
        # The prompt and the answer once more, and nothing of it is billed.
        assert finished.usage.probe_tokens == finished.usage.prompt_tokens + 5
        assert finished.usage.total_tokens == finished.usage.prompt_tokens + 5


@pytest.mark.parametrize("most", [None, 3])
async def test_a_greedy_answer_is_the_one_that_was_asked_for(most: int | None) -> None:
    long = Reply(match="sure", thought="hm", answer="a long answer, of far more letters than a probe reads")
    async with asking(long, UNSURE) as (engine, channel):
        request = spec("sure", thinking=AUTO)
        request.sampling.temperature = 0.0
        if most is not None:
            request.output.max_output_tokens = most
        events = await stream(channel, request)
        usage = events[-1].finished.usage
        assert texts(events) == ("", long.answer[:most])
        assert usage.answer_tokens == (most or len(long.answer) + 1)
        # Nothing was computed twice.
        assert (usage.probe_tokens, usage.recomputed_tokens) == (0, 0)
        assert engine.load().running_requests == 0
        request.messages.messages[0].content = "Hello"
        events = await stream(channel, request)
        assert texts(events)[0]
        assert events[-1].finished.usage.probe_tokens > 0


async def test_an_uncertain_answer_needs_one() -> None:
    async with asking() as (_, channel):
        events = await stream(channel, spec("Hello", thinking=AUTO))
        assert texts(events) == ("hm hm", "done")
        told = events[0].started.effective_settings
        assert told.thinking_mode == pb.THINKING_MODE_THINKING
        assert told.thinking_reason.endswith("; answer without a thought below 0.9 certain (0.80)")
        assert events[-1].finished.usage.probe_tokens > 0


@pytest.mark.parametrize(
    "thinking",
    [
        pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING),
        pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO, effort=pb.EFFORT_LOW),
        pb.ThinkingConfig(mode=pb.THINKING_MODE_AUTO, thinking_budget=0),
        pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
    ],
)
async def test_who_says_how_much_to_think_is_not_asked_about(thinking: pb.ThinkingConfig) -> None:
    async with asking() as (_, channel):
        events = await stream(channel, spec("sure", thinking=thinking))
        assert events[-1].finished.usage.probe_tokens == 0


@pytest.mark.slow
async def test_while_calls_wait_nothing_is_asked() -> None:
    slow = Reply(thought="hm", answer="done", step_seconds=0.02)
    async with asking(slow, admission={"max_running_sequences": 1}) as (_, channel):
        streams = await asyncio.gather(*(stream(channel, spec("sure", thinking=AUTO)) for _ in range(6)))
        asked = [events[-1].finished.usage.probe_tokens > 0 for events in streams]
        # The last one waits for nobody; those before it have others behind them.
        assert 1 <= sum(asked) <= 2
        for events, was_asked in zip(streams, asked, strict=True):
            assert texts(events) == ("" if was_asked else "hm", "done")


async def test_tools_and_forms_are_thought_about() -> None:
    async with asking() as (_, channel):
        request = spec("sure", thinking=AUTO)
        request.tools.add(name="look")
        events = await stream(channel, request)
        assert texts(events) == ("hm", "done")
        assert events[-1].finished.usage.probe_tokens == 0


async def test_cancel_and_deadline_end_the_question_too() -> None:
    never = Reply(answer="never", step_seconds=86_400)
    async with asking(never) as (engine, channel):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Generate(pb.GenerateRequest(spec=spec("sure", thinking=AUTO)), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = stub.Interact()
        await call.write(pb.InteractRequest(start=spec("sure", thinking=AUTO)))
        async with asyncio.timeout(60):
            while not engine.load().running_requests:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.005)
            await call.write(pb.InteractRequest(cancel=pb.Cancel()))
            events = [reply.event async for reply in _rest(call)]
            assert events[-1].finished.results[0].finish_reason == pb.FINISH_REASON_CANCELLED
            while engine.load().running_requests:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)


async def _rest(call: grpc.aio.StreamStreamCall) -> AsyncIterator[pb.InteractResponse]:
    while (reply := await call.read()) is not grpc.aio.EOF:
        yield reply


@pytest.mark.slow
async def test_an_engine_that_dies_over_the_question_is_no_poison() -> None:
    reply = Reply(thought="hm", answer="a long answer", step_seconds=0.02, probability=0.999)
    async with ward(reply, max_restarts=10, thinking=ASKS) as here:
        running = asyncio.create_task(stream(here.channel, spec("hello", thinking=AUTO)))
        async with asyncio.timeout(60):
            while not here.engine.chunks:  # noqa: ASYNC110 - the engine's own count
                await asyncio.sleep(0.002)
        await here.engine.kill()
        assert texts(await running) == ("hm", "a long answer")
        assert here.supervised.restarts == 1
        assert texts(await stream(here.channel, spec("hello", thinking=AUTO))) == ("hm", "a long answer")
        assert here.supervised.restarts == 1
