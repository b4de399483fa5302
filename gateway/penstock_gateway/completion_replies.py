"""Build `text_completion` objects and their chunks from the service's replies and events."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Any

from penstock_client import AnswerDelta, Candidate, Response, TokenLogprob, TokenLogprobs

from penstock_gateway import replies
from penstock_gateway.choices import ChoiceChunks

ID_PREFIX, OBJECT = "cmpl-", "text_completion"


def completion(responses: Sequence[Response], echoed: Sequence[str], request_id: str) -> dict[str, Any]:
    """Return the `text_completion` of the complete replies to all prompts.

    Args:
        responses: One for each prompt.
        echoed: What the texts of each prompt begin with.
        request_id: Id of the request, of which the object's id is made where there are several prompts.
    """
    first = responses[0]
    is_single = len(responses) == 1
    choices = [
        _choice(candidate, text)
        for response, text in zip(responses, echoed, strict=True)
        for candidate in response.candidates
    ]
    for index, choice in enumerate(choices):
        choice["index"] = index
    extensions = [replies.extension(response) for response in responses]
    return {
        "id": f"{ID_PREFIX}{first.generation_id if is_single else request_id}",
        "object": OBJECT,
        "created": int(time.time()),
        "model": first.model,
        "choices": choices,
        "usage": replies.usage_of(*(response.usage for response in responses if response.usage is not None)),
        "system_fingerprint": None,
        "penstock": extensions[0] if is_single else {"prompts": extensions},
    }


def _choice(candidate: Candidate, echoed: str) -> dict[str, Any]:
    logprobs = TextLogprobs().of(candidate.answer_logprobs) if candidate.answer_logprobs else None
    thought = replies.thought_of(candidate.thought) if candidate.thought else {}
    return {
        "index": candidate.index,
        "text": echoed + candidate.answer,
        **thought,
        "logprobs": logprobs,
        **replies.ending_of(candidate),
    }


class TextLogprobs:
    """Build the `logprobs` of one choice, in the form of text completions: lists with one entry for each token."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def of(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Return the lists for the next tokens. Places in the text are characters from the start of the choice."""
        offsets = []
        for entry in entries:
            offsets.append(self._characters)
            self._characters += len(self._decoder.decode(entry.sampled.token_bytes))
        return {
            "tokens": [_token(entry.sampled) for entry in entries],
            "token_logprobs": [entry.sampled.logprob for entry in entries],
            "top_logprobs": [{_token(one): one.logprob for one in (*entry.top, entry.sampled)} for entry in entries],
            "text_offset": offsets,
        }


def _token(one: TokenLogprob) -> str:
    r"""Return a token's text; as OpenAI does, `bytes:\xe2\x80` where it is a part of a character."""
    try:
        return one.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.token_bytes)


class CompletionChunks(ChoiceChunks):
    """Build the chunks of a streamed text completion.

    Args:
        include_usage: Whether the usage comes in a last chunk of its own, and `usage` is null in the others.
        has_logprobs: Whether the request asked for log probabilities.
        model: Name of the model, where the stream does not begin with its first event.
        candidates: Number of choices.
        first_index: Index of the first choice.
        echoed: What each choice begins with.
        part_of: Id of the request, of which the stream is one of several; it has no usage of its own.
    """

    id_prefix, object_name = ID_PREFIX, OBJECT

    # One parameter for each thing that a stream may have.
    def __init__(
        self,
        *,
        include_usage: bool,
        has_logprobs: bool = False,
        model: str = "",
        candidates: int = 1,
        first_index: int = 0,
        echoed: str = "",
        part_of: str = "",
    ) -> None:
        super().__init__(include_usage=include_usage, model=model, candidates=candidates, first_index=first_index)
        self.needs_start = has_logprobs
        self._echoed = echoed
        self._logprobs: dict[int, TextLogprobs] = {}
        if part_of:
            self._head["id"] = f"{ID_PREFIX}{part_of}"
            self._is_part = True

    def _content(self, **content: Any) -> dict[str, Any]:
        return {"text": "", **content}

    def _opening(self) -> dict[str, Any]:
        return self._content(text=self._echoed)

    def _answer(self, event: AnswerDelta) -> dict[str, Any]:
        made = self._content(text=event.text)
        if event.logprobs:
            logprobs = self._logprobs.setdefault(event.candidate_index, TextLogprobs())
            made["logprobs"] = logprobs.of(event.logprobs)
        return made
