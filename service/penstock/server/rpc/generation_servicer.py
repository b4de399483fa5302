"""The methods of generation and model service, each on a few lines. What a call does is in `calls`; errors become
statuses in `interceptor`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from penstock import tasks
from penstock.auth.identity import CALLER
from penstock.errors import BadRequest, ContextOverflow, FieldViolation, ModelNotFound
from penstock.generation.candidate import Steering
from penstock.generation.usage import Meter
from penstock.server.convert import generation as wire
from penstock.server.convert.model import model_out
from penstock.server.rpc.call_runner import Calls
from penstock.server.rpc.replies import count_of, count_of_overflow, reply_of
from penstock.server.service_context import Arrival, Context, House
from penstock.sessions.checkpoints import is_sealed
from penstock.telemetry.hooks import CALL

M = TypeVar("M")


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, house: House) -> None:
        self._house = house
        self._calls = Calls(house)

    def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        arrival, flush_seconds = Arrival.of(context), wire.flush_seconds(request.flush_interval)
        if request.resumable:
            return self._live(request.spec, arrival, flush_seconds)
        return self._calls.events(request.spec, arrival, flush_seconds, wire.streamed)

    async def _live(
        self, spec: pb.GenerationSpec, arrival: Arrival, flush_seconds: float
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        async with aclosing(await self._calls.live(spec, arrival, flush_seconds)) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        arrival, meter = Arrival.of(context), Meter()
        async with (
            self._calls.ends_in_time(arrival, meter),
            self._calls.let_in(request.spec, arrival, streams=False, meter=meter) as call,
            aclosing(self._calls.generation(call)) as events,
        ):
            gathered = [event async for event in events]
            if call.watch.wants_content:
                for event in gathered:
                    call.watch.said(event)
        return reply_of(
            gathered,
            generation_id=call.generation_id,
            model=call.engine.card.name,
            effective=call.effective,
            token_bytes=call.engine.tokenizer.token_bytes,
            with_ids=call.plan.request.output.return_token_ids,
        )

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        engine = self._house.engine()
        try:
            plan = await self._calls.plan(request.spec, engine, Arrival.of(context))
        except ContextOverflow as overflow:
            return count_of_overflow(overflow)
        return count_of(plan, self._house.prices)

    async def Interact(
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: Context
    ) -> AsyncGenerator[pb.InteractResponse, None]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("action") != "start":
            raise BadRequest(FieldViolation("action", "the first message must be `start`", "MISSING_FIELD"))
        flush_seconds, steering = wire.flush_seconds(first.flush_interval), self._house.steering()
        arrival = Arrival.of(context)
        source = self._calls.events(first.start, arrival, flush_seconds, wire.interacted, steering=steering)
        most = self._house.config.limits.max_steering_messages
        async with aclosing(_until_either_fails(source, _steer(steering, request_iterator, most))) as replies:
            async for reply in replies:
                yield reply

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncGenerator[pb.ResumeResponse, None]:
        if is_sealed(request.resume_token):
            source = await self._calls.carried_on(request, Arrival.of(context))
        else:
            stream = await self._house.live.find(request.generation_id, request.resume_token, CALLER.get())
            CALL.get().resumes(stream.call)
            source = self._calls.in_time(stream.read(request.last_sequence), Arrival.of(context), stream.meter)
        async with aclosing(source) as events:
            async for event in events:
                yield pb.ResumeResponse(event=event)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        await self._house.live.cancel(request.generation_id, request.resume_token, CALLER.get())
        return pb.CancelResponse()


async def _until_either_fails(
    source: AsyncGenerator[M, None], listening: Coroutine[Any, Any, None]
) -> AsyncGenerator[M, None]:
    """What `source` gives, until `listening` fails: then at once its error, whatever `source` waits for."""
    # Of one: a caller that reads slowly slows the generation, as it does elsewhere.
    ready: deque[M] = deque()
    news, room = asyncio.Event(), asyncio.Event()

    async def feed() -> None:
        async with aclosing(source) as replies:
            async for reply in replies:
                ready.append(reply)
                news.set()
                room.clear()
                await room.wait()

    feeding, hearing = asyncio.create_task(feed()), asyncio.create_task(listening)
    for task in (feeding, hearing):
        task.add_done_callback(lambda _: news.set())
    try:
        while True:
            await news.wait()
            news.clear()
            if hearing.done():
                hearing.result()  # A message that says nothing sensible ends the call.
            if ready:
                yield ready.popleft()
                room.set()
            elif feeding.done():
                feeding.result()
                return
            if feeding.done():
                news.set()
    finally:
        await tasks.end(feeding, hearing)


async def _steer(steering: Steering, requests: AsyncIterator[pb.InteractRequest], most: int) -> None:
    """Turns what the caller says into what the candidates read at their next engine step."""
    left = most
    async for request in requests:
        if left == 0:
            raise BadRequest(FieldViolation("action", f"more than {most} messages after the first", "LIMIT_EXCEEDED"))
        left -= 1
        match request.WhichOneof("action"):
            case "finish_thinking":
                steering.finish_thinking = True
            case "change_budget":
                budget = request.change_budget.thinking_budget
                if budget < -1:
                    raise BadRequest(
                        FieldViolation(
                            "change_budget.thinking_budget", f"must be at least -1, got {budget}", "INVALID_FIELD"
                        )
                    )
                steering.thought_budget_tokens = budget
            case "cancel":
                steering.cancel()
            case _:
                raise BadRequest(FieldViolation("action", "must be one of the steering messages", "INVALID_FIELD"))


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, house: House) -> None:
        self._house = house

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.GetModelResponse:
        card = self._house.engine().card
        if request.model not in ("", card.name):
            raise ModelNotFound("this model is not served here", served_model=card.name)
        return model_out(card, self._house.config, self._house.prices)
