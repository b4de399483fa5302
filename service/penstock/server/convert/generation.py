"""Convert between proto messages and the service's types. Ranges are checked by `generation.validation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from google.protobuf.duration_pb2 import Duration
from penstock_proto.v1 import generation_pb2 as pb

from penstock.errors import BadRequest, FieldViolation
from penstock.generation.thinking import effort_of
from penstock.server.convert.messages import (
    TOOL_MODES_TO_PROTO,
    messages_from_proto,
    tools_from_proto,
    unknown_enum,
    write_tool_event,
)
from penstock.types import (
    CandidateEnd,
    ContextConfig,
    Continued,
    Cost,
    Delta,
    EarlyExit,
    EarlyExitReport,
    Effort,
    Finished,
    FinishReason,
    GenerationPlan,
    Interrupted,
    InterruptionReason,
    Output,
    Overflow,
    Priority,
    Request,
    Sampling,
    StopPatterns,
    StructuredKind,
    StructuredOutput,
    ThinkingConfig,
    ThinkingMode,
    ThinkingOutcome,
    ThoughtEnded,
    ThoughtHistory,
    Timing,
    TokenLogprob,
    TokenLogprobs,
    ToolEvent,
    Usage,
)

MODES_TO_PROTO = {
    ThinkingMode.FAST: pb.THINKING_MODE_FAST,
    ThinkingMode.THINKING: pb.THINKING_MODE_THINKING,
    ThinkingMode.AUTO: pb.THINKING_MODE_AUTO,
}
_MODES: dict[int, ThinkingMode | None] = {pb.THINKING_MODE_UNSPECIFIED: None} | {
    n: m for m, n in MODES_TO_PROTO.items()
}
EFFORTS_TO_PROTO = {
    None: pb.EFFORT_UNSPECIFIED,
    Effort.NONE: pb.EFFORT_NONE,
    Effort.LOW: pb.EFFORT_LOW,
    Effort.MEDIUM: pb.EFFORT_MEDIUM,
    Effort.HIGH: pb.EFFORT_HIGH,
}
_EFFORTS: dict[int, Effort | None] = {number: effort for effort, number in EFFORTS_TO_PROTO.items()}
EARLY_EXITS_TO_PROTO = {
    None: pb.EARLY_EXIT_UNSPECIFIED,
    EarlyExit.OFF: pb.EARLY_EXIT_OFF,
    EarlyExit.MARKER: pb.EARLY_EXIT_MARKER,
    EarlyExit.PROBE: pb.EARLY_EXIT_PROBE,
}
_EARLY_EXITS: dict[int, EarlyExit | None] = {number: one for one, number in EARLY_EXITS_TO_PROTO.items()}
_HISTORIES = {
    pb.THOUGHT_HISTORY_UNSPECIFIED: ThoughtHistory.CURRENT_TURN,
    pb.THOUGHT_HISTORY_CURRENT_TURN: ThoughtHistory.CURRENT_TURN,
    pb.THOUGHT_HISTORY_ALL_TURNS: ThoughtHistory.ALL_TURNS,
    pb.THOUGHT_HISTORY_NONE: ThoughtHistory.NONE,
}
_OVERFLOWS = {
    pb.OVERFLOW_POLICY_UNSPECIFIED: Overflow.ERROR,
    pb.OVERFLOW_POLICY_ERROR: Overflow.ERROR,
    pb.OVERFLOW_POLICY_DROP_OLDEST_TURNS: Overflow.DROP_OLDEST_TURNS,
    pb.OVERFLOW_POLICY_TRUNCATE_LEFT: Overflow.TRUNCATE_LEFT,
    pb.OVERFLOW_POLICY_TRUNCATE_MIDDLE: Overflow.TRUNCATE_MIDDLE,
}
_PRIORITIES: dict[int, Priority | None] = {
    pb.PRIORITY_UNSPECIFIED: None,
    pb.PRIORITY_LOW: Priority.LOW,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
}
_INTERRUPTION_REASONS = {
    InterruptionReason.ENGINE_DIED: pb.INTERRUPTION_REASON_ENGINE_DIED,
    InterruptionReason.ENGINE_HUNG: pb.INTERRUPTION_REASON_ENGINE_HUNG,
}
_OUTCOMES = {
    ThinkingOutcome.DISABLED: pb.THINKING_OUTCOME_DISABLED,
    ThinkingOutcome.NATURAL_END: pb.THINKING_OUTCOME_NATURAL_END,
    ThinkingOutcome.BUDGET_REACHED: pb.THINKING_OUTCOME_BUDGET_REACHED,
    ThinkingOutcome.FINISHED_BY_CLIENT: pb.THINKING_OUTCOME_FINISHED_BY_CLIENT,
    ThinkingOutcome.DEADLINE: pb.THINKING_OUTCOME_DEADLINE,
    ThinkingOutcome.MAX_OUTPUT_TOKENS: pb.THINKING_OUTCOME_MAX_OUTPUT_TOKENS,
    ThinkingOutcome.CANCELLED: pb.THINKING_OUTCOME_CANCELLED,
    ThinkingOutcome.STOP_PATTERN: pb.THINKING_OUTCOME_STOP_PATTERN,
    ThinkingOutcome.CONVERGED: pb.THINKING_OUTCOME_CONVERGED,
}
_FINISHES = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishReason.MAX_OUTPUT_TOKENS: pb.FINISH_REASON_MAX_OUTPUT_TOKENS,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DRAINED: pb.FINISH_REASON_DRAINED,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}
_SamplingScalar = Literal[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
]
_MAX_FLUSH_SECONDS = 10
_SAMPLING_SCALARS: tuple[_SamplingScalar, ...] = get_args(_SamplingScalar)

# ------------------------------------------------------------------------------------------------------- from proto


def request_from_proto(spec: pb.GenerationSpec) -> Request:
    """Return the caller's request, absent fields as None. Raise BadRequest for unknown enum numbers."""
    kind = spec.WhichOneof("input")
    return Request(
        messages=messages_from_proto(spec.messages) if kind == "messages" else None,
        text=spec.text if kind == "text" else None,
        token_ids=tuple(spec.token_ids.ids) if kind == "token_ids" else None,
        model=spec.model,
        thinking=_thinking(spec.thinking),
        context=_context(spec.context),
        sampling=_sampling(spec.sampling),
        output=_output(spec.output),
        tools=tools_from_proto(spec),
        priority=priority_from_proto(spec) or Priority.NORMAL,
    )


def seconds_from_proto(length: Duration) -> float:
    """Return a duration in seconds."""
    seconds: float = length.seconds + length.nanos / 1e9
    return seconds


def flush_seconds(interval: Duration) -> float:
    """Return how many seconds deltas may be held. Raise BadRequest outside [0, 10] seconds."""
    seconds = seconds_from_proto(interval)
    if not 0 <= seconds <= _MAX_FLUSH_SECONDS:
        raise BadRequest(
            FieldViolation(
                "flush_interval", f"must be in [0, {_MAX_FLUSH_SECONDS}] seconds, got {seconds:g}", "INVALID_FIELD"
            )
        )
    return seconds


def priority_from_proto(spec: pb.GenerationSpec) -> Priority | None:
    """Return the priority that the call asks for; None where it asks for none. Raise BadRequest for unknown numbers."""
    if spec.priority not in _PRIORITIES:
        raise unknown_enum("spec.priority", spec.priority)
    return _PRIORITIES[spec.priority]


def _thinking(config: pb.ThinkingConfig) -> ThinkingConfig:
    if config.mode not in _MODES:
        raise unknown_enum("spec.thinking.mode", config.mode)
    if config.effort not in _EFFORTS:
        raise unknown_enum("spec.thinking.effort", config.effort)
    if config.history not in _HISTORIES:
        raise unknown_enum("spec.thinking.history", config.history)
    if config.early_exit not in _EARLY_EXITS:
        raise unknown_enum("spec.thinking.early_exit", config.early_exit)
    own_probability = config.HasField("early_exit_probability")
    return ThinkingConfig(
        mode=_MODES[config.mode],
        budget_tokens=config.thinking_budget if config.HasField("thinking_budget") else None,
        include_thoughts=config.include_thoughts if config.HasField("include_thoughts") else True,
        answer_reserve_tokens=config.answer_reserve if config.HasField("answer_reserve") else None,
        closing_message=config.closing_message if config.HasField("closing_message") else None,
        effort=_EFFORTS[config.effort],
        history=_HISTORIES[config.history],
        early_exit=_EARLY_EXITS[config.early_exit],
        early_exit_probability=config.early_exit_probability if own_probability else None,
        stop_patterns=StopPatterns(tuple(config.stop_patterns.strings), config.stop_patterns.regex),
    )


def _context(config: pb.ContextConfig) -> ContextConfig:
    if config.overflow not in _OVERFLOWS:
        raise unknown_enum("spec.context.overflow", config.overflow)
    return ContextConfig(
        max_context_tokens=config.max_context_tokens if config.HasField("max_context_tokens") else None,
        overflow=_OVERFLOWS[config.overflow],
        cache_salt=config.cache_salt or None,
        session_id=config.session_id or None,
    )


def _sampling(config: pb.SamplingConfig) -> Sampling:
    asked = {name: getattr(config, name) for name in _SAMPLING_SCALARS if config.HasField(name)}
    return Sampling(**asked, logit_bias=dict(config.logit_bias))


def _output(config: pb.OutputConfig) -> Output:
    return Output(
        max_tokens=config.max_output_tokens if config.HasField("max_output_tokens") else None,
        min_tokens=config.min_output_tokens,
        stop_strings=tuple(config.stop_strings),
        stop_token_ids=tuple(config.stop_token_ids),
        candidate_count=config.candidate_count if config.HasField("candidate_count") else 1,
        top_logprobs=config.top_logprobs if config.HasField("top_logprobs") else None,
        return_token_ids=config.return_token_ids,
        structured=_structured(config),
    )


def _structured(config: pb.OutputConfig) -> StructuredOutput | None:
    kind = config.WhichOneof("structured_output")
    if kind is None:
        return None
    if kind == "choices":
        return StructuredOutput(StructuredKind.CHOICE, choices=tuple(config.choices.choices))
    return StructuredOutput(StructuredKind(kind), spec=getattr(config, kind))


# --------------------------------------------------------------------------------------------------------- to proto


def write_event(
    message: pb.GenerationEvent,
    event: Delta | ToolEvent | ThoughtEnded | Interrupted | Continued,
    token_bytes: Callable[[int], bytes],
    *,
    with_ids: bool,
) -> None:
    """Write one event of a running generation into an empty message. Called once per engine step and stream."""
    if not isinstance(event, Delta):
        _write_change(message, event)
        return
    delta = message.thought if event.is_thought else message.answer
    delta.text = event.text
    delta.token_count = event.token_count
    if event.candidate_index:
        delta.candidate_index = event.candidate_index
    if with_ids:
        delta.token_ids.extend(event.token_ids)
    if event.logprobs:
        delta.logprobs.extend(logprobs_to_proto(event.logprobs, token_bytes))


def _write_change(message: pb.GenerationEvent, event: ToolEvent | ThoughtEnded | Interrupted | Continued) -> None:
    match event:
        case ThoughtEnded():
            message.thinking_finished.MergeFrom(thought_ended_to_proto(event))
        case Interrupted():
            message.interrupted.candidate_index = event.candidate_index
            message.interrupted.reason = _INTERRUPTION_REASONS[event.reason]
            if event.expected_seconds is not None:
                message.interrupted.expected_seconds = event.expected_seconds
        case Continued():
            message.continued.candidate_index = event.candidate_index
            message.continued.interrupted_seconds = event.interrupted_seconds
        case _:
            write_tool_event(message, event)


def logprobs_to_proto(logprobs: Sequence[TokenLogprobs], token_bytes: Callable[[int], bytes]) -> list[pb.TokenLogprobs]:
    """Return log probabilities as messages, each token with its bytes."""

    def one(logprob: TokenLogprob) -> pb.TokenLogprob:
        piece = token_bytes(logprob.token_id)
        return pb.TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob, token_bytes=piece)

    return [pb.TokenLogprobs(sampled=one(entry.sampled), top=[one(top) for top in entry.top]) for entry in logprobs]


def thought_ended_to_proto(ended: ThoughtEnded) -> pb.ThinkingFinished:
    """Return the end of a thought as a message."""
    return pb.ThinkingFinished(
        candidate_index=ended.candidate_index,
        outcome=_OUTCOMES[ended.outcome],
        reasoning_tokens=ended.thought_tokens,
    )


def finished_to_proto(
    finished: Finished, effective: pb.EffectiveSettings, resume_token: str = ""
) -> pb.GenerationFinished:
    """Return the last event as a message; `resume_token` is set for a drained generation."""
    return pb.GenerationFinished(
        results=[result_to_proto(end) for end in finished.ends],
        usage=usage_to_proto(finished.usage),
        cost=cost_to_proto(finished.cost),
        effective_settings=effective,
        timing=timing_to_proto(finished.timing),
        resume_token=resume_token,
    )


def result_to_proto(end: CandidateEnd) -> pb.CandidateResult:
    """Return the end of a candidate as a message."""
    return pb.CandidateResult(
        candidate_index=end.candidate_index,
        finish_reason=_FINISHES[end.finish_reason],
        matched_stop=end.matched_stop,
        thinking_outcome=_OUTCOMES[end.outcome],
        usage=usage_to_proto(end.usage),
        early_exit=_early_exit_to_proto(end.early_exit),
    )


def _early_exit_to_proto(report: EarlyExitReport | None) -> pb.EarlyExitResult | None:
    if report is None:
        return None
    return pb.EarlyExitResult(probes=report.probes, saved_reasoning_tokens=report.saved_tokens)


def usage_to_proto(usage: Usage) -> pb.Usage:
    """Return token counts as a message."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.thought_tokens,
        answer_tokens=usage.answer_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        marker_tokens=usage.marker_tokens,
        drafted_tokens=usage.drafted_tokens,
        accepted_tokens=usage.accepted_tokens,
        recomputed_tokens=usage.recomputed_tokens,
        tool_tokens=usage.tool_tokens,
        image_tokens=usage.image_tokens,
        probe_tokens=usage.probe_tokens,
    )


def cost_to_proto(cost: Cost | None) -> pb.Cost | None:
    """Return a cost as a message; None without one."""
    if cost is None:
        return None
    return pb.Cost(
        input_usd_ticks=cost.input_usd_ticks,
        cached_usd_ticks=cost.cached_usd_ticks,
        output_usd_ticks=cost.output_usd_ticks,
        total_usd_ticks=cost.total_usd_ticks,
    )


def timing_to_proto(timing: Timing) -> pb.Timing:
    """Return durations as a message."""
    return pb.Timing(
        queue=duration_to_proto(timing.queue_seconds),
        first_token=duration_to_proto(timing.first_token_seconds),
        first_answer_token=duration_to_proto(timing.first_answer_seconds),
        total=duration_to_proto(timing.total_seconds),
    )


def duration_to_proto(seconds: float | None) -> Duration | None:
    """Return seconds as a duration, rounded to nanoseconds; None for None."""
    if seconds is None:
        return None
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def sampling_to_proto(sampling: Sampling) -> pb.SamplingConfig:
    """Return sampling parameters as a message, without those that are None."""
    set_fields = {name: getattr(sampling, name) for name in _SAMPLING_SCALARS if getattr(sampling, name) is not None}
    return pb.SamplingConfig(**set_fields, logit_bias=dict(sampling.logit_bias))


def effective_settings(plan: GenerationPlan) -> pb.EffectiveSettings:
    """Return the settings that a plan resolved."""
    tools = plan.request.tools
    return pb.EffectiveSettings(
        thinking_mode=MODES_TO_PROTO[plan.choice.mode],
        thinking_budget=plan.budget.thought_tokens,
        answer_reserve=plan.budget.answer_reserve_tokens,
        max_output_tokens=plan.budget.max_output_tokens,
        thinking_reason=plan.budget.reason,
        sampling=sampling_to_proto(plan.sampling),
        window_tokens=plan.context.window_tokens,
        dropped=dropped(plan),
        requested_thinking_mode=(
            MODES_TO_PROTO[plan.requested_mode] if plan.requested_mode else pb.THINKING_MODE_UNSPECIFIED
        ),
        effort=EFFORTS_TO_PROTO[_effort_used(plan)],
        tool_mode=TOOL_MODES_TO_PROTO[tools.mode] if tools.tools else pb.TOOL_MODE_UNSPECIFIED,
        max_tool_calls=plan.max_tool_calls,
        early_exit=EARLY_EXITS_TO_PROTO[plan.early_exit.mode if plan.early_exit is not None else EarlyExit.OFF],
    )


def _effort_used(plan: GenerationPlan) -> Effort | None:
    """Return the effort that the budget came from; None where it came from none."""
    effort = effort_of(plan.request.thinking)
    thinks = plan.choice.mode is ThinkingMode.THINKING
    return effort if effort is not None and thinks is (effort is not Effort.NONE) else None


def dropped(plan: GenerationPlan) -> pb.DroppedContext:
    """Return what was dropped of the prompt."""
    return pb.DroppedContext(tokens=plan.context.dropped_tokens, messages=plan.context.dropped_messages)
