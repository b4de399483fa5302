"""Build `response` objects and the events of their streams from the service's replies and events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import penstock_client
from penstock_client import (
    AnswerDelta,
    Candidate,
    Event,
    Finished,
    FinishReason,
    Started,
    ThinkingFinished,
    ThinkingOutcome,
    ThoughtDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
    Usage,
)

from penstock_gateway import replies
from penstock_gateway.errors import RATE_LIMIT, REQUEST, ErrorReply
from penstock_gateway.response_output import Events, Output, Status
from penstock_gateway.streams import StreamFormat

_INCOMPLETE: Mapping[FinishReason, str | None] = {
    FinishReason.MAX_OUTPUT_TOKENS: "max_output_tokens",
    FinishReason.CANCELLED: "steered",
    FinishReason.DRAINED: None,
}
"""Why a response is incomplete, by how its output ended; others are complete."""
_CUT_THOUGHTS = (ThinkingOutcome.MAX_OUTPUT_TOKENS, ThinkingOutcome.CANCELLED)
_ERROR_CODES = {RATE_LIMIT: "rate_limit_exceeded", REQUEST: "invalid_prompt"}


class ResponseObject:
    """Build the `response` object of one generation.

    Args:
        response: The reply, complete or growing.
        echo: The fields that repeat the request.
    """

    def __init__(self, response: penstock_client.Response, echo: Mapping[str, Any]) -> None:
        self._response = response
        self._echo = echo
        self._created_at = int(time.time())

    def running(self) -> dict[str, Any]:
        """Return the object before its end."""
        return self._made("in_progress", []) | {"penstock": replies.started_extension(self._response)}

    def ended(self, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the object at its end."""
        made = self._made(_last_status(self._response.candidate(0)), output)
        reason = self._response.candidate(0).finish_reason
        if reason is not None and reason in _INCOMPLETE:
            made["incomplete_details"] = {"reason": _INCOMPLETE[reason]}
        else:
            made["completed_at"] = int(time.time())
        if self._response.usage is not None:
            made["usage"] = _usage_of(self._response.usage)
        return made | {"penstock": replies.extension(self._response)}

    def failed(self, reply: ErrorReply, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the object where an error ended it. The error has our own, whole, beside OpenAI's code."""
        error = reply.body["error"]
        told = {"code": _ERROR_CODES.get(error["type"], "server_error"), "message": error["message"]}
        ours = {"code": error["code"], "param": error["param"], **error["penstock"]}
        return self._made("failed", output) | {"error": {**told, "penstock": ours}}

    def _made(self, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        settings = self._response.effective_settings
        sampling = settings.sampling if settings is not None else {}
        used = {name: sampling.get(name) for name in ("temperature", "top_p") if self._echo[name] is None}
        return {
            "id": f"resp_{self._response.generation_id}",
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "completed_at": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "conversation": None,
            **self._echo,
            **used,
            "model": self._response.model,
            "output": list(output),
            "usage": None,
        }


def _usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def response_of(response: penstock_client.Response, echo: Mapping[str, Any], *, has_summary: bool) -> dict[str, Any]:
    """Return the `response` of a complete reply."""
    candidate = response.candidate(0)
    output = Output(response.generation_id, has_summary=has_summary)
    for _ in _events_of(candidate, output):
        pass
    return ResponseObject(response, echo).ended(output.items)


def _events_of(candidate: Candidate, output: Output) -> Events:
    yield from output.add_thought(candidate.thought)
    yield from output.end("incomplete" if candidate.thinking_outcome in _CUT_THOUGHTS else "completed")
    yield from output.add_answer(candidate.answer, candidate.answer_logprobs)
    for call in candidate.tool_calls:
        yield from output.finish_call(call)
    yield from output.end(_last_status(candidate))


def _last_status(candidate: Candidate) -> Status:
    return "incomplete" if candidate.finish_reason in _INCOMPLETE else "completed"


class ResponseEvents(StreamFormat):
    """Build the events of one stream.

    Args:
        echo: The fields of the `response` that repeat the request.
        has_summary: Whether the thought is sent as a summary.
        model: Name of the model, where the stream does not begin with its first event.
    """

    end = b""
    is_named = True
    needs_start = True

    def __init__(self, echo: Mapping[str, Any], *, has_summary: bool) -> None:
        self._echo = echo
        self._has_summary = has_summary
        self._sequence_number = 0
        self._object: ResponseObject | None = None
        self._output = Output("", has_summary=has_summary)

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the events for one of the service's."""
        for made in self._of(event):
            yield self._numbered(made)

    def failed(self, reply: ErrorReply) -> Mapping[str, Any]:
        """Return the last event of a stream that an error ended."""
        assert self._object is not None
        return self._numbered({"type": "response.failed", "response": self._object.failed(reply, self._output.items)})

    def _numbered(self, made: dict[str, Any]) -> dict[str, Any]:
        made["sequence_number"] = self._sequence_number
        self._sequence_number += 1
        return made

    def _of(self, event: Event) -> Events:
        output = self._output
        match event:
            case AnswerDelta():
                yield from output.add_answer(event.text, event.logprobs)
            case ThoughtDelta():
                yield from output.add_thought(event.text)
            case ThinkingFinished():
                yield from output.end("incomplete" if event.outcome in _CUT_THOUGHTS else "completed")
            case ToolCallStarted():
                yield from output.start_call(ToolCall(event.id, event.name))
            case ToolCallArguments():
                yield from output.add_arguments(event.json_fragment)
            case ToolCallFinished():
                yield from output.finish_call(event.call)
            case Started():
                yield from self._started(event)
            case Finished():
                yield from self._finished(event)
            case _:  # what OpenAI's format has no event for
                return

    def _started(self, event: Started) -> Events:
        self._object = ResponseObject(event.response, self._echo)
        self._output = Output(event.generation_id, has_summary=self._has_summary)
        for name in ("response.created", "response.in_progress"):
            yield {"type": name, "response": self._object.running()}

    def _finished(self, event: Finished) -> Events:
        assert self._object is not None
        yield from self._output.end(_last_status(event.response.candidate(0)))
        made = self._object.ended(self._output.items)
        yield {"type": f"response.{made['status']}", "response": made}
