"""Build the output items of `/v1/responses`, and the events that tell how they grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Raw
from penstock_client import TokenLogprobs, ToolCall, ToolCallStatus

from penstock_gateway import replies

Status = Literal["completed", "incomplete"]
Events = Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Words:
    """Names in the events of one kind of text."""

    prefix: str
    part: str
    text: str
    place: str
    part_type: str


_ANSWER = _Words("msg", "response.content_part", "response.output_text", "content_index", "output_text")
_THOUGHT = _Words("rs", "response.content_part", "response.reasoning_text", "content_index", "reasoning_text")
_SUMMARY = _Words(
    "rs", "response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index", "summary_text"
)


class _TextItem:
    """A message, or a thought: an item with one text."""

    def __init__(self, words: _Words, item_id: str, output_index: int) -> None:
        self.words = words
        self._place = {"item_id": item_id, "output_index": output_index, words.place: 0}
        self._id, self._index = item_id, output_index
        self._texts: list[str] = []
        self._logprobs: list[bytes] = []
        """JSON of the entries of each delta, without brackets: ten times smaller than objects."""

    def begin(self) -> Events:
        yield {"type": "response.output_item.added", "output_index": self._index, "item": self._item("in_progress", [])}
        yield {"type": f"{self.words.part}.added", **self._place, "part": self._part("")}

    def add(self, text: str, logprobs: Sequence[TokenLogprobs] = ()) -> Events:
        self._texts.append(text)
        delta = {"type": f"{self.words.text}.delta", **self._place, "delta": text}
        if self.words is _ANSWER:
            entries = msgspec.json.encode(replies.logprobs_of(logprobs))
            delta["logprobs"] = Raw(entries)
            if logprobs:
                self._logprobs.append(entries[1:-1])
        yield delta

    def end(self, status: Status) -> Events:
        text = "".join(self._texts)
        done = {"type": f"{self.words.text}.done", **self._place, "text": text}
        yield done | {"logprobs": self._all_logprobs()} if self.words is _ANSWER else done
        yield {"type": f"{self.words.part}.done", **self._place, "part": self._part(text)}

    def item(self, status: Status) -> dict[str, Any]:
        return self._item(status, [self._part("".join(self._texts))])

    def _part(self, text: str) -> dict[str, Any]:
        made: dict[str, Any] = {"type": self.words.part_type, "text": text}
        return made | {"annotations": [], "logprobs": self._all_logprobs()} if self.words is _ANSWER else made

    def _all_logprobs(self) -> Raw:
        return Raw(b"[%s]" % b",".join(self._logprobs))

    def _item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        if self.words is _ANSWER:
            return {"type": "message", "id": self._id, "role": "assistant", "status": status, "content": parts}
        held = {"summary": parts} if self.words is _SUMMARY else {"summary": [], "content": parts}
        return {"type": "reasoning", "id": self._id, **held, "encrypted_content": None, "status": status}


class _CallItem:
    """A call of a function."""

    words = None

    def __init__(self, call: ToolCall, item_id: str, output_index: int) -> None:
        self._call = call
        self._place = {"item_id": item_id, "output_index": output_index}
        self._id, self._index = item_id, output_index
        self._fragments: list[str] = []

    def begin(self) -> Events:
        yield {"type": "response.output_item.added", "output_index": self._index, "item": self._item("in_progress", "")}

    def add(self, fragment: str) -> Events:
        self._fragments.append(fragment)
        yield {"type": "response.function_call_arguments.delta", **self._place, "delta": fragment}

    def end(self, status: Status) -> Events:
        done = {"type": "response.function_call_arguments.done", **self._place, "name": self._call.name}
        yield done | {"arguments": "".join(self._fragments)}

    def item(self, status: Status) -> dict[str, Any]:
        return self._item(status, "".join(self._fragments))

    def _item(self, status: str, arguments: str) -> dict[str, Any]:
        call = {"call_id": self._call.id, "name": self._call.name, "arguments": arguments}
        return {"type": "function_call", "id": self._id, **call, "status": status}


class Output:
    """Build the items of one output, in the order in which they come. Each method yields the events of what it adds.

    Args:
        generation_id: Id of the generation, of which the items' ids are made.
        has_summary: Whether the thought is a summary of its item instead of its content.

    Attributes:
        items: The items that are over.
    """

    def __init__(self, generation_id: str, *, has_summary: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._generation_id = generation_id
        self._thought_words = _SUMMARY if has_summary else _THOUGHT
        self._open: _TextItem | _CallItem | None = None

    def add_thought(self, text: str) -> Events:
        """Add text of the thought."""
        if text:
            yield from self._add_text(self._thought_words, text)

    def add_answer(self, text: str, logprobs: Sequence[TokenLogprobs] = ()) -> Events:
        """Add text of the answer."""
        if text or logprobs:
            yield from self._add_text(_ANSWER, text, logprobs)

    def start_call(self, call: ToolCall) -> Events:
        """Add a call of a function, whose arguments come next."""
        yield from self.end("completed")
        self._open = _CallItem(call, self._new_id("fc"), len(self.items))
        yield from self._open.begin()

    def add_arguments(self, fragment: str) -> Events:
        """Add text of the arguments of the call that was started."""
        if isinstance(self._open, _CallItem) and fragment:
            yield from self._open.add(fragment)

    def finish_call(self, call: ToolCall) -> Events:
        """End the call that was started; where none was, its name did not come to its end."""
        if not isinstance(self._open, _CallItem):
            yield from self.start_call(call)
            yield from self.add_arguments(call.arguments_json)
        yield from self.end("completed" if call.status is ToolCallStatus.COMPLETE else "incomplete")

    def end(self, status: Status) -> Events:
        """End the item that is open, where one is."""
        one, self._open = self._open, None
        if one is None:
            return
        yield from one.end(status)
        item = one.item(status)
        yield {"type": "response.output_item.done", "output_index": len(self.items), "item": item}
        self.items.append(item)

    def _add_text(self, words: _Words, text: str, logprobs: Sequence[TokenLogprobs] = ()) -> Events:
        one = self._open
        if not isinstance(one, _TextItem) or one.words is not words:
            yield from self.end("completed")
            self._open = one = _TextItem(words, self._new_id(words.prefix), len(self.items))
            yield from one.begin()
        yield from one.add(text, logprobs)

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._generation_id}_{len(self.items)}"
