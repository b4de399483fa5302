"""The events of a stream, and the reader that makes them.

    Started -> ThoughtDelta* -> ThinkingFinished -> (AnswerDelta* | tool call)* -> Finished
    a tool call: ToolCallStarted -> ToolCallArguments* -> ToolCallFinished       (per candidate; candidates interleave)

A restart of the server's engine adds Interrupted and then Continued between them.

Every event has its `sequence` and the `response` so far: one object, which grows with the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.errors import BrokenStream
from penstock_client.messages import ToolCall
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


@dataclass(frozen=True, slots=True)
class Started(_Event):
    """The first event: the server accepted the request.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        generation_id: Id of the generation.
        model: Name of the model.
        effective_settings: The settings that the server uses for the request.
    """

    generation_id: str
    model: str
    effective_settings: EffectiveSettings


@dataclass(frozen=True, slots=True)
class _Delta(_Event):
    candidate_index: int
    text: str
    token_count: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class ThoughtDelta(_Delta):
    """New text of a candidate's thought.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        text: The new text only; may be empty.
        token_count: Tokens of this delta; 0 where it has only characters that earlier tokens left over.
        token_ids: The delta's token ids; empty unless the request has `return_token_ids`.
        logprobs: One entry for each token; empty unless the request has `top_logprobs`.
    """


@dataclass(frozen=True, slots=True)
class AnswerDelta(_Delta):
    """New text of a candidate's answer.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        text: The new text only; may be empty.
        token_count: Tokens of this delta; 0 where it has only characters that earlier tokens left over.
        token_ids: The delta's token ids; empty unless the request has `return_token_ids`.
        logprobs: One entry for each token; empty unless the request has `top_logprobs`.
    """


@dataclass(frozen=True, slots=True)
class ThinkingFinished(_Event):
    """A candidate's thought has ended; its answer comes next.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        outcome: How the thought ended.
        reasoning_tokens: Tokens of the thought that count towards the budget.
    """

    candidate_index: int
    outcome: ThinkingOutcome
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCallStarted(_Event):
    """The model began a tool call. Its arguments come next.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        call_index: Index of the call in its candidate, from 0.
        id: The server's id of the call.
        name: Name of the tool, as the model wrote it.
        token_count: Tokens of tool calls since the last event of a tool call.
    """

    candidate_index: int
    call_index: int
    id: str
    name: str
    token_count: int


@dataclass(frozen=True, slots=True)
class ToolCallArguments(_Event):
    """New text of a tool call's arguments.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        call_index: Index of the call in its candidate, from 0.
        json_fragment: The new text only: a piece of JSON. The pieces concatenate to `arguments_json`.
        token_count: Tokens of tool calls since the last event of a tool call.
    """

    candidate_index: int
    call_index: int
    json_fragment: str
    token_count: int


@dataclass(frozen=True, slots=True)
class ToolCallFinished(_Event):
    """A tool call is over: the model ended it, or the output ended inside it.

    The stream goes on: wait for its end before you execute the calls, or cancel the stream.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        call_index: Index of the call in its candidate, from 0.
        call: The call. Execute it only if its status is COMPLETE.
        token_count: Tokens of tool calls since the last event of a tool call.
    """

    candidate_index: int
    call_index: int
    call: ToolCall
    token_count: int


@dataclass(frozen=True, slots=True)
class Interrupted(_Event):
    """A candidate is paused while the server restarts its engine. It continues by itself and no text is lost.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        reason: Why the engine is restarted.
        expected_seconds: Expected time from this event until the candidate continues; None if unknown.
    """

    candidate_index: int
    reason: InterruptionReason
    expected_seconds: float | None


@dataclass(frozen=True, slots=True)
class Continued(_Event):
    """A candidate continues after an interruption.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply so far.
        proto: The event as it came.
        candidate_index: Index of the candidate, from 0.
        interrupted_seconds: Duration of the interruption.
    """

    candidate_index: int
    interrupted_seconds: float


@dataclass(frozen=True, slots=True)
class Finished(_Event):
    """The last event; `response` is complete.

    Attributes:
        sequence: Sequence number of the event, from 1.
        response: The reply.
        proto: The event as it came.
        usage: Token counts of all candidates.
        cost: Cost of the call; None where the server has no price list.
        timing: Times that the server measured.
    """

    usage: Usage
    cost: Cost | None
    timing: Timing


DeltaT = TypeVar("DeltaT", ThoughtDelta, AnswerDelta)
Event = (
    Started
    | ThoughtDelta
    | AnswerDelta
    | ThinkingFinished
    | ToolCallStarted
    | ToolCallArguments
    | ToolCallFinished
    | Interrupted
    | Continued
    | Finished
)


class EventReader:
    """Converts the messages of one stream into events, each exactly once and in order.

    Attributes:
        response: The reply so far.
        last_sequence: Sequence number of the newest event; 0 before the first.
        finished: Whether the last event was read.
    """

    def __init__(self) -> None:
        self.response = Response()
        self.last_sequence = 0
        self.finished = False

    def resumed(self, request: pb.ResumeRequest) -> None:
        """Start after the event `request.last_sequence` of an earlier stream; `response` grows from there."""
        self.last_sequence = request.last_sequence
        self.response.generation_id, self.response.resume_token = request.generation_id, request.resume_token

    def read(self, proto: pb.GenerationEvent) -> Event | None:
        """Return the event, or None for a repeated one and for a kind that this client does not know yet.

        Raises:
            BrokenStream: A sequence number is missing.
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
            case "tool_call_started" | "tool_call_arguments" | "tool_call_finished" as kind:
                return self._tool_call(kind, proto)
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
        index, text, tokens = delta.candidate_index, delta.text, delta.token_count
        ids = tuple(delta.token_ids)
        logprobs: tuple[TokenLogprobs, ...] = ()
        if delta.logprobs:
            logprobs = tuple(TokenLogprobs.from_proto(entry) for entry in delta.logprobs)
        candidate = self.response.candidate(index)
        candidate.add_delta(text, tokens, ids, logprobs, is_thought=kind is ThoughtDelta)
        return kind(proto.sequence, self.response, proto, index, text, tokens, ids, logprobs)

    def _thinking_finished(self, proto: pb.GenerationEvent) -> ThinkingFinished:
        ended = proto.thinking_finished
        outcome = from_proto_enum(ThinkingOutcome, pb.ThinkingOutcome, ended.outcome)
        candidate = self.response.candidate(ended.candidate_index)
        candidate.thinking_outcome = outcome
        candidate.reasoning_tokens = ended.reasoning_tokens
        return ThinkingFinished(
            proto.sequence, self.response, proto, ended.candidate_index, outcome, ended.reasoning_tokens
        )

    def _tool_call(self, kind: str, proto: pb.GenerationEvent) -> Event:
        if kind == "tool_call_started":
            begun = proto.tool_call_started
            index, call_index, tokens = begun.candidate_index, begun.call_index, begun.token_count
            self.response.candidate(index).start_call(begun)
            return ToolCallStarted(
                proto.sequence, self.response, proto, index, call_index, begun.id, begun.name, tokens
            )
        if kind == "tool_call_arguments":
            more = proto.tool_call_arguments
            index, call_index, tokens = more.candidate_index, more.call_index, more.token_count
            self.response.candidate(index).add_arguments(more)
            return ToolCallArguments(
                proto.sequence, self.response, proto, index, call_index, more.json_fragment, tokens
            )
        ended = proto.tool_call_finished
        index, call_index, tokens = ended.candidate_index, ended.call_index, ended.token_count
        call = self.response.candidate(index).finish_call(ended)
        return ToolCallFinished(proto.sequence, self.response, proto, index, call_index, call, tokens)

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
