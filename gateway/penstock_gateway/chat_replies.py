"""Build `chat.completion` objects and their chunks from the service's replies and events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from penstock_client import (
    AnswerDelta,
    Candidate,
    Continued,
    Event,
    Finished,
    Interrupted,
    Response,
    Started,
    ThinkingFinished,
    ThoughtDelta,
    ToolCallArguments,
    ToolCallStarted,
)

from penstock_gateway import replies


def completion(response: Response) -> dict[str, Any]:
    """Return the `chat.completion` of a complete reply."""
    assert response.usage is not None
    return {
        "id": f"chatcmpl-{response.generation_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model,
        "choices": [_choice(candidate) for candidate in response.candidates],
        "usage": replies.usage_of(response.usage),
        "system_fingerprint": None,
        "penstock": replies.extension(response),
    }


def _choice(candidate: Candidate) -> dict[str, Any]:
    calls = [replies.tool_call(call) for call in candidate.tool_calls]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": candidate.answer or (None if calls else ""),
        "refusal": None,
        **_thought(candidate.thought or None),
    }
    if calls:
        message["tool_calls"] = calls
    made: dict[str, Any] = {
        "index": candidate.index,
        "message": message,
        "logprobs": _logprobs(candidate),
        "finish_reason": replies.finish_reason(candidate),
        "stop_reason": replies.stop_reason(candidate),
    }
    if candidate.answer_token_ids or candidate.thought_token_ids:
        made["token_ids"] = [*candidate.thought_token_ids, *candidate.answer_token_ids]
    return made


def _thought(text: str | None) -> dict[str, Any]:
    """Return the thought under both names: `reasoning_content` is most clients' and `reasoning` is vLLM's."""
    return {"reasoning_content": text, "reasoning": text}


def _logprobs(candidate: Candidate) -> dict[str, Any] | None:
    if not candidate.answer_logprobs:
        return None
    return {"content": replies.logprobs_of(candidate.answer_logprobs), "refusal": None}


class ChatChunks:
    """Build the chunks of one stream.

    Args:
        include_usage: Whether the usage comes in a last chunk of its own, and `usage` is null in the others.
        model: Name of the model, where the stream does not begin with its first event.
        candidates: Number of choices.
    """

    def __init__(self, *, include_usage: bool, model: str = "", candidates: int = 1) -> None:
        self._include_usage = include_usage
        self._candidates = candidates
        self._head: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""
        if not self._head["id"]:
            self._head["id"] = f"chatcmpl-{event.response.generation_id}"
        match event:
            case AnswerDelta():
                yield self._chunk(event.candidate_index, {"content": event.text}, **_of_tokens(event))
            case ThoughtDelta():
                tokens = {"token_ids": list(event.token_ids)} if event.token_ids else {}
                yield self._chunk(event.candidate_index, _thought(event.text), **tokens)
            case ToolCallStarted():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call_index, "id": event.id, "type": "function", "function": function}
                yield self._chunk(event.candidate_index, {"tool_calls": [call]})
            case ToolCallArguments():
                call = {"index": event.call_index, "function": {"arguments": event.json_fragment}}
                yield self._chunk(event.candidate_index, {"tool_calls": [call]})
            case ThinkingFinished():
                yield self._thinking_finished(event)
            case Started():
                yield from self._started(event)
            case Finished():
                yield from self._finished(event)
            case _:  # what OpenAI's format has no chunk for
                return

    def _started(self, event: Started) -> Iterator[dict[str, Any]]:
        self._head["model"] = event.model
        for index in range(self._candidates):
            chunk = self._chunk(index, {"role": "assistant", "content": ""})
            if index == 0:
                chunk["penstock"] = replies.started_extension(event.response)
            yield chunk

    def _thinking_finished(self, event: ThinkingFinished) -> dict[str, Any]:
        chunk = self._chunk(event.candidate_index, {})
        ended = {"outcome": event.outcome, "reasoning_tokens": event.reasoning_tokens}
        chunk["penstock"] = {"thinking_finished": ended}
        return chunk

    def _finished(self, event: Finished) -> Iterator[dict[str, Any]]:
        response = event.response
        for candidate in response.candidates:
            chunk = self._chunk(candidate.index, {}, finish_reason=replies.finish_reason(candidate))
            chunk["choices"][0]["stop_reason"] = replies.stop_reason(candidate)
            if candidate is response.candidates[-1]:
                chunk["penstock"] = replies.extension(response)
            yield chunk
        if self._include_usage:
            yield {**self._head, "choices": [], "usage": replies.usage_of(event.usage)}

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        made = {**self._head, "choices": [choice]}
        if self._include_usage:
            made["usage"] = None
        return made


def _of_tokens(event: AnswerDelta) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if event.logprobs:
        made["logprobs"] = {"content": replies.logprobs_of(event.logprobs), "refusal": None}
    if event.token_ids:
        made["token_ids"] = list(event.token_ids)
    return made


def comment_of(event: Event) -> str:
    """Return the text of a comment for an event that has no chunk; empty where it needs none."""
    match event:
        case Interrupted(reason=reason):
            return f"interrupted: {reason}; the stream continues by itself"
        case Continued(interrupted_seconds=seconds):
            return f"continued after {seconds:.1f} s"
        case _:
            return ""
