"""Run calls: each is admitted, generated and told as one stream of events, which every RPC wraps in its own messages.

Cancelling a call, or its deadline, cancels the handler; every `aclosing` on the way down then closes the engine's
iterator, which aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock.errors import DeadlinePassed, GenerationNotFound, Overloaded
from penstock.generation.coalescing import coalesce_deltas
from penstock.generation.control import GenerationRun
from penstock.generation.generation import generate
from penstock.generation.planner import checkpoint_of_plan
from penstock.generation.usage import UsageMeter
from penstock.server.convert import generation as convert
from penstock.server.request_context import RequestContext
from penstock.server.rpc.call_admission import CallAdmission
from penstock.server.rpc.generation_call import AdmittedCall, GenerationCall
from penstock.server.service_context import ServiceContext
from penstock.sessions.checkpoints import Checkpoint, is_checkpoint, sign_checkpoint, verify_checkpoint
from penstock.sessions.streams import ResumableStream, StreamOrigin
from penstock.types import Event, Finished

_TOKEN_FRAME_BYTES = 1024
"""Bytes of a ResumeRequest besides its token."""
Events = AsyncGenerator[pb.GenerationEvent, None]
M = TypeVar("M")


class CallRunner:
    """Runs generations for the servicer."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self.admission = CallAdmission(service)

    def new_call(self, spec: pb.GenerationSpec, context: RequestContext, flush_seconds: float = 0.0) -> GenerationCall:
        """Return a call of its own id; nothing is checked yet."""
        return GenerationCall(
            spec, context, uuid.uuid4().hex, self._service.control(), UsageMeter(), flush_seconds=flush_seconds
        )

    def events(self, call: GenerationCall) -> Events:
        """Run the call and yield its events, numbered, until shortly before the deadline.

        A resumable one goes on after the deadline, for a client that comes back.
        """
        events = self._events(call)
        return events if call.resume_token else self._until_deadline(events, call.context, call.meter)

    def generate(self, admitted: AdmittedCall) -> AsyncGenerator[Event, None]:
        """Yield the events of an admitted call; to close the iterator aborts the engine's work."""
        call = admitted.call
        states = call.checkpoint.candidates if call.checkpoint else ()
        run = GenerationRun(
            call.generation_id,
            call.context.arrived_monotonic,
            call.control,
            states,
            admitted.hooks,
            call.meter,
            self._service.conditions,
            admitted.begun,
        )
        return generate(admitted.engine, admitted.plan, self._service.prices, run)

    async def start_resumable(self, call: GenerationCall) -> Events:
        """Start a generation that goes on without its client; return its events until the deadline."""
        with self.admission.errors_of(call.generation_id):
            self.admission.check_capacity(call.spec, call.context.caller)
            origin = StreamOrigin(call.generation_id, call.context.caller.owner, hooks=call.context.hooks)
            stream = await self._service.streams.create(origin)
        return self._feed(stream, call, last_sequence=0)

    async def resume(self, request: pb.ResumeRequest, context: RequestContext) -> Events:
        """Return the events after `last_sequence` of a stream that is kept here, or that another server drained.

        Raise GenerationNotFound, BadRequest or Overloaded.
        """
        if is_checkpoint(request.resume_token):
            return await self._resume_from_checkpoint(request, context)
        return await self._read(request.generation_id, request, context)

    async def _read(self, generation_id: str, request: pb.ResumeRequest, context: RequestContext) -> Events:
        stream = await self._service.streams.get(generation_id, request.resume_token, context.caller)
        context.hooks.resumes(stream.hooks)
        return self._until_deadline(stream.read(request.last_sequence), context, stream.meter)

    async def _resume_from_checkpoint(self, request: pb.ResumeRequest, context: RequestContext) -> Events:
        """Continue what another server drained, or read on where that continues here already."""
        service = self._service
        if service.signing_key is None:
            raise GenerationNotFound("this server has no resume.key_file and cannot verify another server's tokens")
        checkpoint = verify_checkpoint(request.resume_token, service.signing_key, context.caller)
        if request.generation_id != checkpoint.generation_id or request.last_sequence < checkpoint.sequence:
            raise GenerationNotFound(
                "resume_token does not match generation_id and last_sequence; send those of the drained call"
            )
        if request.last_sequence == checkpoint.sequence:
            call = self._call_from_checkpoint(checkpoint, context)
            self.admission.check_capacity(call.spec, context.caller)
            origin = StreamOrigin(
                call.generation_id, context.caller.owner, request.resume_token, checkpoint.sequence, context.hooks
            )
            try:
                stream = await service.streams.attach(origin)
            except Overloaded:  # No room to keep it: it continues over this connection only.
                return self.events(replace(call, has_capacity=True))
            if stream.task is None:
                return self._feed(stream, call, last_sequence=checkpoint.sequence)
        return await self._read(checkpoint.generation_id, request, context)

    def _call_from_checkpoint(self, checkpoint: Checkpoint, context: RequestContext) -> GenerationCall:
        spec = pb.GenerationSpec.FromString(checkpoint.spec)
        call = self.new_call(spec, context, checkpoint.flush_seconds)
        return replace(call, generation_id=checkpoint.generation_id, checkpoint=checkpoint)

    def _feed(self, stream: ResumableStream[pb.GenerationEvent], call: GenerationCall, last_sequence: int) -> Events:
        """Have a task of its own write the call's events into `stream`; return what this client reads of it."""
        resumable = replace(call, meter=stream.meter, resume_token=stream.token, has_capacity=True)
        stream.control = call.control
        stream.task = asyncio.create_task(stream.feed(self.events(resumable)))
        return self._until_deadline(stream.read(last_sequence), call.context, stream.meter)

    async def _events(self, call: GenerationCall) -> Events:
        sequence = call.checkpoint.sequence if call.checkpoint else 1
        async with self.admission.admit(call) as admitted:
            if call.checkpoint is None:
                yield _started(admitted)
            lag = self._service.lag
            deltas = coalesce_deltas(self.generate(admitted), lambda: max(call.flush_seconds, lag.flush_seconds))
            async with aclosing(deltas) as events:
                async for event in events:
                    sequence += 1
                    yield self._to_proto(admitted, event, sequence)

    def _to_proto(self, admitted: AdmittedCall, event: Event, sequence: int) -> pb.GenerationEvent:
        if admitted.hooks.wants_content:
            admitted.hooks.on_event(event)
        message = pb.GenerationEvent(sequence=sequence)
        if isinstance(event, Finished):
            token = self._checkpoint_token(admitted, event, sequence)
            message.finished.MergeFrom(convert.finished_to_proto(event, admitted.effective, token))
        else:
            output = admitted.plan.request.output
            token_bytes = admitted.engine.tokenizer.token_bytes
            convert.write_event(message, event, token_bytes, with_ids=output.return_token_ids)
        return message

    def _until_deadline(
        self, events: AsyncGenerator[M, None], context: RequestContext, meter: UsageMeter
    ) -> AsyncGenerator[M, None]:
        """Return `events` until shortly before the deadline: DeadlinePassed then, with the tokens so far.

        Without a deadline no event pays for a timeout.
        """
        return events if context.deadline_monotonic is None else self._before_deadline(events, context, meter)

    async def _before_deadline(
        self, events: AsyncGenerator[M, None], context: RequestContext, meter: UsageMeter
    ) -> AsyncGenerator[M, None]:
        async with aclosing(events):
            while True:
                try:
                    async with asyncio.timeout(self._seconds_left(context)):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise _deadline_passed(meter) from None
                yield event

    @asynccontextmanager
    async def ends_in_time(self, context: RequestContext, meter: UsageMeter) -> AsyncIterator[None]:
        """Raise DeadlinePassed shortly before the deadline, so that the status arrives."""
        try:
            async with asyncio.timeout(self._seconds_left(context)):
                yield
        except TimeoutError:
            raise _deadline_passed(meter) from None

    def _seconds_left(self, context: RequestContext) -> float | None:
        left = context.seconds_left
        return None if left is None else left - context.status_margin_seconds(self._service.lag.seconds)

    def _checkpoint_token(self, admitted: AdmittedCall, finished: Finished, sequence: int) -> str:
        """Return the token that another server continues from; empty where there is no key, or nothing to continue."""
        key, call = self._service.signing_key, admitted.call
        if key is None or not finished.states:
            return ""
        checkpoint = Checkpoint(
            call.generation_id,
            admitted.engine.card.name,
            call.spec.SerializeToString(),
            sequence,
            checkpoint_of_plan(admitted.plan),
            finished.states,
            call.context.hooks.headers,
            call.flush_seconds,
        )
        token = sign_checkpoint(checkpoint, key, call.context.caller)
        # A token that exceeds the message size cannot be sent; an empty one tells that the generation cannot move.
        return token if len(token) + _TOKEN_FRAME_BYTES <= self._service.config.max_message_bytes else ""


def _deadline_passed(meter: UsageMeter) -> DeadlinePassed:
    usage = meter.usage
    return DeadlinePassed(
        "the deadline passed before the answer was complete",
        thought_tokens=usage.thought_tokens,
        answer_tokens=usage.answer_tokens,
        tool_tokens=usage.tool_tokens,
    )


def _started(admitted: AdmittedCall) -> pb.GenerationEvent:
    started = pb.GenerationStarted(
        generation_id=admitted.call.generation_id,
        model=admitted.engine.card.name,
        effective_settings=admitted.effective,
        resume_token=admitted.call.resume_token,
    )
    return pb.GenerationEvent(sequence=1, started=started)
