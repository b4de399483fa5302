"""Serve GenerationService and ModelService. `call_runner` runs the calls; `interceptor` turns errors into statuses."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from penstock import tasks
from penstock.auth.identity import CURRENT_PRINCIPAL
from penstock.errors import BadRequest, ContextOverflow, FieldViolation, ModelNotFound
from penstock.generation.candidate import GenerationControl
from penstock.generation.usage import UsageMeter
from penstock.server.convert import generation as convert
from penstock.server.convert.model import model_to_proto
from penstock.server.rpc.call_runner import CallRunner
from penstock.server.rpc.replies import count_to_proto, overflow_to_proto, response_to_proto
from penstock.server.service_context import Context, RequestContext, ServiceContext
from penstock.sessions.checkpoints import is_checkpoint
from penstock.telemetry.hooks import CURRENT_CALL

M = TypeVar("M")


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serve generations."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._runner = CallRunner(service)

    def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """Yield the events of a generation, resumable or not."""
        request_context, flush_seconds = RequestContext.of(context), convert.flush_seconds(request.flush_interval)
        if request.resumable:
            return self._resumable(request.spec, request_context, flush_seconds)
        return self._runner.events(request.spec, request_context, flush_seconds, convert.streamed)

    async def _resumable(
        self, spec: pb.GenerationSpec, request_context: RequestContext, flush_seconds: float
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        async with aclosing(await self._runner.start_resumable(spec, request_context, flush_seconds)) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Return a whole generation in one reply."""
        request_context, meter = RequestContext.of(context), UsageMeter()
        async with (
            self._runner.ends_in_time(request_context, meter),
            self._runner.admit(request.spec, request_context, streams=False, meter=meter) as call,
            aclosing(self._runner.generation(call)) as events,
        ):
            collected = [event async for event in events]
            if call.hooks.wants_content:
                for event in collected:
                    call.hooks.on_event(event)
        return response_to_proto(
            collected,
            generation_id=call.generation_id,
            model=call.engine.card.name,
            effective=call.effective,
            token_bytes=call.engine.tokenizer.token_bytes,
            with_ids=call.plan.request.output.return_token_ids,
        )

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Return the tokens of a prompt and the cost of a call, without running it."""
        engine = self._service.engine()
        try:
            plan = await self._runner.plan(request.spec, engine, RequestContext.of(context))
        except ContextOverflow as overflow:
            return overflow_to_proto(overflow)
        return count_to_proto(plan, self._service.prices)

    async def Interact(
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: Context
    ) -> AsyncGenerator[pb.InteractResponse, None]:
        """Yield the events of a generation that later messages of the client control."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("action") != "start":
            got = "nothing" if first is None else first.WhichOneof("action") or "an empty message"
            raise BadRequest(FieldViolation("action", f"the first message must be `start`, got {got}", "MISSING_FIELD"))
        flush_seconds, control = convert.flush_seconds(first.flush_interval), self._service.control()
        request_context = RequestContext.of(context)
        source = self._runner.events(first.start, request_context, flush_seconds, convert.interacted, control=control)
        most = self._service.config.limits.max_steering_messages
        async with aclosing(_until_either_fails(source, _apply_messages(control, request_iterator, most))) as replies:
            async for reply in replies:
                yield reply

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncGenerator[pb.ResumeResponse, None]:
        """Yield the events of a resumable generation after `last_sequence`."""
        if is_checkpoint(request.resume_token):
            source = await self._runner.resume_from_checkpoint(request, RequestContext.of(context))
        else:
            stream = await self._service.streams.get(
                request.generation_id, request.resume_token, CURRENT_PRINCIPAL.get()
            )
            CURRENT_CALL.get().resumes(stream.call)
            source = self._runner.in_time(stream.read(request.last_sequence), RequestContext.of(context), stream.meter)
        async with aclosing(source) as events:
            async for event in events:
                yield pb.ResumeResponse(event=event)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """End a resumable generation."""
        await self._service.streams.cancel(request.generation_id, request.resume_token, CURRENT_PRINCIPAL.get())
        return pb.CancelResponse()


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
    left = most
    async for request in requests:
        if left == 0:
            raise BadRequest(
                FieldViolation("action", f"at most {most} messages may follow the first, got more", "LIMIT_EXCEEDED")
            )
        left -= 1
        match request.WhichOneof("action"):
            case "finish_thinking":
                control.finish_thinking = True
            case "change_budget":
                budget = request.change_budget.thinking_budget
                if budget < -1:
                    raise BadRequest(
                        FieldViolation(
                            "change_budget.thinking_budget", f"must be at least -1, got {budget}", "INVALID_FIELD"
                        )
                    )
                control.thought_budget_tokens = budget
            case "cancel":
                control.cancel()
            case _:
                got = request.WhichOneof("action") or "an empty message"
                why = f"must be finish_thinking, change_budget or cancel, got {got}"
                raise BadRequest(FieldViolation("action", why, "INVALID_FIELD"))


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Serve the facts about the model."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.GetModelResponse:
        """Return the model card, its profile, prices and limits."""
        card = self._service.engine().card
        if request.model not in ("", card.name):
            raise ModelNotFound(f"this server serves {card.name} only", served_model=card.name)
        return model_to_proto(card, self._service.config, self._service.prices)
