"""One candidate as spans and counts: its engine runs, each with why it began, and its phases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.observe import CandidateWatch, Cause, Headers
from penstock.telemetry import names
from penstock.telemetry.recorder import Recorder, fail
from penstock.types import CandidateEnd, EngineChunk, EngineRequest, ThinkingOutcome

_W3C = TraceContextTextMapPropagator()
Attributes: TypeAlias = Mapping[str, str | bool | int | float | Sequence[str]]


class Parent(Protocol):
    """The generation that a candidate is one of."""

    recorder: Recorder
    span: Span
    context: Context
    labels: dict[str, str]
    mode: str

    def first_token(self) -> None: ...

    def first_answer_token(self) -> None: ...

    def timed(self, name: str) -> AbstractContextManager[object]: ...


class Candidate(CandidateWatch):
    def __init__(self, generation: Parent, index: int) -> None:
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
        return self._generation.timed(names.ENGINE_WAIT)

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
