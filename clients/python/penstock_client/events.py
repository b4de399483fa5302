"""The events of a stream, and the reader that makes them.

    Started -> ThoughtDelta* -> ThinkingFinished -> AnswerDelta* -> Finished     (per candidate; candidates interleave)

Where the server's engine is restarted, Interrupted and then Continued stand between them.

Every event has its `sequence` and, beside it, the `response` so far: one object, which grows with the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.errors import BrokenStream
from penstock_client.response import Response
from penstock_client.values import (
    Cost,
    EffectiveSettings,
    InterruptionReason,
    ThinkingOutcome,
    Timing,
    TokenLogprobs,
    Usage,
    from_proto_enum,
)


@dataclass(frozen=True, slots=True)
class _Event:
    sequence: int
    response: Response = field(repr=False)
    proto: pb.GenerationEvent = field(repr=False)
    """The event as it came."""


@dataclass(frozen=True, slots=True)
class Started(_Event):
    """The first event: the request was admitted, and what the server made of it."""

    generation_id: str
    model: str
    effective_settings: EffectiveSettings


@dataclass(frozen=True, slots=True)
class _Delta(_Event):
    candidate_index: int
    """From 0; below the number of candidates that were asked for."""
    text: str
    """The new text only; may be empty."""
    token_count: int
    """Of this delta; may be 0 where only characters were held back."""
    token_ids: tuple[int, ...]
    """Only where `return_token_ids` was asked for."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class ThoughtDelta(_Delta):
    """New text of a candidate's thought."""


@dataclass(frozen=True, slots=True)
class AnswerDelta(_Delta):
    """New text of a candidate's answer."""


@dataclass(frozen=True, slots=True)
class ThinkingFinished(_Event):
    """A candidate's thought is over; its answer comes next. `reasoning_tokens` is what the budget was spent on."""

    candidate_index: int
    outcome: ThinkingOutcome
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Interrupted(_Event):
    """A candidate stands still while the server's engine is restarted. It goes on by itself: no text is lost."""

    candidate_index: int
    reason: InterruptionReason
    expected_seconds: float | None
    """From this event until it is expected to go on; None where the server does not know."""


@dataclass(frozen=True, slots=True)
class Continued(_Event):
    """A candidate goes on, so many seconds after it was interrupted."""

    candidate_index: int
    interrupted_seconds: float


@dataclass(frozen=True, slots=True)
class Finished(_Event):
    """The last event; everything in `response` is final."""

    usage: Usage
    cost: Cost | None
    timing: Timing


DeltaT = TypeVar("DeltaT", ThoughtDelta, AnswerDelta)
Event = Started | ThoughtDelta | AnswerDelta | ThinkingFinished | Interrupted | Continued | Finished


class EventReader:
    """Turns the protos of one stream into events, each exactly once and in order, growing `response`."""

    def __init__(self) -> None:
        self.response = Response()
        self.last_sequence = 0
        self.finished = False

    def resumed(self, request: pb.ResumeRequest) -> None:
        """Says that the stream goes on where another one ended; `response` grows from there."""
        self.last_sequence = request.last_sequence
        self.response.generation_id, self.response.resume_token = request.generation_id, request.resume_token

    def read(self, proto: pb.GenerationEvent) -> Event | None:
        """Return the event, or None for a repeated one and for a kind that this client does not know yet.

        Raises BrokenStream where a sequence number was skipped.
        """
        if proto.sequence <= self.last_sequence:
            return None
        if proto.sequence != self.last_sequence + 1:
            raise BrokenStream(f"event {self.last_sequence + 1} is missing: the next one was {proto.sequence}")
        self.last_sequence = proto.sequence
        return self._event(proto)

    def _event(self, proto: pb.GenerationEvent) -> Event | None:
        match proto.WhichOneof("event"):
            case "started":
                return self._started(proto)
            case "thought":
                return self._delta(ThoughtDelta, proto, proto.thought)
            case "answer":
                return self._delta(AnswerDelta, proto, proto.answer)
            case "thinking_finished":
                return self._thinking_finished(proto)
            case "interrupted":
                return self._interrupted(proto)
            case "continued":
                continued = proto.continued
                index, seconds = continued.candidate_index, continued.interrupted_seconds
                return Continued(proto.sequence, self.response, proto, index, seconds)
            case "finished":
                return self._finished(proto)
            case _:
                return None

    def _started(self, proto: pb.GenerationEvent) -> Started:
        started, response = proto.started, self.response
        response.generation_id = started.generation_id
        response.model = started.model
        response.resume_token = started.resume_token
        response.effective_settings = settings = EffectiveSettings.from_proto(started.effective_settings)
        return Started(proto.sequence, response, proto, started.generation_id, started.model, settings)

    def _delta(self, kind: type[DeltaT], proto: pb.GenerationEvent, delta: pb.Delta) -> DeltaT:
        candidate = self.response.candidate(delta.candidate_index)
        candidate.add_delta(delta, is_thought=kind is ThoughtDelta)
        logprobs = tuple(TokenLogprobs.from_proto(entry) for entry in delta.logprobs)
        ids = tuple(delta.token_ids)
        return kind(
            proto.sequence, self.response, proto, delta.candidate_index, delta.text, delta.token_count, ids, logprobs
        )

    def _thinking_finished(self, proto: pb.GenerationEvent) -> ThinkingFinished:
        ended = proto.thinking_finished
        outcome = from_proto_enum(ThinkingOutcome, pb.ThinkingOutcome, ended.outcome)
        candidate = self.response.candidate(ended.candidate_index)
        candidate.thinking_outcome = outcome
        candidate.reasoning_tokens = ended.reasoning_tokens
        return ThinkingFinished(
            proto.sequence, self.response, proto, ended.candidate_index, outcome, ended.reasoning_tokens
        )

    def _interrupted(self, proto: pb.GenerationEvent) -> Interrupted:
        interrupted = proto.interrupted
        reason = from_proto_enum(InterruptionReason, pb.InterruptionReason, interrupted.reason)
        expected = interrupted.expected_seconds if interrupted.HasField("expected_seconds") else None
        return Interrupted(proto.sequence, self.response, proto, interrupted.candidate_index, reason, expected)

    def _finished(self, proto: pb.GenerationEvent) -> Finished:
        response = self.response
        response.finish(proto.finished)
        self.finished = True
        usage, timing = Usage.from_proto(proto.finished.usage), Timing.from_proto(proto.finished.timing)
        return Finished(proto.sequence, response, proto, usage, response.cost, timing)
