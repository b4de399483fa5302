"""What one call asks of the model, as spans and counts: `chat {model}`, its steps, engine runs and phases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.errors import PenstockError
from penstock.observe import CandidateWatch, Cause, GenerationWatch, Headers, Step
from penstock.planning import Plan
from penstock.telemetry import names
from penstock.telemetry.content import Content
from penstock.telemetry.instruments import Instruments
from penstock.types import CandidateEnd, EngineChunk, EngineRequest, Event, Finished, ThinkingOutcome

_W3C = TraceContextTextMapPropagator()
_STEPS = {Step.PLAN: names.PLAN, Step.QUEUE: names.QUEUE}
Attributes: TypeAlias = Mapping[str, str | bool | int | float | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Recorder:
    """What spans and counts are written with."""

    tracer: Tracer
    instruments: Instruments
    engine_joins: bool
    records_content: bool


def error_type(error: BaseException) -> str:
    """Bounded: a reason of ours, or the name of an exception's class."""
    return error.reason if isinstance(error, PenstockError) else type(error).__name__


def fail(span: Span, error: BaseException) -> None:
    """Marks a span that did not end well. Cut short (the client left, the deadline passed) is not well either."""
    span.set_attribute(names.ERROR_TYPE, error_type(error) if isinstance(error, Exception) else "cancelled")
    span.set_status(Status(StatusCode.ERROR))


class Generation(GenerationWatch):
    def __init__(
        self, recorder: Recorder, parent: Span, model: str, *, chat: bool, streams: bool, links: Sequence[Link]
    ) -> None:
        self.recorder = recorder
        self.generation_id = ""
        self.began = time.monotonic()
        self.mode = "none"
        operation = names.CHAT if chat else names.TEXT_COMPLETION
        self.labels = {names.OPERATION: operation, names.PROVIDER_NAME: names.PROVIDER, names.REQUEST_MODEL: model}
        # Samplers see only what is set at the creation.
        self.span = recorder.tracer.start_span(
            f"{operation} {model}",
            context=set_span_in_context(parent),
            kind=SpanKind.INTERNAL,
            attributes=self.labels | {names.RESPONSE_MODEL: model, names.STREAM: streams},
            links=links,
        )
        self.context: Context = set_span_in_context(self.span)
        self._candidates: list[Candidate] = []
        self._content = Content() if recorder.records_content and self.span.is_recording() else None
        self.wants_content = self._content is not None
        self._saw_token = self._saw_answer = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for candidate in self._candidates:
            candidate.close(error)
        labels = dict(self.labels)
        if error is not None:
            fail(self.span, error)
            labels[names.ERROR_TYPE] = error_type(error) if isinstance(error, Exception) else "cancelled"
        if self._content is not None:
            self.span.set_attributes(self._content.attributes())
        self.recorder.instruments.request_duration.record(time.monotonic() - self.began, labels, context=self.context)
        self.span.end()

    def step(self, step: Step) -> AbstractContextManager[object]:
        return self._step(_STEPS[step])

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        span = self.recorder.tracer.start_span(name, context=self.context)
        try:
            yield
        except BaseException as error:
            fail(span, error)
            raise
        finally:
            span.end()

    def planned(self, plan: Plan, seconds_to_deadline: float | None) -> None:
        self.mode = plan.choice.mode.value
        budget = plan.budget.thought_tokens
        if plan.in_thought or plan.may_open:
            self.recorder.instruments.budget_planned.record(budget, {names.MODE: self.mode}, context=self.context)
        if not self.span.is_recording():
            return
        self.span.set_attributes(_plan_attributes(plan))
        if self._content is not None:
            self._content.asked(plan.request)
        if seconds_to_deadline is None:
            return
        self.span.set_attribute(names.DEADLINE_SECONDS, seconds_to_deadline)
        if plan.closes_before_deadline or plan.choice.auto_budget_tokens is not None:
            facts: dict[str, str | int | float] = {
                names.DEADLINE_SECONDS: seconds_to_deadline,
                names.THINKING_BUDGET: budget,
                names.THINKING_REASON: plan.choice.reason,
            }
            if plan.seconds_per_token is not None:
                facts[names.SECONDS_PER_TOKEN] = plan.seconds_per_token
            self.span.add_event(names.DEADLINE_PLAN, facts)

    def let_in(self, generation_id: str, waited_seconds: float) -> None:
        self.generation_id = generation_id
        self.recorder.instruments.queue_wait.record(waited_seconds, {}, context=self.context)
        self.span.set_attributes({names.RESPONSE_ID: generation_id, names.QUEUE_SECONDS: waited_seconds})

    def candidate(self, index: int) -> CandidateWatch:
        candidate = Candidate(self, index)
        self._candidates.append(candidate)
        return candidate

    def first_token(self) -> None:
        """Of any candidate."""
        if not self._saw_token:
            self._saw_token = True
            seconds = time.monotonic() - self.began
            self.span.set_attribute(names.TIME_TO_FIRST_CHUNK, seconds)
            self.recorder.instruments.time_to_first_token.record(seconds, self.labels, context=self.context)

    def first_answer_token(self) -> None:
        if not self._saw_answer:
            self._saw_answer = True
            seconds = time.monotonic() - self.began
            self.recorder.instruments.time_to_first_answer_token.record(
                seconds, {names.MODE: self.mode}, context=self.context
            )

    def said(self, event: Event) -> None:
        if self._content is not None:
            self._content.said(event)

    def finished(self, finished: Finished) -> None:
        usage, cost = finished.usage, finished.cost
        self.recorder.instruments.count(usage, cost, self.labels, self.context)
        if not self.span.is_recording():
            return
        attributes: dict[str, str | int | Sequence[str]] = {
            names.FINISH_REASONS: [end.finish_reason.value for end in finished.ends],
            names.THINKING_OUTCOME: [end.outcome.value for end in finished.ends],
            names.INPUT_TOKENS: usage.prompt_tokens,
            names.OUTPUT_TOKENS: usage.output_tokens,
            names.REASONING_TOKENS: usage.thought_tokens,
            names.ANSWER_TOKENS: usage.answer_tokens,
            names.CACHED_TOKENS: usage.cached_tokens,
            names.RECOMPUTED_TOKENS: usage.recomputed_tokens,
        }
        if usage.drafted_tokens is not None and usage.accepted_tokens is not None:
            attributes |= {names.DRAFTED_TOKENS: usage.drafted_tokens, names.ACCEPTED_TOKENS: usage.accepted_tokens}
        if cost is not None:
            attributes[names.COST] = cost.total_usd_ticks
        self.span.set_attributes(attributes)


class Candidate(CandidateWatch):
    def __init__(self, generation: Generation, index: int) -> None:
        self._generation = generation
        self._index = index
        self._runs = 0
        self._run: Span | None = None
        self._phases: dict[str, Span] = {}
        self._first_at: float | None = None

    def _start(self, name: str, attributes: Attributes) -> Span:
        return self._generation.recorder.tracer.start_span(
            name, context=self._generation.context, attributes={names.CANDIDATE: self._index, **attributes}
        )

    def run_began(self, cause: Cause, request: EngineRequest) -> Headers | None:
        recorder = self._generation.recorder
        self._runs += 1
        if cause is not Cause.START:
            recorder.instruments.continuations.add(1, {names.CAUSE: cause.value}, context=self._generation.context)
        self._run = self._start(
            names.ENGINE_RUN,
            {
                names.RUN_NUMBER: self._runs,
                names.RUN_CAUSE: cause.value,
                names.RUN_CONTINUES: cause is not Cause.START,
                names.PROMPT_TOKENS: len(request.prompt_token_ids),
                names.MAX_TOKENS: request.max_tokens,
            },
        )
        if not recorder.engine_joins:
            return None
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, context=set_span_in_context(self._run))
        return carrier

    def run_answered(self, chunk: EngineChunk) -> None:
        if self._run is not None:
            self._run.set_attribute(names.CACHED_TOKENS, chunk.cached_tokens)
            if chunk.queue_seconds is not None:
                self._run.set_attribute(names.QUEUE_SECONDS, chunk.queue_seconds)

    def run_ended(self, how: str, chunk: EngineChunk | None) -> None:
        span, self._run = self._run, None
        if span is None:
            return
        span.set_attribute(names.RUN_END, how)
        if how in ("engine_died", "cancelled"):
            span.set_attribute(names.ERROR_TYPE, how)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def waiting_for_engine(self) -> AbstractContextManager[object]:
        return self._generation._step(names.ENGINE_WAIT)

    def first_token(self, *, is_thought: bool) -> None:
        self._first_at = time.monotonic()
        self._generation.first_token()
        if is_thought:
            self._generation.span.add_event(names.FIRST_THOUGHT_TOKEN, {names.CANDIDATE: self._index})
            self._phases[names.THINKING] = self._start(names.THINKING, {})

    def thought_ended(self, outcome: ThinkingOutcome, thought_tokens: int) -> None:
        facts = {names.CANDIDATE: self._index, names.THINKING_TOKENS: thought_tokens}
        if outcome is ThinkingOutcome.BUDGET_REACHED:
            self._generation.span.add_event(names.BUDGET_REACHED, facts)
        span = self._phases.pop(names.THINKING, None)
        if span is not None:
            span.set_attributes({names.THINKING_OUTCOME: outcome.value, **facts})
            span.end()

    def first_answer_token(self) -> None:
        self._generation.first_answer_token()
        self._generation.span.add_event(names.FIRST_ANSWER_TOKEN, {names.CANDIDATE: self._index})
        self._phases[names.ANSWER] = self._start(names.ANSWER, {})

    def ended(self, end: CandidateEnd) -> None:
        generation, usage = self._generation, end.usage
        instruments, context = generation.recorder.instruments, generation.context
        instruments.thoughts.add(1, {names.OUTCOME: end.outcome.value, names.MODE: generation.mode}, context=context)
        if usage.thought_tokens:
            instruments.budget_spent.record(usage.thought_tokens, {names.MODE: generation.mode}, context=context)
        if self._first_at is not None and usage.output_tokens > 1:
            seconds = (time.monotonic() - self._first_at) / (usage.output_tokens - 1)
            instruments.time_per_output_token.record(seconds, generation.labels, context=context)
        if names.ANSWER in self._phases:
            self._phases[names.ANSWER].set_attribute(names.ANSWER_TOKENS, usage.answer_tokens)
        self.close(None)

    def close(self, error: BaseException | None) -> None:
        """Ends what is still open; an error cut it short."""
        for span in self._phases.values():
            if error is not None:
                fail(span, error)
            span.end()
        self._phases.clear()


def _plan_attributes(plan: Plan) -> dict[str, str | bool | int | float]:
    request, sampling, budget = plan.request, plan.sampling, plan.budget
    known = {
        names.MAX_TOKENS: budget.max_output_tokens,
        names.TEMPERATURE: sampling.temperature,
        names.TOP_P: sampling.top_p,
        names.TOP_K: sampling.top_k,
        names.SEED: sampling.seed,
        names.FREQUENCY_PENALTY: sampling.frequency_penalty,
        names.PRESENCE_PENALTY: sampling.presence_penalty,
        names.CHOICES: request.output.candidate_count if request.output.candidate_count > 1 else None,
        names.OUTPUT_TYPE: "json" if request.output.structured and request.output.structured.spec else "text",
        names.CONVERSATION: request.context.session_id,
        names.PRIORITY: request.priority.name.lower(),
        names.PROMPT_TOKENS: len(plan.context.prompt_token_ids),
        names.DROPPED_TOKENS: plan.context.dropped_tokens or None,
        names.THINKING_MODE: plan.choice.mode.value,
        names.THINKING_REQUESTED_MODE: plan.requested_mode.value if plan.requested_mode else None,
        names.THINKING_BUDGET: budget.thought_tokens,
        names.THINKING_BUDGET_ASKED: request.thinking.budget_tokens,
        names.THINKING_REASON: budget.reason,
        names.ANSWER_RESERVE: budget.answer_reserve_tokens,
    }
    return {name: value for name, value in known.items() if value is not None}
