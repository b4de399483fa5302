"""From a call to a permit: check capacity, convert, validate, plan, reserve quota, wait in the queue."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock.admission.queue import AdmissionRequest
from penstock.auth.identity import Principal
from penstock.auth.isolation import class_of, own_prefixes
from penstock.engine.base import Engine
from penstock.engine.poison import accountable, network_of
from penstock.engine.supervisor import SupervisedEngine
from penstock.errors import EngineRefused, GenerationNotFound, Overloaded, PenstockError, ServiceFault
from penstock.generation.early_exit import AutoReading, ProbeRun, read_before_thought
from penstock.generation.images import measured
from penstock.generation.planner import (
    PlanningFacts,
    decided,
    may_ask_engine,
    plan_generation,
    with_budget,
    with_checkpoint_mode,
    without_thought,
)
from penstock.generation.validation import validate
from penstock.server.convert import generation as convert
from penstock.server.request_context import RequestContext
from penstock.server.rpc.charges import reserve_quota
from penstock.server.rpc.generation_call import AdmittedCall, GenerationCall
from penstock.server.service_context import ServiceContext
from penstock.sessions.checkpoints import Checkpoint
from penstock.telemetry.hooks import Step
from penstock.types import FinishReason, GenerationPlan, Priority, Request, ThinkingOutcome

_LARGE_BYTES = 64 * 1024
T = TypeVar("T")


class CallAdmission:
    """Admits generations. Nothing reaches the engine without a permit."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service

    def check_capacity(self, spec: pb.GenerationSpec, caller: Principal) -> None:
        """Refuse what would be refused anyway, before work is done for it. Raise Overloaded or CallerNotAllowed."""
        self._service.admission.check_capacity(_priority(spec, caller), caller.id)

    @asynccontextmanager
    async def admit(self, call: GenerationCall) -> AsyncIterator[AdmittedCall]:
        """Plan the call and hold its quota and its permit until the context ends."""
        service, context = self._service, call.context
        engine = service.engine()
        headers = call.checkpoint.trace_headers if call.checkpoint else None
        async with AsyncExitStack() as stack:
            stack.enter_context(self.errors_of(call.generation_id))
            is_chat = call.spec.WhichOneof("input") == "messages"
            generation_hooks = context.hooks.generation(
                model=engine.card.name, chat=is_chat, streams=call.streams, parent_headers=headers
            )
            hooks = stack.enter_context(generation_hooks)
            if not call.has_capacity:
                self.check_capacity(call.spec, context.caller)
            with hooks.step(Step.PLAN):
                request, plan = await self._first_plan(call, engine)
                hooks.planned(plan, context.seconds_left)
            if isinstance(engine, SupervisedEngine) and plan.accountable is not None:
                engine.poison.refuse_convicted(plan.accountable)
            with hooks.step(Step.QUEUE):
                waited_seconds = await self._wait(call, plan, engine, stack)
            if waited_seconds and plan.choice.auto_budget_tokens is not None:
                # The deadline is nearer than when the AUTO budget was planned.
                plan = await _beside(call.spec, lambda: self._plan(request, engine, context))
                hooks.planned(plan, context.seconds_left)
            begun = None
            if call.checkpoint is None and may_ask_engine(plan, engine.card):
                plan, begun = await self._ask_engine(call, request, plan, engine)
                hooks.planned(plan, context.seconds_left)
            if begun is not None:
                stack.push_async_callback(begun.close)
            hooks.admitted(call.generation_id, waited_seconds)
            yield AdmittedCall(call, engine, plan, hooks, self._effective(plan, context), begun)
            for end in call.meter.finished.ends if call.meter.finished else ():
                if end.outcome in (ThinkingOutcome.NATURAL_END, ThinkingOutcome.BUDGET_REACHED):
                    service.conditions.lengths.saw(end.usage.thought_tokens)
                if end.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
                    service.answers.saw(end.usage.answer_tokens + end.usage.tool_tokens)

    async def plan(self, spec: pb.GenerationSpec, context: RequestContext) -> GenerationPlan:
        """Check and plan a request that is not run. Raise what Generate would raise."""
        engine = self._service.engine()
        request = await self._request(spec, context, engine)
        return await _beside(spec, lambda: self._plan(request, engine, context))

    @contextmanager
    def errors_of(self, generation_id: str) -> Iterator[None]:
        """Add to errors what only this layer knows of them."""
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

    async def _first_plan(self, call: GenerationCall, engine: Engine) -> tuple[Request, GenerationPlan]:
        request, checkpoint = await self._request(call.spec, call.context, engine), call.checkpoint
        if checkpoint is None:
            return request, await _beside(call.spec, lambda: self._plan(request, engine, call.context))
        work = functools.partial(self._plan_from_checkpoint, request, engine, call.context, checkpoint)
        return request, await _beside(call.spec, work)

    async def _request(self, spec: pb.GenerationSpec, context: RequestContext, engine: Engine) -> Request:
        """Convert and validate the request: the only place where the proto becomes ours."""
        caller, config = context.caller, self._service.config

        def work() -> Request:
            request = replace(convert.request_from_proto(spec), priority=_priority(spec, caller), caller_id=caller.id)
            validate(request, engine.card, config.resolved_limits)
            return request if config.auth.shared_prefix_cache else own_prefixes(request, caller)

        return await measured(await _beside(spec, work), engine)

    def _plan(self, request: Request, engine: Engine, context: RequestContext) -> GenerationPlan:
        caller, config, seconds_left = context.caller, self._service.config, context.seconds_left
        facts = PlanningFacts(
            seconds_to_deadline=seconds_left,
            # Only a deadline makes it matter how long answers are.
            likely_answer_tokens=None if seconds_left is None else self._service.answers.likely_tokens(),
            # The worst-case cost is reserved: that of the whole window would allow two or three concurrent calls only.
            default_max_output_tokens=(
                None if caller.limits.usd_ticks_per_day is None else config.limits.default_max_output_tokens
            ),
        )
        plan = plan_generation(request, engine, config, facts)
        suspect = caller.id if caller.is_known else network_of(caller.id)
        return replace(plan, accountable=accountable(suspect, plan.sampling, plan.structured))

    def _plan_from_checkpoint(
        self, request: Request, engine: Engine, context: RequestContext, checkpoint: Checkpoint
    ) -> GenerationPlan:
        if checkpoint.model != engine.card.name:
            raise GenerationNotFound(
                f"resume_token is of another model, this server serves {engine.card.name}",
                served_model=engine.card.name,
            )
        plan = self._plan(with_checkpoint_mode(request, checkpoint.plan), engine, context)
        return with_budget(plan, checkpoint.plan)

    async def _wait(self, call: GenerationCall, plan: GenerationPlan, engine: Engine, stack: AsyncExitStack) -> float:
        """Reserve quota, then wait for a permit; both are held until `stack` ends. Return the seconds waited."""
        service, caller, structured = self._service, call.context.caller, plan.structured
        await stack.enter_async_context(reserve_quota(service, call, plan))
        if structured is not None:
            await engine.check_constraint(structured, caller.id)
        began, room = time.monotonic(), service.admission.permit(_admission_request(plan, call.context))
        permit = await call.control.unless_it_ends(lambda: stack.enter_async_context(room))
        # Without a permit it was cancelled in the queue and ends before it asks for an engine.
        return permit.waited_seconds if permit else time.monotonic() - began

    async def _ask_engine(
        self, call: GenerationCall, request: Request, plan: GenerationPlan, engine: Engine
    ) -> tuple[GenerationPlan, ProbeRun | None]:
        """Return the plan after AUTO has asked the engine how certain the answer is without a thought, and its run."""
        settings = self._service.config.thinking
        fast = await _beside(call.spec, lambda: self._plan(without_thought(request), engine, call.context))
        reading = await call.control.unless_it_ends(
            lambda: read_before_thought(engine, fast, settings, self._service.conditions, call.generation_id)
        )
        found = reading or AutoReading()
        return decided(plan, fast, found, settings.auto_probability), found.run

    def _effective(self, plan: GenerationPlan, context: RequestContext) -> pb.EffectiveSettings:
        effective = convert.effective_settings(plan)
        if context.deadline_monotonic is not None:
            margin_seconds = context.status_margin_seconds(self._service.lag.seconds)
            effective.status_margin.FromNanoseconds(round(margin_seconds * 1e9))
        return effective


async def _beside(spec: pb.GenerationSpec, work: Callable[[], T]) -> T:
    """Return what `work` returns; for a large request in a thread, because it may block the event loop for a second."""
    return work() if spec.ByteSize() < _LARGE_BYTES else await asyncio.to_thread(work)


def _priority(spec: pb.GenerationSpec, caller: Principal) -> Priority:
    """Return the priority of a call. Raise CallerNotAllowed above the caller's highest."""
    return class_of(convert.priority_from_proto(spec), caller)


def _admission_request(plan: GenerationPlan, context: RequestContext) -> AdmissionRequest:
    output = plan.request.output
    tokens = len(plan.context.prompt_token_ids) + plan.budget.max_output_tokens * output.candidate_count
    return AdmissionRequest(
        context.caller.id,
        plan.request.priority,
        output.candidate_count,
        tokens,
        context.deadline_monotonic,
        context.caller.limit_key,
    )
