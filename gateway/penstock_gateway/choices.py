"""Build the chunks of streams that have choices: what chat completions and text completions share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from penstock_client import AnswerDelta, Event, Finished, Started, ThinkingFinished, ThoughtDelta

from penstock_gateway import replies
from penstock_gateway.streams import StreamFormat


class ChoiceChunks(StreamFormat):
    """Build the chunks of one stream.

    Args:
        include_usage: Whether the usage comes in a last chunk of its own, and `usage` is null in the others.
        model: Name of the model, where the stream does not begin with its first event.
        candidates: Number of choices.
        first_index: Index of the first choice.
    """

    id_prefix, object_name = "", ""
    _is_part = False
    """Whether the stream is one of several of a request, and the usage of all comes after them."""

    def __init__(self, *, include_usage: bool, model: str = "", candidates: int = 1, first_index: int = 0) -> None:
        self._include_usage = include_usage
        self._candidates = candidates
        self._first_index = first_index
        self._head: dict[str, Any] = {
            "id": "",
            "object": self.object_name,
            "created": int(time.time()),
            "model": model,
        }

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""
        if not self._head["id"]:
            self._head["id"] = f"{self.id_prefix}{event.response.generation_id}"
        match event:
            case AnswerDelta():
                yield self._chunk(event.candidate_index, self._answer(event) | _token_ids(event))
            case ThoughtDelta():
                thought = self._content(**replies.thought_of(event.text))
                yield self._chunk(event.candidate_index, thought | _token_ids(event))
            case ThinkingFinished():
                yield self._thinking_finished(event)
            case Started():
                yield from self._started(event)
            case Finished():
                yield from self._finished(event)
            case _:
                yield from self._others(event)

    def _content(self, **content: Any) -> dict[str, Any]:
        """Return the part of a choice that holds new text."""
        raise NotImplementedError

    def _opening(self) -> dict[str, Any]:
        """Return the content of a choice's first chunk."""
        raise NotImplementedError

    def _answer(self, event: AnswerDelta) -> dict[str, Any]:
        """Return the content, and the log probabilities where there are some, of new text of the answer."""
        raise NotImplementedError

    def _others(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an event that not all formats have."""
        yield from ()

    def _started(self, event: Started) -> Iterator[dict[str, Any]]:
        self._head["model"] = event.model
        for index in range(self._candidates):
            chunk = self._chunk(index, self._opening())
            if index == 0:
                chunk["penstock"] = replies.started_extension(event.response)
            yield chunk

    def _thinking_finished(self, event: ThinkingFinished) -> dict[str, Any]:
        chunk = self._chunk(event.candidate_index, self._content())
        ended = {"outcome": event.outcome, "reasoning_tokens": event.reasoning_tokens}
        chunk["penstock"] = {"thinking_finished": ended}
        return chunk

    def _finished(self, event: Finished) -> Iterator[dict[str, Any]]:
        response = event.response
        for candidate in response.candidates:
            ended = {"finish_reason": replies.finish_reason(candidate), "stop_reason": replies.stop_reason(candidate)}
            chunk = self._chunk(candidate.index, self._content() | ended)
            if candidate is response.candidates[-1]:
                chunk["penstock"] = replies.extension(response)
            yield chunk
        if self._include_usage and not self._is_part:
            yield self.usage_chunk(replies.usage_of(event.usage))

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the last chunk, which has the usage alone."""
        return {**self._head, "choices": [], "usage": usage}

    def _chunk(self, index: int, content: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": self._first_index + index, "logprobs": None, "finish_reason": None, **content}
        made = {**self._head, "choices": [choice]}
        if self._include_usage:
            made["usage"] = None
        return made


def _token_ids(event: AnswerDelta | ThoughtDelta) -> dict[str, Any]:
    return {"token_ids": list(event.token_ids)} if event.token_ids else {}
