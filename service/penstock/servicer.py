"""The story of one call, top to bottom: let in, read, check, plan, generate, say. Errors become statuses in `server`.

Cancelling a call, or its deadline, cancels the handler; every `aclosing` on the way down then closes the engine's
iterator, which aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import grpc
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, routing_pb2, routing_pb2_grpc

from penstock import wire
from penstock.admission import Admission, Bid, Permit
from penstock.candidate import Steering
from penstock.config import Config
from penstock.engine import Engine
from penstock.errors import (
    BadRequest,
    ContextOverflow,
    FieldViolation,
    GenerationNotFound,
    ModelNotFound,
    NotImplementedYet,
)
from penstock.generation import generate
from penstock.live import LiveStream, LiveStreams
from penstock.observe import CALL, GenerationWatch, Step
from penstock.planning import Plan, carried_plan, plan_generation, with_budget, with_carried
from penstock.replies import count_of, count_of_overflow, reply_of
from penstock.sealed import Carried, is_sealed, seal, unseal
from penstock.types import Event, Finished
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
    seal_key: bytes | None = None
    """Seals drained generations for other servers; None where there is no key to share."""
    steerings: WeakSet[Steering] = field(default_factory=WeakSet)
    """Of all generations under way, so that draining can end them."""

    def steering(self) -> Steering:
        steering = Steering()
        self.steerings.add(steering)
        return steering


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What is known of a call before it is read. Seconds of time.monotonic()."""

    caller: str
    at_monotonic: float
    deadline_monotonic: float | None

    @classmethod
    def of(cls, context: Context) -> _Arrival:
        now, left = time.monotonic(), context.time_remaining()
        return cls(str(context.peer()), now, None if left is None else now + left)

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline_monotonic is None else self.deadline_monotonic - time.monotonic()


@dataclass(frozen=True, slots=True)
class _Call:
    """One call that was planned and let in."""

    engine: Engine
    plan: Plan
    permit: Permit
    generation_id: str
    effective: pb.EffectiveSettings
    arrival: _Arrival
    steering: Steering
    spec: pb.GenerationSpec
    states: Sequence[Mapping[str, Any]]
    watch: GenerationWatch


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, house: House) -> None:
        self._house = house

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        if request.flush_interval.ToNanoseconds():
            raise NotImplementedYet("gathering deltas is not there yet", field="flush_interval")
        arrival = _Arrival.of(context)
        source = await self._live(request.spec, arrival) if request.resumable else self._events(request.spec, arrival)
        async with aclosing(source) as events:
            async for event in events:
                yield pb.StreamGenerateResponse(event=event)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        arrival = _Arrival.of(context)
        async with (
            self._let_in(request.spec, arrival, streams=False) as call,
            aclosing(self._generation(call)) as events,
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
            plan = self._plan(request.spec, engine, _Arrival.of(context))
        except ContextOverflow as overflow:
            return count_of_overflow(overflow)
        return count_of(plan, self._house.prices)

    async def Interact(
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: Context
    ) -> AsyncGenerator[pb.InteractResponse, None]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("action") != "start":
            raise BadRequest(FieldViolation("action", "the first message must be `start`", "MISSING_FIELD"))
        steering = self._house.steering()
        listening = asyncio.create_task(_steer(steering, request_iterator))
        try:
            async with aclosing(self._events(first.start, _Arrival.of(context), steering=steering)) as events:
                async for event in events:
                    if listening.done():
                        listening.result()  # A message that says nothing sensible ends the call.
                    yield pb.InteractResponse(event=event)
        finally:
            listening.cancel()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncGenerator[pb.ResumeResponse, None]:
        if is_sealed(request.resume_token):
            source = self._carried_on(request, _Arrival.of(context))
        else:
            stream = await self._house.live.find(request.generation_id, request.resume_token)
            CALL.get().resumes(stream.call)
            source = stream.read(request.last_sequence)
        async with aclosing(source) as events:
            async for event in events:
                yield pb.ResumeResponse(event=event)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        await self._house.live.cancel(request.generation_id, request.resume_token)
        return pb.CancelResponse()

    async def _carried_on(
        self, request: pb.ResumeRequest, arrival: _Arrival
    ) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Goes on with what another server drained."""
        if self._house.seal_key is None:
            raise GenerationNotFound("this server has no resume.key_file, so it cannot open another's tokens")
        carried = unseal(request.resume_token, self._house.seal_key)
        if request.generation_id != carried.generation_id or request.last_sequence != carried.sequence:
            raise GenerationNotFound("the token belongs to another generation, or to another place in it")
        spec = pb.GenerationSpec.FromString(carried.spec)
        async with (
            self._let_in(spec, arrival, carried=carried) as call,
            aclosing(self._said(call, carried.sequence)) as events,
        ):
            async for event in events:
                yield event

    async def _live(self, spec: pb.GenerationSpec, arrival: _Arrival) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Starts a generation that goes on without its client, and reads it."""
        self._house.admission.look(wire.priority_of(spec), arrival.caller)
        stream = await self._house.live.open(uuid.uuid4().hex)
        stream.task = asyncio.create_task(stream.feed(self._events(spec, arrival, live=stream)))
        return stream.read(0)

    @asynccontextmanager
    async def _let_in(
        self,
        spec: pb.GenerationSpec,
        arrival: _Arrival,
        *,
        live: LiveStream | None = None,
        steering: Steering | None = None,
        carried: Carried | None = None,
        streams: bool = True,
    ) -> AsyncIterator[_Call]:
        """Reads, checks and plans the call, then waits for room. Nothing reaches the engine without a permit."""
        house = self._house
        engine = house.engine()
        chat = spec.WhichOneof("input") == "messages"
        headers = carried.trace_headers if carried else None
        async with AsyncExitStack() as stack:
            watch = stack.enter_context(
                CALL.get().generation(model=engine.card.name, chat=chat, streams=streams, carried=headers)
            )
            house.admission.look(wire.priority_of(spec), arrival.caller)
            with watch.step(Step.PLAN):
                plan = self._plan(spec, engine, arrival, carried)
                watch.planned(plan, arrival.seconds_left)
            with watch.step(Step.QUEUE):
                permit = await stack.enter_async_context(house.admission.permit(_bid(plan, arrival)))
            if permit.waited_seconds and plan.choice.auto_budget_tokens is not None:
                # The deadline is nearer than when AUTO was planned.
                plan = self._plan(spec, engine, arrival)
                watch.planned(plan, arrival.seconds_left)
            effective = wire.effective_settings(plan)
            known = live or carried
            generation_id = known.generation_id if known else uuid.uuid4().hex
            watch.let_in(generation_id, permit.waited_seconds)
            states = carried.candidates if carried else ()
            steering = steering or house.steering()
            yield _Call(engine, plan, permit, generation_id, effective, arrival, steering, spec, states, watch)

    def _plan(self, spec: pb.GenerationSpec, engine: Engine, arrival: _Arrival, carried: Carried | None = None) -> Plan:
        request = wire.request_of(spec)
        validate(request, engine.card, self._house.config.limits)
        if carried is not None:
            if carried.model != engine.card.name:
                raise GenerationNotFound("the token is of another model", served_model=engine.card.name)
            request = with_carried(request, carried.plan)
        plan = plan_generation(request, engine, self._house.config, arrival.seconds_left)
        return plan if carried is None else with_budget(plan, carried.plan)

    def _generation(self, call: _Call) -> AsyncGenerator[Event, None]:
        return generate(
            call.engine,
            call.plan,
            self._house.prices,
            call.generation_id,
            call.arrival.at_monotonic,
            call.steering,
            call.states,
            call.watch,
        )

    async def _events(
        self,
        spec: pb.GenerationSpec,
        arrival: _Arrival,
        *,
        live: LiveStream | None = None,
        steering: Steering | None = None,
    ) -> AsyncGenerator[pb.GenerationEvent, None]:
        async with self._let_in(spec, arrival, live=live, steering=steering) as call:
            started = pb.GenerationStarted(
                generation_id=call.generation_id,
                model=call.engine.card.name,
                effective_settings=call.effective,
                resume_token=live.token if live else "",
            )
            yield pb.GenerationEvent(sequence=1, started=started)
            async with aclosing(self._said(call, 1)) as events:
                async for event in events:
                    yield event

    async def _said(self, call: _Call, sequence: int) -> AsyncGenerator[pb.GenerationEvent, None]:
        """What the generation says, numbered on from `sequence`."""
        token_bytes = call.engine.tokenizer.token_bytes
        with_ids = call.plan.request.output.return_token_ids
        async with aclosing(self._generation(call)) as events:
            async for event in events:
                sequence += 1
                if call.watch.wants_content:
                    call.watch.said(event)
                if isinstance(event, Finished):
                    token = self._sealed(call, event, sequence)
                    yield wire.finished_event(event, call.effective, sequence, token)
                else:
                    yield wire.event_out(event, sequence, token_bytes, with_ids=with_ids)

    def _sealed(self, call: _Call, finished: Finished, sequence: int) -> str:
        key = self._house.seal_key
        if key is None or not finished.states:
            return ""
        spec = call.spec.SerializeToString()
        plan, model = carried_plan(call.plan), call.engine.card.name
        headers = CALL.get().headers
        return seal(Carried(call.generation_id, model, spec, sequence, plan, finished.states, headers), key)


def _bid(plan: Plan, arrival: _Arrival) -> Bid:
    output = plan.request.output
    tokens = len(plan.context.prompt_token_ids) + plan.budget.max_output_tokens * output.candidate_count
    return Bid(arrival.caller, plan.request.priority, output.candidate_count, tokens, arrival.deadline_monotonic)


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
