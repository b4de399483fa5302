"""Record prompts, tools and outputs in traces, where the operator has enabled that.

The form is that of OpenTelemetry's GenAI conventions: messages of parts, as JSON text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

from penstock.telemetry.otel import names
from penstock.types import Delta, Event, Message, Request, Tool, ToolCall, ToolCallFinished

# Limit for an attribute of a span: collectors refuse much larger ones.
_MAX_CHARACTERS = 32_768
_ESCAPED = 6  # characters of one that JSON text spells as an escape
Part = dict[str, object]


class Content:
    """Collect the messages of one generation."""

    def __init__(self) -> None:
        self._input: list[dict[str, object]] = []
        self._tools: tuple[Tool, ...] = ()
        self._said: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        self._called: defaultdict[int, list[ToolCall]] = defaultdict(list)

    def asked(self, request: Request) -> None:
        """Add the prompt and the tools."""
        self._input = [_message(m.role.value, list(_parts_of(m))) for m in request.messages or ()]
        if request.text is not None:
            self._input = [_message("user", [_text("text", request.text)])]
        self._tools = request.tools.tools

    def on_event(self, event: Event) -> None:
        """Add the content of an event."""
        if isinstance(event, Delta):
            self._said[event.candidate_index, "reasoning" if event.is_thought else "text"].append(event.text)
        elif isinstance(event, ToolCallFinished):
            self._called[event.candidate_index].append(event.call)

    def attributes(self) -> dict[str, str]:
        """Return the messages as attributes of a span."""
        indices = sorted({index for index, _ in self._said} | self._called.keys())
        output = [_message("assistant", list(self._output_of(index))) for index in indices]
        found = {names.INPUT_MESSAGES: json.dumps(self._input), names.OUTPUT_MESSAGES: json.dumps(output)}
        if self._tools:
            found[names.TOOL_DEFINITIONS] = _definitions(self._tools)
        return found

    def _output_of(self, index: int) -> Iterator[Part]:
        for kind in ("reasoning", "text"):
            if (index, kind) in self._said:
                yield _text(kind, "".join(self._said[index, kind]))
        yield from map(_call, self._called[index])


def _parts_of(message: Message) -> Iterator[Part]:
    if message.thought:
        yield _text("reasoning", message.thought)
    if message.content or not (message.thought or message.tool_calls or message.tool_results):
        yield _text("text", message.content)
    yield from map(_call, message.tool_calls)
    for result in message.tool_results:
        yield {"type": "tool_call_response", "id": result.call_id, "response": result.text[:_MAX_CHARACTERS]}


def _text(kind: str, text: str) -> Part:
    return {"type": kind, "content": text[:_MAX_CHARACTERS]}


def _call(call: ToolCall) -> Part:
    arguments = call.arguments_json[:_MAX_CHARACTERS]
    return {"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments}


def _definitions(tools: Sequence[Tool]) -> str:
    """Return the tools as JSON text that fits: descriptions are cut, then the last tools are left out."""
    whole = f"[{', '.join(_definition(tool, _MAX_CHARACTERS) for tool in tools)}]"
    if len(whole) <= _MAX_CHARACTERS:
        return whole
    share = _MAX_CHARACTERS // len(tools) - 2
    written: list[str] = []
    size = 0
    for tool in tools:
        most = max(0, share - len(_definition(tool, 0))) // 2  # half of it for quotation marks and line breaks
        text = _definition(tool, most if tool.description.isascii() else most // _ESCAPED)
        size += len(text) + 2
        if size > _MAX_CHARACTERS:
            break
        written.append(text)
    return f"[{', '.join(written)}]"


def _definition(tool: Tool, most: int) -> str:
    return json.dumps({"type": "function", "name": tool.name, "description": tool.description[:most]})


def _message(role: str, parts: list[Part]) -> dict[str, object]:
    return {"role": role, "parts": parts}
