"""Trace candidates: spans of their engine runs, each with its cause, and of their phases."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Protocol

from penstock.telemetry.hooks import CandidateHooks, Cause, Headers
from penstock.telemetry.otel import names
from penstock.telemetry.otel.instruments import Labels
from penstock.telemetry.otel.recorder import Recorder
from penstock.telemetry.otel.span import Span, error_type
from penstock.types import CandidateEnd, EngineChunk, EngineRequest, ThinkingOutcome


class Parent(Protocol):
    """Describe the generation that a candidate belongs to."""

    recorder: Recorder
    span: Span
    of_model: Labels
    mode: str

    def first_token(self) -> None:
        """Record the first token of the generation."""
        ...

    def first_answer_token(self) -> None:
        """Record the first answer token of the generation."""
        ...


class CandidateSpans(CandidateHooks):
    """Trace one candidate."""

    def __init__(self, generation: Parent, index: int) -> None:
        self._generation = generation
        self._index = index
        self._runs = 0
        self._run: Span | None = None
        self._phases: dict[str, Span] = {}
        self._first_at: float | None = None

    def run_began(self, cause: Cause, request: EngineRequest) -> Headers | None:
        """Start the span of an engine run."""
        recorder = self._generation.recorder
        self._runs += 1
        if cause is not Cause.START:
            recorder.instruments.continuations.add(1, {names.CAUSE: cause.value})
        self._run = self._generation.span.child(
            names.ENGINE_RUN,
            {
                names.CANDIDATE: self._index,
                names.RUN_NUMBER: self._runs,
                names.RUN_CAUSE: cause.value,
                names.RUN_CONTINUES: cause is not Cause.START,
                names.PROMPT_TOKENS: len(request.prompt_token_ids),
                names.MAX_TOKENS: request.max_tokens,
            },
        )
        return self._run.headers if recorder.engine_joins else None

    def run_answered(self, chunk: EngineChunk) -> None:
        """Record cached tokens and queue time of a run."""
        if self._run is not None:
            self._run.set({names.CACHED_TOKENS: chunk.cached_tokens})
            if chunk.queue_seconds is not None:
                self._run.set({names.QUEUE_SECONDS: chunk.queue_seconds})

    def run_ended(self, how: str, chunk: EngineChunk | None) -> None:
        """End the span of a run."""
        span, self._run = self._run, None
        if span is None:
            return
        span.set({names.RUN_END: how})
        if how in ("engine_died", "cancelled"):
            span.fail(how)
        span.end()

    def waiting_for_engine(self) -> AbstractContextManager[object]:
        """Start the span of a wait for the engine."""
        return self._generation.span.child(names.ENGINE_WAIT)

    def first_token(self, *, is_thought: bool) -> None:
        """Record the first token, and start the span of the thought."""
        self._first_at = time.monotonic()
        self._generation.first_token()
        if is_thought:
            self._phase(names.FIRST_THOUGHT_TOKEN, names.THINKING)

    def _phase(self, event: str, name: str) -> None:
        index, span = {names.CANDIDATE: self._index}, self._generation.span
        span.event(event, index)
        self._phases[name] = span.child(name, index)

    def thought_ended(self, outcome: ThinkingOutcome, thought_tokens: int) -> None:
        """End the span of the thought."""
        facts = {names.CANDIDATE: self._index, names.THINKING_TOKENS: thought_tokens}
        if outcome is ThinkingOutcome.BUDGET_REACHED:
            self._generation.span.event(names.BUDGET_REACHED, facts)
        span = self._phases.pop(names.THINKING, None)
        if span is not None:
            span.set({names.THINKING_OUTCOME: outcome.value, **facts})
            span.end()

    def first_answer_token(self) -> None:
        """Record the first answer token, and start the span of the answer."""
        self._generation.first_answer_token()
        self._phase(names.FIRST_ANSWER_TOKEN, names.ANSWER)

    def ended(self, end: CandidateEnd) -> None:
        """Record the tokens of the candidate and end its spans."""
        generation, usage = self._generation, end.usage
        instruments, context = generation.recorder.instruments, generation.span.in_context
        instruments.thoughts.add(1, {names.OUTCOME: end.outcome.value, names.MODE: generation.mode})
        if usage.thought_tokens:
            instruments.budget_spent.record(usage.thought_tokens, {names.MODE: generation.mode}, context)
        if self._first_at is not None and usage.output_tokens > 1:
            seconds = (time.monotonic() - self._first_at) / (usage.output_tokens - 1)
            instruments.time_per_output_token.record(seconds, generation.of_model, context)
        if names.ANSWER in self._phases:
            self._phases[names.ANSWER].set({names.ANSWER_TOKENS: usage.answer_tokens})
        self.close(None)

    def close(self, error: BaseException | None) -> None:
        """End the open spans; an error marks them as failed."""
        for span in self._phases.values():
            if error is not None:
                span.fail(error_type(error))
            span.end()
        self._phases.clear()
