"""One call from its arrival to its last event: let in, read, check, plan, generate, say. Its methods are `servicer`'s.

Cancelling a call, or its deadline, cancels the handler; every `aclosing` on the way down then closes the engine's
iterator, which aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock.admission.queue import Bid
from penstock.auth.isolation import class_of, own_prefixes
from penstock.engine.base import Engine
from penstock.engine.poison import accountable, network_of
from penstock.engine.supervisor import SupervisedEngine
from penstock.errors import (
    DeadlinePassed,
    EngineRefused,
    GenerationNotFound,
    Overloaded,
    PenstockError,
    ServiceFault,
)
from penstock.generation.candidate import Steering
from penstock.generation.coalescing import gathered
from penstock.generation.generation import generate
from penstock.generation.planner import carried_plan, plan_generation, with_budget, with_carried
from penstock.generation.usage import Meter
from penstock.generation.validation import validate
from penstock.server.convert import generation as wire
from penstock.server.convert.generation import Envelope
from penstock.server.rpc.charges import charged
from penstock.server.service_context import Arrival, House
from penstock.sessions.checkpoints import Carried, seal, unseal
from penstock.sessions.streams import LiveStream
from penstock.telemetry.hooks import CALL, GenerationWatch, Step
from penstock.types import Event, Finished, FinishReason, Plan

_LARGE_BYTES = 64 * 1024
_TOKEN_FRAME_BYTES = 1024
"""Of a ResumeRequest beside its token."""
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was planned and let in."""

    engine: Engine
    plan: Plan
    generation_id: str
    effective: pb.EffectiveSettings
    arrival: Arrival
    steering: Steering
    spec: pb.GenerationSpec
    states: Sequence[Mapping[str, Any]]
    watch: GenerationWatch
    meter: Meter


class Calls:
    """Runs calls in this house."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def live(
        self, spec: pb.GenerationSpec, arrival: Arrival, flush_seconds: float
    ) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Starts a generation that goes on without its client, and reads it until the deadline."""
        generation_id = uuid.uuid4().hex
        with self._numbered(generation_id):
            self._look(spec, arrival)
            stream = await self._house.live.open(generation_id, arrival.caller)
        source = self.events(spec, arrival, flush_seconds, wire.bare, live=stream)
        stream.task = asyncio.create_task(stream.feed(source))
        return self.in_time(stream.read(0), arrival, stream.meter)

    async def carried_on(self, request: pb.ResumeRequest, arrival: Arrival) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Goes on with what another server drained, or reads on where that already goes on here."""
        house = self._house
        if house.seal_key is None:
            raise GenerationNotFound("this server has no resume.key_file, so it cannot open another's tokens")
        carried = unseal(request.resume_token, house.seal_key, arrival.caller)
        if request.generation_id != carried.generation_id or request.last_sequence < carried.sequence:
            raise GenerationNotFound("the token belongs to another generation, or to another place in it")
        if request.last_sequence == carried.sequence:
            spec = pb.GenerationSpec.FromString(carried.spec)
            self._look(spec, arrival)
            try:
                live = await house.live.adopt(
                    request.generation_id, request.resume_token, request.last_sequence, arrival.caller
                )
            except Overloaded:  # no room to keep it: it goes on all the same, over this connection alone
                return self.events(spec, arrival, carried.flush_seconds, wire.bare, carried=carried)
            if live.task is None:
                source = self.events(spec, arrival, carried.flush_seconds, wire.bare, live=live, carried=carried)
                live.task = asyncio.create_task(live.feed(source))
                return self.in_time(live.read(carried.sequence), arrival, live.meter)
        live = await house.live.find(carried.generation_id, request.resume_token, arrival.caller)
        CALL.get().resumes(live.call)
        return self.in_time(live.read(request.last_sequence), arrival, live.meter)

    async def in_time(self, events: AsyncGenerator[M, None], arrival: Arrival, meter: Meter) -> AsyncGenerator[M, None]:
        """`events` until shortly before the deadline. Raises DeadlinePassed then, with what was made until then."""
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout(self._seconds_left(arrival)):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise deadline_passed(meter) from None
                yield event

    def _seconds_left(self, arrival: Arrival) -> float | None:
        left = arrival.seconds_left
        return None if left is None else left - arrival.status_margin_seconds(self._house.lag.seconds)

    @asynccontextmanager
    async def ends_in_time(self, arrival: Arrival, meter: Meter) -> AsyncIterator[None]:
        """As `in_time`, for a call that gives one reply."""
        try:
            async with asyncio.timeout(self._seconds_left(arrival)):
                yield
        except TimeoutError:
            raise deadline_passed(meter) from None

    def events(
        self,
        spec: pb.GenerationSpec,
        arrival: Arrival,
        flush_seconds: float,
        envelope: Envelope[M],
        *,
        live: LiveStream[pb.GenerationEvent] | None = None,
        steering: Steering | None = None,
        carried: Carried | None = None,
    ) -> AsyncGenerator[M, None]:
        """What the generation says, each event numbered and in an envelope of its own.

        Until shortly before the deadline, but for a resumable one, which goes on for who comes back.
        """
        meter = live.meter if live else Meter()
        events = self._events(
            spec, arrival, flush_seconds, envelope, live=live, steering=steering, carried=carried, meter=meter
        )
        return events if live else self.in_time(events, arrival, meter)

    async def _events(
        self,
        spec: pb.GenerationSpec,
        arrival: Arrival,
        flush_seconds: float,
        envelope: Envelope[M],
        *,
        live: LiveStream[pb.GenerationEvent] | None = None,
        steering: Steering | None = None,
        carried: Carried | None = None,
        meter: Meter,
    ) -> AsyncGenerator[M, None]:
        async with self.let_in(spec, arrival, live=live, steering=steering, carried=carried, meter=meter) as call:
            sequence = carried.sequence if carried else 1
            if carried is None:
                reply, said = envelope()
                said.MergeFrom(_started(call, live))
                yield reply
            lag = self._house.lag
            generation = gathered(self.generation(call), lambda: max(flush_seconds, lag.flush_seconds))
            async with aclosing(generation) as events:
                async for event in events:
                    sequence += 1
                    reply, said = envelope()
                    self._say(said, event, call, sequence, flush_seconds)
                    yield reply

    def _say(self, said: pb.GenerationEvent, event: Event, call: Call, sequence: int, flush_seconds: float) -> None:
        if call.watch.wants_content:
            call.watch.said(event)
        said.sequence = sequence
        if isinstance(event, Finished):
            token = self._sealed(call, event, sequence, flush_seconds)
            said.finished.MergeFrom(wire.finished_out(event, call.effective, token))
        else:
            output = call.plan.request.output
            wire.write_event(said, event, call.engine.tokenizer.token_bytes, with_ids=output.return_token_ids)

    def _look(self, spec: pb.GenerationSpec, arrival: Arrival) -> None:
        """Refuses what would be refused anyway, before work is done for it."""
        self._house.admission.look(class_of(wire.priority_of(spec), arrival.caller), arrival.caller.id)

    @asynccontextmanager
    async def let_in(
        self,
        spec: pb.GenerationSpec,
        arrival: Arrival,
        *,
        live: LiveStream[pb.GenerationEvent] | None = None,
        steering: Steering | None = None,
        carried: Carried | None = None,
        streams: bool = True,
        meter: Meter | None = None,
    ) -> AsyncIterator[Call]:
        """Reads, checks and plans the call, then waits for room. Nothing reaches the engine without a permit."""
        house = self._house
        engine = house.engine()
        chat = spec.WhichOneof("input") == "messages"
        headers = carried.trace_headers if carried else None
        known, meter = live or carried, meter or Meter()
        generation_id = known.generation_id if known else uuid.uuid4().hex
        async with AsyncExitStack() as stack:
            stack.enter_context(self._numbered(generation_id))
            watch = stack.enter_context(
                CALL.get().generation(model=engine.card.name, chat=chat, streams=streams, carried=headers)
            )
            self._look(spec, arrival)
            with watch.step(Step.PLAN):
                plan = await self.plan(spec, engine, arrival, carried)
                watch.planned(plan, arrival.seconds_left)
            if isinstance(engine, SupervisedEngine) and plan.accountable is not None:
                engine.poison.refuse_convicted(plan.accountable)
            with watch.step(Step.QUEUE):
                await stack.enter_async_context(charged(house, arrival.caller, plan, generation_id, meter))
                if plan.request.output.structured is not None:
                    await engine.check_constraint(plan.request.output.structured, arrival.caller.id)
                steering = steering or house.steering()
                began, room = time.monotonic(), house.admission.permit(_bid(plan, arrival))
                permit = await steering.unless_it_ends(lambda: stack.enter_async_context(room))
                # Without a permit it was cancelled in the queue: it ends before it asks for an engine.
                waited_seconds = permit.waited_seconds if permit else time.monotonic() - began
            if waited_seconds and plan.choice.auto_budget_tokens is not None:
                # The deadline is nearer than when AUTO was planned.
                plan = await self.plan(spec, engine, arrival)
                watch.planned(plan, arrival.seconds_left)
            effective = wire.effective_settings(plan)
            if arrival.deadline_monotonic is not None:
                margin_seconds = arrival.status_margin_seconds(house.lag.seconds)
                effective.status_margin.FromNanoseconds(round(margin_seconds * 1e9))
            watch.let_in(generation_id, waited_seconds)
            states = carried.candidates if carried else ()
            yield Call(engine, plan, generation_id, effective, arrival, steering, spec, states, watch, meter)
            for end in meter.finished.ends if meter.finished else ():
                if end.finish_reason is FinishReason.STOP:
                    house.answers.saw(end.usage.answer_tokens)

    @contextmanager
    def _numbered(self, generation_id: str) -> Iterator[None]:
        """Adds to errors what only this layer knows of them."""
        try:
            yield
        except Overloaded as error:
            admission = self._house.admission
            error.add(concurrent_calls=admission.running_calls + admission.queued_calls)
            raise
        except EngineRefused as error:
            error.add(generation_id=generation_id)
            raise
        except PenstockError:
            raise
        except Exception as error:
            raise ServiceFault("the generation failed", generation_id=generation_id) from error

    async def plan(
        self, spec: pb.GenerationSpec, engine: Engine, arrival: Arrival, carried: Carried | None = None
    ) -> Plan:
        """Checks and plans a call; a large one beside the event loop, which it would hold for a second."""
        if spec.ByteSize() < _LARGE_BYTES:
            return self._plan(spec, engine, arrival, carried)
        return await asyncio.to_thread(self._plan, spec, engine, arrival, carried)

    def _plan(self, spec: pb.GenerationSpec, engine: Engine, arrival: Arrival, carried: Carried | None) -> Plan:
        priority = class_of(wire.priority_of(spec), arrival.caller)
        request = replace(wire.request_of(spec), priority=priority, caller_id=arrival.caller.id)
        validate(request, engine.card, self._house.config.resolved_limits)
        if carried is not None:
            if carried.model != engine.card.name:
                raise GenerationNotFound("the token is of another model", served_model=engine.card.name)
            request = with_carried(request, carried.plan)
        if not self._house.config.auth.shared_prefix_cache:
            request = own_prefixes(request, arrival.caller)
        seconds_left = arrival.seconds_left
        # Only a deadline makes it matter how long answers are.
        likely_tokens = None if seconds_left is None else self._house.answers.likely_tokens()
        limits, default = arrival.caller.limits, None
        if limits.usd_ticks_per_day is not None:
            # Its worst case is reserved: the whole window's would leave the caller two or three calls at once.
            default = self._house.config.limits.default_max_output_tokens
        plan = plan_generation(request, engine, self._house.config, seconds_left, likely_tokens, default)
        caller = arrival.caller.id if arrival.caller.is_known else network_of(arrival.caller.id)
        plan = replace(plan, accountable=accountable(caller, plan.sampling, request.output.structured))
        return plan if carried is None else with_budget(plan, carried.plan)

    def generation(self, call: Call) -> AsyncGenerator[Event, None]:
        return generate(
            call.engine,
            call.plan,
            self._house.prices,
            call.generation_id,
            call.arrival.at_monotonic,
            call.steering,
            call.states,
            call.watch,
            call.meter,
        )

    def _sealed(self, call: Call, finished: Finished, sequence: int, flush_seconds: float) -> str:
        key = self._house.seal_key
        if key is None or not finished.states:
            return ""
        spec = call.spec.SerializeToString()
        plan, model = carried_plan(call.plan), call.engine.card.name
        states, headers = finished.states, CALL.get().headers
        carried = Carried(call.generation_id, model, spec, sequence, plan, states, headers, flush_seconds)
        token = seal(carried, key, call.arrival.caller)
        # What no message holds cannot move: an empty token says so.
        return token if len(token) + _TOKEN_FRAME_BYTES <= self._house.config.max_message_bytes else ""


def deadline_passed(meter: Meter) -> DeadlinePassed:
    usage = meter.usage
    return DeadlinePassed(
        "the deadline passed before the answer was complete",
        thought_tokens=usage.thought_tokens,
        answer_tokens=usage.answer_tokens,
    )


def _started(call: Call, live: LiveStream[pb.GenerationEvent] | None) -> pb.GenerationEvent:
    started = pb.GenerationStarted(
        generation_id=call.generation_id,
        model=call.engine.card.name,
        effective_settings=call.effective,
        resume_token=live.token if live else "",
    )
    return pb.GenerationEvent(sequence=1, started=started)


def _bid(plan: Plan, arrival: Arrival) -> Bid:
    output = plan.request.output
    tokens = len(plan.context.prompt_token_ids) + plan.budget.max_output_tokens * output.candidate_count
    return Bid(
        arrival.caller.id,
        plan.request.priority,
        output.candidate_count,
        tokens,
        arrival.deadline_monotonic,
        arrival.caller.limit_key,
    )
