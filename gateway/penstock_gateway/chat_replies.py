"""Build `chat.completion` objects and their chunks from the service's replies and events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from penstock_client import (
    AnswerDelta,
    Candidate,
    Event,
    Response,
    ToolCallArguments,
    ToolCallStarted,
)

from penstock_gateway import replies
from penstock_gateway.choices import ChoiceChunks


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
        **replies.thought_of(candidate.thought or None),
    }
    if calls:
        message["tool_calls"] = calls
    return {"index": candidate.index, "message": message, "logprobs": _logprobs(candidate)} | replies.ending_of(
        candidate
    )


def _logprobs(candidate: Candidate) -> dict[str, Any] | None:
    if not candidate.answer_logprobs:
        return None
    return {"content": replies.logprobs_of(candidate.answer_logprobs), "refusal": None}


class ChatChunks(ChoiceChunks):
    """Build the chunks of a streamed chat completion."""

    id_prefix, object_name = "chatcmpl-", "chat.completion.chunk"

    def _content(self, **delta: Any) -> dict[str, Any]:
        return {"delta": delta}

    def _opening(self) -> dict[str, Any]:
        return self._content(role="assistant", content="")

    def _answer(self, event: AnswerDelta) -> dict[str, Any]:
        made = self._content(content=event.text)
        if event.logprobs:
            made["logprobs"] = {"content": replies.logprobs_of(event.logprobs), "refusal": None}
        return made

    def _others(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case ToolCallStarted():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call_index, "id": event.id, "type": "function", "function": function}
                yield self._chunk(event.candidate_index, self._content(tool_calls=[call]))
            case ToolCallArguments():
                call = {"index": event.call_index, "function": {"arguments": event.json_fragment}}
                yield self._chunk(event.candidate_index, self._content(tool_calls=[call]))
            case _:  # what OpenAI's format has no chunk for
                return
