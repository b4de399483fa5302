"""Serve GenerationService and ModelService. `call_runner` runs the calls; `interceptor` turns errors into statuses."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from penstock import tasks
from penstock.errors import BadRequest, ContextOverflow, FieldViolation
from penstock.generation.control import GenerationControl
from penstock.generation.validation import unknown_model
from penstock.server.convert import generation as convert
from penstock.server.convert.model import model_to_proto
from penstock.server.request_context import RequestContext
from penstock.server.rpc.call_runner import CallRunner
from penstock.server.rpc.replies import count_to_proto, overflow_to_proto, response_to_proto, steered_to_proto
from penstock.server.rpc.steering import apply_action, check_action
from penstock.server.service_context import ServiceContext

M = TypeVar("M")


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serve generations. The interceptor passes each method a RequestContext in place of gRPC's context."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._runner = CallRunner(service)

    async def StreamGenerate(  # type: ignore[override]
        self, request: pb.StreamGenerateRequest, context: RequestContext
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """Yield the events of a generation, resumable or not."""
        call = self._runner.new_call(request.spec, context, convert.flush_seconds(request.flush_interval))
        source = await self._runner.start_resumable(call) if request.resumable else self._runner.events(call)
        async with aclosing(source) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event)

    async def Generate(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: RequestContext
    ) -> pb.GenerateResponse:
        """Return a whole generation in one reply."""
        call = replace(self._runner.new_call(request.spec, context), streams=False)
        async with (
            self._runner.ends_in_time(context, call.meter),
            self._runner.admission.admit(call) as admitted,
            aclosing(self._runner.generate(admitted)) as events,
        ):
            collected = [event async for event in events]
            if admitted.hooks.wants_content:
                for event in collected:
                    admitted.hooks.on_event(event)
        return response_to_proto(admitted, collected)

    async def CountTokens(  # type: ignore[override]
        self, request: pb.CountTokensRequest, context: RequestContext
    ) -> pb.CountTokensResponse:
        """Return the tokens of a prompt and the cost of a call, without running it."""
        try:
            plan = await self._runner.admission.plan(request.spec, context)
        except ContextOverflow as overflow:
            return overflow_to_proto(overflow)
        return count_to_proto(plan, self._service.prices)

    async def Interact(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: RequestContext
    ) -> AsyncGenerator[pb.InteractResponse, None]:
        """Yield the events of a generation that later messages of the client control."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("action") != "start":
            got = "nothing" if first is None else first.WhichOneof("action") or "an empty message"
            raise BadRequest(FieldViolation("action", f"the first message must be `start`, got {got}", "MISSING_FIELD"))
        call = self._runner.new_call(first.start, context, convert.flush_seconds(first.flush_interval))
        listening = _apply_messages(call.control, request_iterator, self._service.config.limits.max_steering_messages)
        async with aclosing(_until_either_fails(self._runner.events(call), listening)) as events:
            async for event in events:
                yield pb.InteractResponse(event=event)

    async def Resume(  # type: ignore[override]
        self, request: pb.ResumeRequest, context: RequestContext
    ) -> AsyncGenerator[pb.ResumeResponse, None]:
        """Yield the events of a resumable generation after `last_sequence`."""
        async with aclosing(await self._runner.resume(request, context)) as events:
            async for event in events:
                yield pb.ResumeResponse(event=event)

    async def Cancel(  # type: ignore[override]
        self, request: pb.CancelRequest, context: RequestContext
    ) -> pb.CancelResponse:
        """End a resumable generation."""
        await self._service.streams.cancel(request.generation_id, request.resume_token, context.caller)
        return pb.CancelResponse()

    async def Steer(  # type: ignore[override]
        self, request: pb.SteerRequest, context: RequestContext
    ) -> pb.SteerResponse:
        """Apply one action to a resumable generation that runs, and return what holds from now on."""
        check_action(request)
        stream = await self._service.streams.get_running(request.generation_id, request.resume_token, context.caller)
        context.hooks.steers(stream.hooks)
        apply_action(stream.control, request, self._service.config.limits.max_steering_messages)
        return steered_to_proto(request, stream.control, stream.meter)


async def _until_either_fails(
    source: AsyncGenerator[M, None], listening: Coroutine[Any, Any, None]
) -> AsyncGenerator[M, None]:
    """Yield the items of `source`; where `listening` fails, raise its error at once, whatever `source` waits for."""
    # One item at most: a client that reads slowly slows its generation, as in other calls.
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
                hearing.result()  # An invalid message ends the call.
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


async def _apply_messages(control: GenerationControl, requests: AsyncIterator[pb.InteractRequest], most: int) -> None:
    """Apply the client's messages to the control, which candidates read at their next engine step."""
    async for request in requests:
        apply_action(control, request, most)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Serve the facts about the model."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service

    async def GetModel(self, request: model_pb2.GetModelRequest, context: object) -> model_pb2.GetModelResponse:
        """Return the model card, its profile, prices and limits."""
        card = self._service.engine().card
        if request.model not in ("", card.name):
            raise unknown_model(request.model, card)
        return model_to_proto(card, self._service.config, self._service.prices)
