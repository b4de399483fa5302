"""A reply, complete or growing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.messages import Message, ToolCall
from penstock_client.values import (
    Cost,
    EffectiveSettings,
    FinishReason,
    ThinkingOutcome,
    Timing,
    TokenLogprobs,
    ToolCallStatus,
    Usage,
    from_proto_enum,
)

ParsedT = TypeVar("ParsedT")


class _Text:
    """A text that grows by parts and is joined when it is read, so that appending takes constant time."""

    __slots__ = ("_parts",)

    def __init__(self, text: str = "") -> None:
        self._parts = [text]

    def add(self, part: str) -> None:
        """Append `part`."""
        self._parts.append(part)

    def __str__(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0]


class _Call:
    """A tool call that grows: INCOMPLETE until its last event."""

    __slots__ = ("_arguments", "_whole", "id", "name")

    def __init__(self, call_id: str = "", name: str = "") -> None:
        self.id, self.name = call_id, name
        self._arguments = _Text()
        self._whole: ToolCall | None = None

    def add(self, fragment: str) -> None:
        """Append to the arguments."""
        self._arguments.add(fragment)

    def finish(self, call: ToolCall) -> None:
        """Replace it by the whole call."""
        self._whole = call

    @property
    def call(self) -> ToolCall:
        """The call so far."""
        return self._whole or ToolCall(self.id, self.name, str(self._arguments), ToolCallStatus.INCOMPLETE)


class Candidate:
    """One output. In a stream it grows; `finish_reason` and `usage` come with the last event.

    Attributes:
        index: Index of the candidate, from 0.
        reasoning_tokens: Tokens of the thought so far.
        answer_tokens: Tokens of the answer so far.
        tool_tokens: Tokens of the tool calls so far.
        thought_token_ids: Token ids of the thought; empty unless the request has `return_token_ids`.
        answer_token_ids: Token ids of the answer; empty unless the request has `return_token_ids`.
        thought_logprobs: Log probabilities of the thought; empty unless the request has `top_logprobs`.
        answer_logprobs: Log probabilities of the answer; empty unless the request has `top_logprobs`.
        thinking_outcome: How the thought ended; None before.
        finish_reason: Why the output ended; None before.
        matched_stop: The stop string or token that ended the answer; empty for other reasons.
        usage: Token counts; None before the end.
        probes: Number of probes of early exit that read the answer's beginning.
        saved_reasoning_tokens: Estimate of the thought tokens that early exit saved; None where it saved none, or too
            little is known.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._thought = _Text()
        self._answer = _Text()
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        self.tool_tokens = 0
        self._calls: dict[int, _Call] = {}
        self.thought_token_ids: list[int] = []
        self.answer_token_ids: list[int] = []
        self.thought_logprobs: list[TokenLogprobs] = []
        self.answer_logprobs: list[TokenLogprobs] = []
        self.thinking_outcome: ThinkingOutcome | None = None
        self.finish_reason: FinishReason | None = None
        self.matched_stop = ""
        self.usage: Usage | None = None
        self.probes = 0
        self.saved_reasoning_tokens: int | None = None

    @property
    def thought(self) -> str:
        """The thought so far."""
        return str(self._thought)

    @property
    def answer(self) -> str:
        """The answer so far."""
        return str(self._answer)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order. Execute only those whose status is COMPLETE."""
        return tuple(self._calls[index].call for index in sorted(self._calls))

    @property
    def message(self) -> Message:
        """The output as a message of the history, with its thought and its tool calls.

        A call that is not COMPLETE is in it with empty arguments, because no request can hold half of one: answer it
        with an error result.
        """
        calls = [
            call if call.status is ToolCallStatus.COMPLETE else ToolCall(call.id, call.name or "unknown")
            for call in self.tool_calls
        ]
        return Message.assistant(self.answer, thought=self.thought, tool_calls=calls)

    def parse(self, kind: type[ParsedT]) -> ParsedT:
        """Return the answer as a value of a type that pydantic knows, such as a model.

        Raises:
            ImportError: pydantic is not installed.
            UnparsableAnswer: The answer is not a value of the type.
        """
        from penstock_client import structured

        made: ParsedT = structured.parse(kind, self.answer, self.finish_reason)
        return made

    def start_call(self, started: pb.ToolCallStarted) -> None:
        """Add a tool call that begins."""
        self._calls[started.call_index] = _Call(started.id, started.name)
        self.tool_tokens += started.token_count

    def add_arguments(self, more: pb.ToolCallArguments) -> None:
        """Append to the arguments of a tool call."""
        self._calls.setdefault(more.call_index, _Call()).add(more.json_fragment)
        self.tool_tokens += more.token_count

    def finish_call(self, finished: pb.ToolCallFinished) -> ToolCall:
        """Set a tool call that is over, and return it."""
        call = ToolCall.from_proto(finished.call)
        self._calls.setdefault(finished.call_index, _Call()).finish(call)
        self.tool_tokens += finished.token_count
        return call

    def add_delta(
        self, text: str, tokens: int, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], *, is_thought: bool
    ) -> None:
        """Append one delta of the stream to the thought or to the answer."""
        if is_thought:
            self._thought.add(text)
            self.reasoning_tokens += tokens
            self.thought_token_ids += ids
            self.thought_logprobs += logprobs
        else:
            self._answer.add(text)
            self.answer_tokens += tokens
            self.answer_token_ids += ids
            self.answer_logprobs += logprobs

    def finish(self, result: pb.CandidateResult) -> None:
        """Set the values that come with the last event."""
        self.finish_reason = from_proto_enum(FinishReason, pb.FinishReason, result.finish_reason)
        self.thinking_outcome = from_proto_enum(ThinkingOutcome, pb.ThinkingOutcome, result.thinking_outcome)
        self.matched_stop = result.matched_stop
        self.usage = Usage.from_proto(result.usage)
        self.probes = result.early_exit.probes
        if result.early_exit.HasField("saved_reasoning_tokens"):
            self.saved_reasoning_tokens = result.early_exit.saved_reasoning_tokens
        self.reasoning_tokens = self.usage.reasoning_tokens
        self.answer_tokens = self.usage.answer_tokens
        self.tool_tokens = self.usage.tool_tokens

    @classmethod
    def from_proto(cls, candidate: pb.Candidate) -> Self:
        """Convert a complete candidate."""
        self = cls(candidate.result.candidate_index)
        self._thought = _Text(candidate.thought)
        self._answer = _Text(candidate.answer)
        self.thought_token_ids = list(candidate.thought_token_ids)
        self.answer_token_ids = list(candidate.answer_token_ids)
        self.thought_logprobs = [TokenLogprobs.from_proto(entry) for entry in candidate.thought_logprobs]
        self.answer_logprobs = [TokenLogprobs.from_proto(entry) for entry in candidate.answer_logprobs]
        for index, call in enumerate(candidate.tool_calls):
            self.finish_call(pb.ToolCallFinished(call_index=index, call=call))
        self.finish(candidate.result)
        return self


class Response:
    """A reply. `generate` returns a complete one; in a stream, every event carries the same growing one.

    `thought`, `answer`, `tool_calls`, `message`, `parsed`, `finish_reason` and `thinking_outcome` are of the first
    candidate.

    Attributes:
        generation_id: Id of the generation.
        model: Name of the model.
        resume_token: Token that `client.resume` needs; empty if the generation is not resumable.
        candidates: The outputs.
        usage: Token counts of all candidates; None before the end.
        cost: Cost of the call; None before the end, and where the server has no price list.
        timing: Times that the server measured; None before the end.
        effective_settings: The settings that the server uses; None before the first event.
        rate_limits: The caller's limits and what is left of them, such as `remaining-requests`; empty before the end,
            and where the server does not send them.
        raw: The message that `generate` received; None in a stream.
        response_format: The type that the request asked the answer to have, or None.
    """

    def __init__(self) -> None:
        self.generation_id = ""
        self.model = ""
        self.resume_token = ""
        self.candidates: list[Candidate] = []
        self.usage: Usage | None = None
        self.cost: Cost | None = None
        self.timing: Timing | None = None
        self.effective_settings: EffectiveSettings | None = None
        self.rate_limits: Mapping[str, str] = {}
        self.response_format: Any = None
        self.raw: pb.GenerateResponse | None = None

    def candidate(self, index: int) -> Candidate:
        """Return the candidate with this index; add it, and those before it, if it has no event yet."""
        while len(self.candidates) <= index:
            self.candidates.append(Candidate(len(self.candidates)))
        return self.candidates[index]

    @property
    def thought(self) -> str:
        """The first candidate's thought."""
        return self.candidate(0).thought

    @property
    def answer(self) -> str:
        """The first candidate's answer."""
        return self.candidate(0).answer

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first candidate's tool calls so far. Execute only those whose status is COMPLETE."""
        return self.candidate(0).tool_calls

    @property
    def message(self) -> Message:
        """The first candidate's output as a message of the history; see `Candidate.message`."""
        return self.candidate(0).message

    @property
    def parsed(self) -> Any:
        """The first candidate's answer as a value of the request's `response_format`.

        Raises:
            UnparsableAnswer: The answer is not a value of that type, for instance because it was cut.
            ValueError: The request had no `response_format`.
        """
        if self.response_format is None:
            raise ValueError("the request had no response_format; use reply.parse(SomeType)")
        return self.parse(self.response_format)

    def parse(self, kind: type[ParsedT]) -> ParsedT:
        """Return the first candidate's answer as a value of a type; see `Candidate.parse`."""
        return self.candidate(0).parse(kind)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first candidate ended; None before."""
        return self.candidate(0).finish_reason

    @property
    def thinking_outcome(self) -> ThinkingOutcome | None:
        """How the first candidate's thought ended; None before."""
        return self.candidate(0).thinking_outcome

    @property
    def output_tokens_per_second(self) -> float | None:
        """Speed after the first token, as the server measured it; None before the end or for fewer than two tokens."""
        if self.usage is None or self.timing is None or self.timing.first_token_seconds is None:
            return None
        seconds = self.timing.total_seconds - self.timing.first_token_seconds
        tokens = self.usage.output_tokens - 1
        return tokens / seconds if seconds > 0 and tokens > 0 else None

    def __repr__(self) -> str:
        return f"<Response {self.generation_id!r} thought={self.thought!r} answer={self.answer!r}>"

    @classmethod
    def from_proto(cls, reply: pb.GenerateResponse) -> Self:
        """Convert a complete reply."""
        self = cls()
        self.raw = reply
        self.generation_id = reply.generation_id
        self.model = reply.model
        self.candidates = [Candidate.from_proto(candidate) for candidate in reply.candidates]
        self.usage = Usage.from_proto(reply.usage)
        self.cost = Cost.from_proto(reply.cost) if reply.HasField("cost") else None
        self.timing = Timing.from_proto(reply.timing)
        self.effective_settings = EffectiveSettings.from_proto(reply.effective_settings)
        return self

    def finish(self, finished: pb.GenerationFinished) -> None:
        """Set the values that come with the last event."""
        for result in finished.results:
            self.candidate(result.candidate_index).finish(result)
        self.usage = Usage.from_proto(finished.usage)
        self.cost = Cost.from_proto(finished.cost) if finished.HasField("cost") else None
        self.timing = Timing.from_proto(finished.timing)
        self.effective_settings = EffectiveSettings.from_proto(finished.effective_settings)
