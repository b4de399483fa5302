"""Trace generations: the span `chat {model}`, and those of the steps before the engine runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from opentelemetry.trace import Link

from penstock.telemetry.hooks import CandidateHooks, GenerationHooks, Step
from penstock.telemetry.otel import names
from penstock.telemetry.otel.candidates import CandidateSpans
from penstock.telemetry.otel.content import Content
from penstock.telemetry.otel.instruments import Labels
from penstock.telemetry.otel.recorder import Recorder
from penstock.telemetry.otel.span import Span, Value, error_type
from penstock.types import Event, Finished, GenerationPlan

_STEPS = {Step.PLAN: names.PLAN, Step.QUEUE: names.QUEUE}


class GenerationSpans(GenerationHooks):
    """Trace one generation."""

    # Each is an attribute of the span from its start.
    def __init__(
        self, recorder: Recorder, parent: Span, model: str, *, chat: bool, streams: bool, links: Sequence[Link]
    ) -> None:
        self.recorder = recorder
        self.generation_id = ""
        self.began = time.monotonic()
        self.mode = "none"
        operation = names.CHAT if chat else names.TEXT_COMPLETION
        self.of_model: Labels = {
            names.OPERATION: operation,
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: model,
        }
        self.span = parent.child(
            f"{operation} {model}",
            {
                **self.of_model,
                names.RESPONSE_MODEL: model,
                names.STREAM: streams,
            },
            links,
        )
        self._candidates: list[CandidateSpans] = []
        self._content = Content() if recorder.records_content and self.span.is_recording else None
        self.wants_content = self._content is not None
        self._saw_token = self._saw_answer = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for candidate in self._candidates:
            candidate.close(error)
        labels = dict(self.of_model)
        if error is not None:
            labels[names.ERROR_TYPE] = error_type(error)
            self.span.fail(labels[names.ERROR_TYPE])
        if self._content is not None:
            self.span.set(self._content.attributes())
        seconds = time.monotonic() - self.began
        self.recorder.instruments.request_duration.record(seconds, labels, self.span.in_context)
        self.span.end()

    def step(self, step: Step) -> AbstractContextManager[object]:
        """Start the span of a step."""
        return self.span.child(_STEPS[step])

    def planned(self, plan: GenerationPlan, seconds_to_deadline: float | None) -> None:
        """Record the plan."""
        self.mode = plan.choice.mode.value
        budget = plan.budget.thought_tokens
        if plan.in_thought or plan.may_open:
            self.recorder.instruments.budget_planned.record(budget, {names.MODE: self.mode}, self.span.in_context)
        if not self.span.is_recording:
            return
        self.span.set(_plan_attributes(plan))
        if self._content is not None:
            self._content.asked(plan.request)
        if seconds_to_deadline is None:
            return
        self.span.set({names.DEADLINE_SECONDS: seconds_to_deadline})
        if plan.closes_before_deadline or plan.choice.auto_budget_tokens is not None:
            facts: dict[str, Value] = {
                names.DEADLINE_SECONDS: seconds_to_deadline,
                names.THINKING_BUDGET: budget,
                names.THINKING_REASON: plan.choice.reason,
            }
            if plan.seconds_per_token is not None:
                facts[names.SECONDS_PER_TOKEN] = plan.seconds_per_token
            self.span.event(names.DEADLINE_PLAN, facts)

    def admitted(self, generation_id: str, waited_seconds: float) -> None:
        """Record the wait in the queue."""
        self.generation_id = generation_id
        self.recorder.instruments.queue_wait.record(waited_seconds, None, self.span.in_context)
        self.span.set({names.RESPONSE_ID: generation_id, names.QUEUE_SECONDS: waited_seconds})

    def candidate(self, index: int) -> CandidateHooks:
        """Return the hooks of a candidate."""
        candidate = CandidateSpans(self, index)
        self._candidates.append(candidate)
        return candidate

    def first_token(self) -> None:
        """Record the time to the first token of any candidate."""
        if not self._saw_token:
            self._saw_token = True
            seconds = time.monotonic() - self.began
            self.span.set({names.TIME_TO_FIRST_CHUNK: seconds})
            self.recorder.instruments.time_to_first_token.record(seconds, self.of_model, self.span.in_context)

    def first_answer_token(self) -> None:
        """Record the time to the first answer token of any candidate."""
        if not self._saw_answer:
            self._saw_answer = True
            seconds = time.monotonic() - self.began
            self.recorder.instruments.time_to_first_answer_token.record(
                seconds, {names.MODE: self.mode}, self.span.in_context
            )

    def on_event(self, event: Event) -> None:
        """Record the content of an event, where that is enabled."""
        if self._content is not None:
            self._content.on_event(event)

    def finished(self, finished: Finished) -> None:
        """Record tokens and cost."""
        usage, cost = finished.usage, finished.cost
        self.recorder.instruments.count(usage, cost, self.span, self.of_model)
        if not self.span.is_recording:
            return
        attributes: dict[str, Value] = {
            names.FINISH_REASONS: [end.finish_reason.value for end in finished.ends],
            names.THINKING_OUTCOME: [end.outcome.value for end in finished.ends],
            names.INPUT_TOKENS: usage.prompt_tokens,
            names.OUTPUT_TOKENS: usage.output_tokens,
            names.REASONING_TOKENS: usage.thought_tokens,
            names.ANSWER_TOKENS: usage.answer_tokens,
            names.CACHED_TOKENS: usage.cached_tokens,
            names.RECOMPUTED_TOKENS: usage.recomputed_tokens,
        }
        if usage.probe_tokens:
            attributes[names.PROBE_TOKENS] = usage.probe_tokens
        if usage.tool_tokens:
            attributes[names.TOOL_TOKENS] = usage.tool_tokens
        if usage.drafted_tokens is not None and usage.accepted_tokens is not None:
            attributes |= {names.DRAFTED_TOKENS: usage.drafted_tokens, names.ACCEPTED_TOKENS: usage.accepted_tokens}
        if cost is not None:
            attributes[names.COST] = cost.total_usd_ticks
        self.span.set(attributes)


def _plan_attributes(plan: GenerationPlan) -> dict[str, Value]:
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
        names.THINKING_EFFORT: request.thinking.effort.value if request.thinking.effort else None,
        names.TOOLS: len(request.tools.tools) or None,
        names.TOOL_MODE: request.tools.mode.value if request.tools.tools else None,
    }
    return {name: value for name, value in known.items() if value is not None}
