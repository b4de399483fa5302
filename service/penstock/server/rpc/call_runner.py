"""Run a call from its arrival to its last event: admit, validate, plan, generate and send. Used by the servicers.

Cancellation of a call, or its deadline, cancels the handler; every `aclosing` on the way then closes the engine's
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

from penstock.admission.queue import AdmissionRequest
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
from penstock.generation.candidate import GenerationControl
from penstock.generation.coalescing import coalesce_deltas
from penstock.generation.generation import generate
from penstock.generation.planner import checkpoint_of_plan, plan_generation, with_budget, with_checkpoint_mode
from penstock.generation.usage import UsageMeter
from penstock.generation.validation import validate
from penstock.server.convert import generation as convert
from penstock.server.convert.generation import Envelope
from penstock.server.rpc.charges import reserve_quota
from penstock.server.service_context import RequestContext, ServiceContext
from penstock.sessions.checkpoints import Checkpoint, sign_checkpoint, verify_checkpoint
from penstock.sessions.streams import ResumableStream
from penstock.telemetry.hooks import CURRENT_CALL, GenerationHooks, Step
from penstock.types import Event, Finished, FinishReason, GenerationPlan

_LARGE_BYTES = 64 * 1024
_TOKEN_FRAME_BYTES = 1024
"""Bytes of a ResumeRequest besides its token."""
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """Hold one call that was planned and admitted."""

    engine: Engine
    plan: GenerationPlan
    generation_id: str
    effective: pb.EffectiveSettings
    request_context: RequestContext
    control: GenerationControl
    spec: pb.GenerationSpec
    states: Sequence[Mapping[str, Any]]
    hooks: GenerationHooks
    meter: UsageMeter


class CallRunner:
    """Run the generations of this service."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service

    async def start_resumable(
        self, spec: pb.GenerationSpec, request_context: RequestContext, flush_seconds: float
    ) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Start a generation that continues without its client, and read it until the deadline."""
        generation_id = uuid.uuid4().hex
        with self._numbered(generation_id):
            self._check_capacity(spec, request_context)
            stream = await self._service.streams.create(generation_id, request_context.caller)
        source = self.events(spec, request_context, flush_seconds, convert.bare, stream=stream)
        stream.task = asyncio.create_task(stream.feed(source))
        return self.in_time(stream.read(0), request_context, stream.meter)

    async def resume_from_checkpoint(
        self, request: pb.ResumeRequest, request_context: RequestContext
    ) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Continue a generation that another server drained, or read it where it already continues on this server."""
        service = self._service
        if service.signing_key is None:
            raise GenerationNotFound("this server has no resume.key_file and cannot verify another server's tokens")
        checkpoint = verify_checkpoint(request.resume_token, service.signing_key, request_context.caller)
        if request.generation_id != checkpoint.generation_id or request.last_sequence < checkpoint.sequence:
            raise GenerationNotFound(
                "resume_token does not match generation_id and last_sequence; send those of the drained call"
            )
        if request.last_sequence == checkpoint.sequence:
            spec = pb.GenerationSpec.FromString(checkpoint.spec)
            self._check_capacity(spec, request_context)
            try:
                stream = await service.streams.attach(
                    request.generation_id, request.resume_token, request.last_sequence, request_context.caller
                )
            except Overloaded:  # No room to keep it: it continues over this connection only.
                return self.events(spec, request_context, checkpoint.flush_seconds, convert.bare, checkpoint=checkpoint)
            if stream.task is None:
                source = self.events(
                    spec, request_context, checkpoint.flush_seconds, convert.bare, stream=stream, checkpoint=checkpoint
                )
                stream.task = asyncio.create_task(stream.feed(source))
                return self.in_time(stream.read(checkpoint.sequence), request_context, stream.meter)
        stream = await service.streams.get(checkpoint.generation_id, request.resume_token, request_context.caller)
        CURRENT_CALL.get().resumes(stream.call)
        return self.in_time(stream.read(request.last_sequence), request_context, stream.meter)

    async def in_time(
        self, events: AsyncGenerator[M, None], request_context: RequestContext, meter: UsageMeter
    ) -> AsyncGenerator[M, None]:
        """Yield `events` until shortly before the deadline, then raise DeadlinePassed with the tokens so far."""
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout(self._seconds_left(request_context)):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise deadline_passed(meter) from None
                yield event

    def _seconds_left(self, request_context: RequestContext) -> float | None:
        left = request_context.seconds_left
        return None if left is None else left - request_context.status_margin_seconds(self._service.lag.seconds)

    @asynccontextmanager
    async def ends_in_time(self, request_context: RequestContext, meter: UsageMeter) -> AsyncIterator[None]:
        """Limit the time of a call that gives one reply; see `in_time`."""
        try:
            async with asyncio.timeout(self._seconds_left(request_context)):
                yield
        except TimeoutError:
            raise deadline_passed(meter) from None

    def events(
        self,
        spec: pb.GenerationSpec,
        request_context: RequestContext,
        flush_seconds: float,
        envelope: Envelope[M],
        *,
        stream: ResumableStream[pb.GenerationEvent] | None = None,
        control: GenerationControl | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> AsyncGenerator[M, None]:
        """Yield the events of a generation, numbered, each in an envelope of its own.

        They end shortly before the deadline, except those of a resumable stream, which continues for a client that
        returns.
        """
        meter = stream.meter if stream else UsageMeter()
        events = self._events(
            spec,
            request_context,
            flush_seconds,
            envelope,
            stream=stream,
            control=control,
            checkpoint=checkpoint,
            meter=meter,
        )
        return events if stream else self.in_time(events, request_context, meter)

    async def _events(
        self,
        spec: pb.GenerationSpec,
        request_context: RequestContext,
        flush_seconds: float,
        envelope: Envelope[M],
        *,
        stream: ResumableStream[pb.GenerationEvent] | None = None,
        control: GenerationControl | None = None,
        checkpoint: Checkpoint | None = None,
        meter: UsageMeter,
    ) -> AsyncGenerator[M, None]:
        async with self.admit(
            spec, request_context, stream=stream, control=control, checkpoint=checkpoint, meter=meter
        ) as call:
            sequence = checkpoint.sequence if checkpoint else 1
            if checkpoint is None:
                reply, message = envelope()
                message.MergeFrom(_started(call, stream))
                yield reply
            lag = self._service.lag
            generation = coalesce_deltas(self.generation(call), lambda: max(flush_seconds, lag.flush_seconds))
            async with aclosing(generation) as events:
                async for event in events:
                    sequence += 1
                    reply, message = envelope()
                    self._fill_event(message, event, call, sequence, flush_seconds)
                    yield reply

    def _fill_event(
        self, message: pb.GenerationEvent, event: Event, call: GenerationCall, sequence: int, flush_seconds: float
    ) -> None:
        if call.hooks.wants_content:
            call.hooks.on_event(event)
        message.sequence = sequence
        if isinstance(event, Finished):
            token = self._checkpoint_token(call, event, sequence, flush_seconds)
            message.finished.MergeFrom(convert.finished_to_proto(event, call.effective, token))
        else:
            output = call.plan.request.output
            convert.write_event(message, event, call.engine.tokenizer.token_bytes, with_ids=output.return_token_ids)

    def _check_capacity(self, spec: pb.GenerationSpec, request_context: RequestContext) -> None:
        """Refuse a call that would be refused anyway, before any work is done for it."""
        self._service.admission.check_capacity(
            class_of(convert.priority_from_proto(spec), request_context.caller), request_context.caller.id
        )

    @asynccontextmanager
    async def admit(
        self,
        spec: pb.GenerationSpec,
        request_context: RequestContext,
        *,
        stream: ResumableStream[pb.GenerationEvent] | None = None,
        control: GenerationControl | None = None,
        checkpoint: Checkpoint | None = None,
        streams: bool = True,
        meter: UsageMeter | None = None,
    ) -> AsyncIterator[GenerationCall]:
        """Validate and plan the call, then wait for capacity. Nothing reaches the engine without a permit."""
        service = self._service
        engine = service.engine()
        chat = spec.WhichOneof("input") == "messages"
        headers = checkpoint.trace_headers if checkpoint else None
        known, meter = stream or checkpoint, meter or UsageMeter()
        generation_id = known.generation_id if known else uuid.uuid4().hex
        async with AsyncExitStack() as stack:
            stack.enter_context(self._numbered(generation_id))
            hooks = stack.enter_context(
                CURRENT_CALL.get().generation(
                    model=engine.card.name, chat=chat, streams=streams, parent_headers=headers
                )
            )
            self._check_capacity(spec, request_context)
            with hooks.step(Step.PLAN):
                plan = await self.plan(spec, engine, request_context, checkpoint)
                hooks.planned(plan, request_context.seconds_left)
            if isinstance(engine, SupervisedEngine) and plan.accountable is not None:
                engine.poison.refuse_convicted(plan.accountable)
            with hooks.step(Step.QUEUE):
                await stack.enter_async_context(
                    reserve_quota(service, request_context.caller, plan, generation_id, meter)
                )
                if plan.request.output.structured is not None:
                    await engine.check_constraint(plan.request.output.structured, request_context.caller.id)
                control = control or service.control()
                began, room = time.monotonic(), service.admission.permit(_admission_request(plan, request_context))
                permit = await control.unless_it_ends(lambda: stack.enter_async_context(room))
                # Without a permit it was cancelled in the queue and ends before it asks for an engine.
                waited_seconds = permit.waited_seconds if permit else time.monotonic() - began
            if waited_seconds and plan.choice.auto_budget_tokens is not None:
                # The deadline is nearer than when the AUTO budget was planned.
                plan = await self.plan(spec, engine, request_context)
                hooks.planned(plan, request_context.seconds_left)
            effective = convert.effective_settings(plan)
            if request_context.deadline_monotonic is not None:
                margin_seconds = request_context.status_margin_seconds(service.lag.seconds)
                effective.status_margin.FromNanoseconds(round(margin_seconds * 1e9))
            hooks.admitted(generation_id, waited_seconds)
            states = checkpoint.candidates if checkpoint else ()
            yield GenerationCall(
                engine, plan, generation_id, effective, request_context, control, spec, states, hooks, meter
            )
            for end in meter.finished.ends if meter.finished else ():
                if end.finish_reason is FinishReason.STOP:
                    service.answers.saw(end.usage.answer_tokens)

    @contextmanager
    def _numbered(self, generation_id: str) -> Iterator[None]:
        """Add the metadata to errors that only this layer knows."""
        try:
            yield
        except Overloaded as error:
            admission = self._service.admission
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
        self,
        spec: pb.GenerationSpec,
        engine: Engine,
        request_context: RequestContext,
        checkpoint: Checkpoint | None = None,
    ) -> GenerationPlan:
        """Validate and plan a call; a large one in a thread, because it may block the event loop for a second."""
        if spec.ByteSize() < _LARGE_BYTES:
            return self._plan(spec, engine, request_context, checkpoint)
        return await asyncio.to_thread(self._plan, spec, engine, request_context, checkpoint)

    def _plan(
        self, spec: pb.GenerationSpec, engine: Engine, request_context: RequestContext, checkpoint: Checkpoint | None
    ) -> GenerationPlan:
        priority = class_of(convert.priority_from_proto(spec), request_context.caller)
        request = replace(convert.request_from_proto(spec), priority=priority, caller_id=request_context.caller.id)
        validate(request, engine.card, self._service.config.resolved_limits)
        if checkpoint is not None:
            if checkpoint.model != engine.card.name:
                raise GenerationNotFound(
                    f"resume_token is of another model, this server serves {engine.card.name}",
                    served_model=engine.card.name,
                )
            request = with_checkpoint_mode(request, checkpoint.plan)
        if not self._service.config.auth.shared_prefix_cache:
            request = own_prefixes(request, request_context.caller)
        seconds_left = request_context.seconds_left
        # Only a deadline makes it matter how long answers are.
        likely_tokens = None if seconds_left is None else self._service.answers.likely_tokens()
        limits, default = request_context.caller.limits, None
        if limits.usd_ticks_per_day is not None:
            # The worst-case cost is reserved: that of the whole window would allow two or three concurrent calls only.
            default = self._service.config.limits.default_max_output_tokens
        plan = plan_generation(request, engine, self._service.config, seconds_left, likely_tokens, default)
        caller = request_context.caller.id if request_context.caller.is_known else network_of(request_context.caller.id)
        plan = replace(plan, accountable=accountable(caller, plan.sampling, request.output.structured))
        return plan if checkpoint is None else with_budget(plan, checkpoint.plan)

    def generation(self, call: GenerationCall) -> AsyncGenerator[Event, None]:
        """Return the events of an admitted call. To close the iterator aborts the engine's work."""
        return generate(
            call.engine,
            call.plan,
            self._service.prices,
            call.generation_id,
            call.request_context.at_monotonic,
            call.control,
            call.states,
            call.hooks,
            call.meter,
        )

    def _checkpoint_token(self, call: GenerationCall, finished: Finished, sequence: int, flush_seconds: float) -> str:
        key = self._service.signing_key
        if key is None or not finished.states:
            return ""
        spec = call.spec.SerializeToString()
        plan, model = checkpoint_of_plan(call.plan), call.engine.card.name
        states, headers = finished.states, CURRENT_CALL.get().headers
        checkpoint = Checkpoint(call.generation_id, model, spec, sequence, plan, states, headers, flush_seconds)
        token = sign_checkpoint(checkpoint, key, call.request_context.caller)
        # A token that exceeds the message size cannot be sent; an empty one tells that the generation cannot move.
        return token if len(token) + _TOKEN_FRAME_BYTES <= self._service.config.max_message_bytes else ""


def deadline_passed(meter: UsageMeter) -> DeadlinePassed:
    """Return the error of a call whose deadline passed, with the tokens generated until then."""
    usage = meter.usage
    return DeadlinePassed(
        "the deadline passed before the answer was complete",
        thought_tokens=usage.thought_tokens,
        answer_tokens=usage.answer_tokens,
    )


def _started(call: GenerationCall, stream: ResumableStream[pb.GenerationEvent] | None) -> pb.GenerationEvent:
    started = pb.GenerationStarted(
        generation_id=call.generation_id,
        model=call.engine.card.name,
        effective_settings=call.effective,
        resume_token=stream.token if stream else "",
    )
    return pb.GenerationEvent(sequence=1, started=started)


def _admission_request(plan: GenerationPlan, request_context: RequestContext) -> AdmissionRequest:
    output = plan.request.output
    tokens = len(plan.context.prompt_token_ids) + plan.budget.max_output_tokens * output.candidate_count
    return AdmissionRequest(
        request_context.caller.id,
        plan.request.priority,
        output.candidate_count,
        tokens,
        request_context.deadline_monotonic,
        request_context.caller.limit_key,
    )
