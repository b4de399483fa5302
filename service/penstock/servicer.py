"""The story of one call, top to bottom: let in, read, check, plan, generate, say. Errors become statuses in `server`.

Cancelling a call, or its deadline, cancels the handler; every `aclosing` on the way down then closes the engine's
iterator, which aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import grpc
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, routing_pb2, routing_pb2_grpc

from penstock import wire
from penstock.admission import Admission, Permit
from penstock.candidate import Steering
from penstock.config import Config
from penstock.engine import Engine
from penstock.errors import BadRequest, ContextOverflow, FieldViolation, ModelNotFound, NotImplementedYet
from penstock.generation import generate
from penstock.live import LiveStream, LiveStreams
from penstock.planning import Plan, plan_generation
from penstock.types import Cost, Delta, Event, Finished, Usage
from penstock.usage import PriceList
from penstock.validation import validate
from penstock.wire_model import model_out

# grpc's own type is generic for type checkers only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class House:
    """What every servicer needs. `engine` raises EngineDown while there is none to give work to."""

    config: Config
    prices: PriceList
    admission: Admission
    live: LiveStreams
    engine: Callable[[], Engine]
    steerings: WeakSet[Steering] = field(default_factory=WeakSet)
    """Of all generations under way, so that draining can end them."""

    def steering(self) -> Steering:
        steering = Steering()
        self.steerings.add(steering)
        return steering


@dataclass(frozen=True, slots=True)
class _Call:
    """One call that was let in and planned."""

    engine: Engine
    plan: Plan
    generation_id: str
    effective: pb.EffectiveSettings
    arrived_monotonic: float
    steering: Steering


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, house: House) -> None:
        self._house = house

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        if request.flush_interval.ToNanoseconds():
            raise NotImplementedYet("gathering deltas is not there yet", field="flush_interval")
        with self._house.admission.permit() as permit:
            call = self._begin(permit, request.spec, context)
            if not request.resumable:
                async with aclosing(self._events(call)) as events:
                    async for event in events:
                        yield pb.StreamGenerateResponse(event=event)
                return
            stream = await self._open_live(call)
            async with aclosing(stream.read(0)) as events:
                async for event in events:
                    yield pb.StreamGenerateResponse(event=event)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        with self._house.admission.permit() as permit:
            call = self._begin(permit, request.spec, context)
            candidates = [_Gathered() for _ in range(call.plan.request.output.candidate_count)]
            async with aclosing(self._generation(call)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        candidates[event.candidate_index].add(event)
                    elif isinstance(event, Finished):
                        finished = event
        return self._reply(call, candidates, finished)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        with self._house.admission.permit() as permit:
            try:
                call = self._begin(permit, request.spec, context)
            except ContextOverflow as overflow:
                return _count_of_overflow(overflow)
        return _count(call.plan, call.effective, self._house.prices)

    async def Interact(
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: Context
    ) -> AsyncGenerator[pb.InteractResponse, None]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("action") != "start":
            raise BadRequest(FieldViolation("action", "the first message must be `start`", "MISSING_FIELD"))
        with self._house.admission.permit() as permit:
            call = self._begin(permit, first.start, context)
            listening = asyncio.create_task(_steer(call.steering, request_iterator))
            try:
                async with aclosing(self._events(call)) as events:
                    async for event in events:
                        if listening.done():
                            listening.result()  # A message that says nothing sensible ends the call.
                        yield pb.InteractResponse(event=event)
            finally:
                listening.cancel()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncGenerator[pb.ResumeResponse, None]:
        stream = await self._house.live.find(request.generation_id, request.resume_token)
        async with aclosing(stream.read(request.last_sequence)) as events:
            async for event in events:
                yield pb.ResumeResponse(event=event)

    async def _open_live(self, call: _Call) -> LiveStream:
        """Starts a generation that goes on without its client."""
        stream = await self._house.live.open(call.generation_id)
        stream.task = asyncio.create_task(self._feed_live(stream, call))
        return stream

    async def _feed_live(self, stream: LiveStream, call: _Call) -> None:
        # Its own permit: a stream without a client is work under way all the same, and drains like any other.
        with self._house.admission.permit():
            await stream.feed(self._events(call, stream.token))

    def _begin(self, _permit: Permit, spec: pb.GenerationSpec, context: Context) -> _Call:
        """Reads, checks and plans; the permit proves that admission was asked first."""
        arrived = time.monotonic()
        if spec.priority not in (pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_NORMAL):
            wire.check_priority(spec.priority)
            raise NotImplementedYet("priorities are not there yet", field="spec.priority")
        house = self._house
        engine = house.engine()
        request = wire.request_of(spec)
        validate(request, engine.card, house.config.limits)
        plan = plan_generation(request, engine, house.config, context.time_remaining())
        return _Call(engine, plan, uuid.uuid4().hex, wire.effective_settings(plan), arrived, house.steering())

    def _generation(self, call: _Call) -> AsyncGenerator[Event, None]:
        return generate(
            call.engine, call.plan, self._house.prices, call.generation_id, call.arrived_monotonic, call.steering
        )

    async def _events(self, call: _Call, resume_token: str = "") -> AsyncGenerator[pb.GenerationEvent, None]:
        started = pb.GenerationStarted(
            generation_id=call.generation_id,
            model=call.engine.card.name,
            effective_settings=call.effective,
            resume_token=resume_token,
        )
        yield pb.GenerationEvent(sequence=1, started=started)
        sequence = 1
        token_bytes = call.engine.tokenizer.token_bytes
        with_ids = call.plan.request.output.return_token_ids
        async with aclosing(self._generation(call)) as events:
            async for event in events:
                sequence += 1
                yield wire.event_out(event, sequence, call.effective, token_bytes, with_ids=with_ids)

    def _reply(self, call: _Call, candidates: list[_Gathered], finished: Finished) -> pb.GenerateResponse:
        token_bytes = call.engine.tokenizer.token_bytes
        with_ids = call.plan.request.output.return_token_ids
        replies = []
        for end, gathered in zip(finished.ends, candidates, strict=True):
            reply = pb.Candidate(
                result=wire.result_out(end),
                thought="".join(d.text for d in gathered.thought),
                answer="".join(d.text for d in gathered.answer),
                thought_logprobs=[p for d in gathered.thought for p in wire.logprobs_out(d.logprobs, token_bytes)],
                answer_logprobs=[p for d in gathered.answer for p in wire.logprobs_out(d.logprobs, token_bytes)],
            )
            if with_ids:
                reply.thought_token_ids.extend(i for d in gathered.thought for i in d.token_ids)
                reply.answer_token_ids.extend(i for d in gathered.answer for i in d.token_ids)
            replies.append(reply)
        return pb.GenerateResponse(
            generation_id=call.generation_id,
            model=call.engine.card.name,
            candidates=replies,
            usage=wire.usage_out(finished.usage),
            cost=wire.cost_out(finished.cost),
            effective_settings=call.effective,
            timing=wire.timing_out(finished.timing),
        )


class _Gathered:
    """Deltas of one candidate, for the unary reply: the very ones that a stream would have sent."""

    def __init__(self) -> None:
        self.thought: list[Delta] = []
        self.answer: list[Delta] = []

    def add(self, delta: Delta) -> None:
        (self.thought if delta.is_thought else self.answer).append(delta)


def _count(plan: Plan, effective: pb.EffectiveSettings, prices: PriceList) -> pb.CountTokensResponse:
    prompt_tokens = len(plan.context.prompt_token_ids)

    def ticks(output_tokens: int) -> Cost | None:
        return prices.cost(Usage(prompt_tokens=prompt_tokens, answer_tokens=output_tokens))

    least, most = ticks(1), ticks(plan.budget.max_output_tokens * plan.request.output.candidate_count)
    return pb.CountTokensResponse(
        prompt_tokens=prompt_tokens + plan.context.dropped_tokens,
        effective_prompt_tokens=prompt_tokens,
        window_tokens=plan.context.window_tokens,
        window_left_tokens=plan.window_left_tokens,
        dropped=wire.dropped(plan),
        cost_estimate=(
            pb.CostEstimate(min_usd_ticks=least.total_usd_ticks, max_usd_ticks=most.total_usd_ticks)
            if least is not None and most is not None
            else None
        ),
        effective_settings=effective,
    )


def _count_of_overflow(overflow: ContextOverflow) -> pb.CountTokensResponse:
    """Counting is how a caller finds out: the numbers, where generating would refuse."""
    numbers = overflow.metadata
    return pb.CountTokensResponse(
        prompt_tokens=int(numbers["prompt_tokens"]),
        effective_prompt_tokens=int(numbers["prompt_tokens"]),
        window_tokens=int(numbers["window_tokens"]),
        overflow_tokens=int(numbers["overflow_tokens"]),
    )


async def _steer(steering: Steering, requests: AsyncIterator[pb.InteractRequest]) -> None:
    """Turns what the caller says into what the candidates read at their next engine step."""
    async for request in requests:
        match request.WhichOneof("action"):
            case "finish_thinking":
                steering.finish_thinking = True
            case "change_budget":
                budget = request.change_budget.thinking_budget
                if budget < -1:
                    raise BadRequest(
                        FieldViolation("change_budget.thinking_budget", "must be at least -1", "INVALID_FIELD")
                    )
                steering.thought_budget_tokens = budget
            case "cancel":
                steering.cancelled = True
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


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    async def GetExpertLoad(
        self, request: routing_pb2.GetExpertLoadRequest, context: Context
    ) -> routing_pb2.GetExpertLoadResponse:
        raise NotImplementedYet("expert load is not observed yet", rpc="GetExpertLoad")

    def WatchExpertLoad(
        self, request: routing_pb2.WatchExpertLoadRequest, context: Context
    ) -> AsyncGenerator[routing_pb2.WatchExpertLoadResponse, None]:
        raise NotImplementedYet("expert load is not observed yet", rpc="WatchExpertLoad")
