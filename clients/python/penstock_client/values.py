"""Frozen values that the service measures and decides, converted from the protos.

Counts are tokens, durations are seconds, money is integer ticks of 1e-10 USD with a `Decimal` beside it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, TypeVar

from penstock_proto.v1 import generation_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

USD_PER_TICK = Decimal("1e-10")


def usd_from_ticks(ticks: int) -> Decimal:
    """Convert integer ticks of 1e-10 USD to exact USD."""
    return ticks * USD_PER_TICK


class ThinkingMode(enum.StrEnum):
    """Whether the model thinks before it answers. With AUTO the server decides, and chooses the budget."""

    FAST = "fast"
    THINKING = "thinking"
    AUTO = "auto"
    UNKNOWN = "unknown"
    """Unset, or from a newer server. A request cannot use it."""


class ThinkingOutcome(enum.StrEnum):
    """How a thought ended."""

    DISABLED = "disabled"
    NATURAL_END = "natural_end"
    BUDGET_REACHED = "budget_reached"
    FINISHED_BY_CLIENT = "finished_by_client"
    DEADLINE = "deadline"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"
    STOP_PATTERN = "stop_pattern"
    CONVERGED = "converged"
    UNKNOWN = "unknown"


class InterruptionReason(enum.StrEnum):
    """Why a stream is interrupted."""

    ENGINE_DIED = "engine_died"
    ENGINE_HUNG = "engine_hung"
    UNKNOWN = "unknown"


class FinishReason(enum.StrEnum):
    """Why the output ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"
    DRAINED = "drained"
    TOOL_CALLS = "tool_calls"
    UNKNOWN = "unknown"


class ToolCallStatus(enum.StrEnum):
    """Whether a tool call is whole. One that is not COMPLETE must not be executed."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    UNKNOWN = "unknown"


class ToolMode(enum.StrEnum):
    """Whether the model calls tools."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"
    VALIDATED = "validated"
    UNKNOWN = "unknown"


class Effort(enum.StrEnum):
    """How hard the model thinks."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    UNKNOWN = "unknown"


class EarlyExit(enum.StrEnum):
    """Name what ends a thought before its budget, the cheapest first."""

    OFF = "off"
    MARKER = "marker"
    PROBE = "probe"
    UNKNOWN = "unknown"


class GenerationPhase(enum.StrEnum):
    """How far a generation is."""

    WAITING = "waiting"
    THINKING = "thinking"
    ANSWERING = "answering"
    UNKNOWN = "unknown"


EnumT = TypeVar(
    "EnumT",
    ThinkingMode,
    ThinkingOutcome,
    FinishReason,
    InterruptionReason,
    ToolCallStatus,
    ToolMode,
    EarlyExit,
    Effort,
    GenerationPhase,
)


def from_proto_enum(kind: type[EnumT], wrapper: Any, number: int) -> EnumT:
    """Return the value for a proto enum's number; UNKNOWN for a number that this client does not know."""
    if number not in wrapper.values():
        return kind["UNKNOWN"]
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", wrapper.DESCRIPTOR.name).upper() + "_"
    return kind.__members__.get(wrapper.Name(number).removeprefix(prefix), kind["UNKNOWN"])


def thinking_mode(number: int) -> ThinkingMode:
    """Return the mode for its number in the proto."""
    return from_proto_enum(ThinkingMode, pb.ThinkingMode, number)


@dataclass(frozen=True, slots=True)
class Steered:
    """Hold what is true after a generation was steered.

    Attributes:
        applied: Whether the action changes what the generation does. False once every answer has begun, where there is
            no thought, and after a cancel.
        phase: How far the generation was when the action came: WAITING is without a token.
        thinking_budget: Most thought tokens of each candidate from now on, as the server bounds it. None while the
            generation waits for a place.
        reasoning_tokens: Thought tokens so far, over all candidates.
    """

    applied: bool
    phase: GenerationPhase
    thinking_budget: int | None
    reasoning_tokens: int

    @classmethod
    def from_proto(cls, reply: pb.SteerResponse) -> Self:
        """Return the value for a proto."""
        return cls(
            applied=reply.applied,
            phase=from_proto_enum(GenerationPhase, pb.GenerationPhase, reply.phase),
            thinking_budget=reply.thinking_budget if reply.HasField("thinking_budget") else None,
            reasoning_tokens=reply.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of the prompt that came from the prefix cache.
        reasoning_tokens: Tokens of the thought.
        answer_tokens: Tokens of the answer.
        output_tokens: `reasoning_tokens + answer_tokens + tool_tokens`, billed as output.
        total_tokens: `prompt_tokens + output_tokens`.
        marker_tokens: Closing markers and messages, generated or forced; not part of output_tokens and not billed.
        drafted_tokens: Tokens that speculative decoding proposed; None without it.
        accepted_tokens: Proposed tokens that the model accepted; None without speculative decoding.
        recomputed_tokens: Tokens that the engine computed again for continuations; not billed.
        tool_tokens: Tokens of tool calls.
        image_tokens: Part of `prompt_tokens` that stands for images.
        probe_tokens: Tokens that the engine computed for probes of early exit; not billed.
    """

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    output_tokens: int
    total_tokens: int
    marker_tokens: int
    drafted_tokens: int | None
    accepted_tokens: int | None
    recomputed_tokens: int
    tool_tokens: int = 0
    image_tokens: int = 0
    probe_tokens: int = 0

    @classmethod
    def sum(cls, parts: Iterable[Usage]) -> Self:
        """Return the counts of several calls together; None where no call has the count."""
        listed = list(parts)
        counts = {one.name: [getattr(part, one.name) for part in listed] for one in fields(cls)}
        optional = ("drafted_tokens", "accepted_tokens")
        known = {name: [count for count in found if count is not None] for name, found in counts.items()}
        sums: dict[str, Any] = {
            name: sum(found) if found or name not in optional else None for name, found in known.items()
        }
        return cls(**sums)

    @classmethod
    def from_proto(cls, usage: pb.Usage) -> Self:
        """Convert the message."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            answer_tokens=usage.answer_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
            marker_tokens=usage.marker_tokens,
            drafted_tokens=usage.drafted_tokens if usage.HasField("drafted_tokens") else None,
            accepted_tokens=usage.accepted_tokens if usage.HasField("accepted_tokens") else None,
            recomputed_tokens=usage.recomputed_tokens,
            tool_tokens=usage.tool_tokens,
            image_tokens=usage.image_tokens,
            probe_tokens=usage.probe_tokens,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a call, in ticks of 1e-10 USD.

    Attributes:
        input_usd_ticks: Cost of input tokens that were not cached.
        cached_usd_ticks: Cost of input tokens from the prefix cache.
        output_usd_ticks: Cost of output tokens.
        total_usd_ticks: The sum.
    """

    input_usd_ticks: int
    cached_usd_ticks: int
    output_usd_ticks: int
    total_usd_ticks: int

    @property
    def usd(self) -> Decimal:
        """The exact total in USD."""
        return usd_from_ticks(self.total_usd_ticks)

    @classmethod
    def sum(cls, parts: Iterable[Cost]) -> Self:
        """Return the cost of several calls together."""
        listed = list(parts)
        return cls(**{one.name: sum(getattr(part, one.name) for part in listed) for one in fields(cls)})

    @classmethod
    def from_proto(cls, cost: pb.Cost) -> Self:
        """Convert the message."""
        return cls(cost.input_usd_ticks, cost.cached_usd_ticks, cost.output_usd_ticks, cost.total_usd_ticks)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9


@dataclass(frozen=True, slots=True)
class Timing:
    """Times that the server measured, in seconds.

    Attributes:
        queue_seconds: Time in the queue.
        first_token_seconds: From the call's arrival to the first token; None without tokens.
        first_answer_token_seconds: From the call's arrival to the answer's first token; None without an answer.
        total_seconds: From the call's arrival to the end.
    """

    queue_seconds: float
    first_token_seconds: float | None
    first_answer_token_seconds: float | None
    total_seconds: float

    @classmethod
    def from_proto(cls, timing: pb.Timing) -> Self:
        """Convert the message."""
        return cls(
            queue_seconds=_seconds(timing.queue),
            first_token_seconds=_seconds(timing.first_token) if timing.HasField("first_token") else None,
            first_answer_token_seconds=(
                _seconds(timing.first_answer_token) if timing.HasField("first_answer_token") else None
            ),
            total_seconds=_seconds(timing.total),
        )


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings that the server uses for a request, after defaults and planning.

    Attributes:
        thinking_mode: The mode, after AUTO was decided.
        thinking_budget: Thought tokens; -1 is no limit.
        answer_reserve: Output tokens kept for the answer.
        max_output_tokens: Highest number of output tokens.
        thinking_reason: Why the server chose the mode and the budget.
        sampling: The sampling parameters by proto field name.
        window_tokens: Highest number of tokens of prompt plus output.
        dropped_tokens: Tokens that the overflow policy dropped.
        dropped_messages: Messages that the overflow policy dropped.
        requested_thinking_mode: The mode of the request; UNKNOWN for raw input that named none.
        effort: The effort that the budget came from; UNKNOWN where it came from none.
        tool_mode: Whether the model calls tools; UNKNOWN where the request has none.
        max_tool_calls: Most tool calls of each candidate; 0 where there can be none.
    """

    thinking_mode: ThinkingMode
    thinking_budget: int
    answer_reserve: int
    max_output_tokens: int
    thinking_reason: str
    sampling: Mapping[str, object]
    window_tokens: int
    dropped_tokens: int
    dropped_messages: int
    requested_thinking_mode: ThinkingMode
    effort: Effort = Effort.UNKNOWN
    tool_mode: ToolMode = ToolMode.UNKNOWN
    max_tool_calls: int = 0

    @classmethod
    def from_proto(cls, settings: pb.EffectiveSettings) -> Self:
        """Convert the message."""
        return cls(
            thinking_mode=thinking_mode(settings.thinking_mode),
            thinking_budget=settings.thinking_budget,
            answer_reserve=settings.answer_reserve,
            max_output_tokens=settings.max_output_tokens,
            thinking_reason=settings.thinking_reason,
            sampling=sampling_from_proto(settings.sampling),
            window_tokens=settings.window_tokens,
            dropped_tokens=settings.dropped.tokens,
            dropped_messages=settings.dropped.messages,
            requested_thinking_mode=thinking_mode(settings.requested_thinking_mode),
            effort=from_proto_enum(Effort, pb.Effort, settings.effort),
            tool_mode=from_proto_enum(ToolMode, pb.ToolMode, settings.tool_mode),
            max_tool_calls=settings.max_tool_calls,
        )


def sampling_from_proto(sampling: pb.SamplingConfig) -> Mapping[str, object]:
    """Return the fields that are set, by proto field name."""
    return {
        field.name: dict(sampling.logit_bias) if field.name == "logit_bias" else value
        for field, value in sampling.ListFields()
    }


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its probability.

    Attributes:
        token_id: Id of the token.
        logprob: Natural logarithm of the probability.
        token_bytes: Bytes of the token; may be a part of a character.
    """

    token_id: int
    logprob: float
    token_bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The generated token and the most likely ones.

    Attributes:
        sampled: The generated token.
        top: The most likely tokens, most likely first.
    """

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...]

    @classmethod
    def from_proto(cls, logprobs: pb.TokenLogprobs) -> Self:
        """Convert the message."""
        return cls(_logprob(logprobs.sampled), tuple(_logprob(top) for top in logprobs.top))


def _logprob(entry: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token_id, entry.logprob, entry.token_bytes)
