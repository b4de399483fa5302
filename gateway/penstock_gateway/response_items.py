"""Convert the items of `/v1/responses` to messages of the client, each with the path of what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType
from penstock_client import Message, Part, TextPart, ThoughtPart, ToolCall, ToolResult

from penstock_gateway.bodies import decode
from penstock_gateway.errors import REQUEST, GatewayError, Kind
from penstock_gateway.messages import param_in, parts_of, shown, text_of

_UNSUPPORTED = Kind(400, REQUEST, "unsupported_value")
_RANKS: Mapping[type, int] = {ThoughtPart: 0, TextPart: 1, ToolCall: 2}
"""The order of an assistant message's parts."""


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message"


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    type: str = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class _Message(_Strict, frozen=True, kw_only=True):
    role: str
    content: str | list[Raw]
    phase: Literal["commentary", "final_answer"] | None = None


class _Call(_Strict, frozen=True, kw_only=True, rename={"is_async": "async"}):
    call_id: str
    name: str
    arguments: str
    is_async: bool | None = None
    caller: Raw | UnsetType = UNSET
    namespace: str | None = None


class _Output(_Strict, frozen=True, kw_only=True):
    call_id: str
    output: str | list[Raw]
    name: str | None = None
    caller: Raw | UnsetType = UNSET


class _Thought(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class _Reasoning(_Strict, frozen=True, kw_only=True):
    summary: list[_Thought] | None = None
    content: list[_Thought] | None = None
    encrypted_content: str | None = None


@dataclass(slots=True)
class Conversation:
    """Hold the messages that items became.

    Attributes:
        messages: The messages, oldest first.
        origins: For each message the request's name of it, and those of its parts.
    """

    messages: list[Message] = field(default_factory=list)
    origins: list[tuple[str, list[str]]] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def add(self, message: Message, name: str, parts: Sequence[str] = ()) -> None:
        """Add a message that is not the assistant's."""
        self.close()
        self.messages.append(message)
        self.origins.append((name, list(parts)))

    def add_of_assistant(self, part: Part, name: str) -> None:
        """Add a part of an assistant's message: to the last one, where the order of its parts allows it."""
        rank = _RANKS[type(part)]
        if self._parts and (rank < _RANKS[type(self._parts[-1])] or rank == 0):
            self.close()
        self._parts.append(part)
        self._names.append(name)

    def close(self) -> None:
        """End the assistant's message that is being made."""
        if self._parts:
            self.messages.append(Message("assistant", "", tuple(self._parts)))
            self.origins.append((self._names[0], self._names))
        self._parts, self._names = [], []

    def param_of(self, path: str) -> str | None:
        """Return the request's name of a message or a part that the service names; None for other paths."""
        return param_in(path, len(self.origins), self.origins.__getitem__)


def conversation_of(given: str | Sequence[Raw], instructions: str | None) -> Conversation:
    """Return the conversation.

    Raises:
        GatewayError: An item is none, or has what the service does not take; the error names its path.
    """
    made = Conversation()
    if instructions is not None:
        made.add(Message("system", instructions), "instructions")
    if isinstance(given, str):
        made.add(Message("user", given), "input")
        return made
    for index, raw in enumerate(given):
        _add(made, raw, f"input[{index}]")
    made.close()
    return made


def _add(made: Conversation, raw: Raw, path: str) -> None:
    kind = decode(raw, _Item, path).type
    add = _ITEMS.get(kind)
    if add is None:
        hint = ": nothing is stored; send the item itself" if kind == "item_reference" else ""
        text = f"{path}.type must be one of {', '.join(_ITEMS)}, got {shown(kind)}{hint}"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.type")
    add(made, raw, path)


def _add_message(made: Conversation, raw: Raw, path: str) -> None:
    given = decode(raw, _Message, path)
    content = f"{path}.content"
    match given.role:
        case "system" | "developer":
            made.add(Message("system", text_of(given.content, content)), path)
        case "assistant":
            made.add_of_assistant(TextPart(text_of(given.content, content)), path)
        case "user":
            _add_of_user(made, given.content, path)
        case _:
            text = f"{path}.role must be one of user, assistant, system, developer, got {shown(given.role)}"
            raise GatewayError(text, param=f"{path}.role")


def _add_of_user(made: Conversation, content: str | Sequence[Raw], path: str) -> None:
    if isinstance(content, str):
        made.add(Message("user", content), path)
        return
    parts = tuple(parts_of(content, f"{path}.content"))
    made.add(Message("user", "", parts), path, [f"{path}.content[{place}]" for place in range(len(parts))])


def _add_reasoning(made: Conversation, raw: Raw, path: str) -> None:
    """Add a thought. One without text is of another service, which alone can read it: it is left out."""
    given = decode(raw, _Reasoning, path)
    text = "\n\n".join(one.text for one in given.content or given.summary or ())
    if text:
        made.add_of_assistant(ThoughtPart(text), path)


def _add_call(made: Conversation, raw: Raw, path: str) -> None:
    given = decode(raw, _Call, path)
    _refuse_programs(given.caller, path)
    if given.namespace or given.is_async:
        name = f"{path}.{'namespace' if given.namespace else 'async'}"
        raise GatewayError(f"{name} is refused: tools have none of it here", kind=_UNSUPPORTED, param=name)
    made.add_of_assistant(ToolCall(given.call_id, given.name, given.arguments or "{}"), path)


def _add_output(made: Conversation, raw: Raw, path: str) -> None:
    given = decode(raw, _Output, path)
    _refuse_programs(given.caller, path)
    if isinstance(given.output, str):
        made.add(Message("tool", "", (ToolResult(given.call_id, given.output),)), path)
        return
    parts = tuple(parts_of(given.output, f"{path}.output"))
    names = [f"{path}.output[{place}]" for place in range(len(parts))]
    made.add(Message("tool", "", (ToolResult(given.call_id, parts),)), path, names)


def _refuse_programs(caller: Raw | UnsetType, path: str) -> None:
    if (
        isinstance(caller, Raw)
        and bytes(caller) != b"null"
        and decode(caller, _Item, f"{path}.caller").type != "direct"
    ):
        text = f"{path}.caller is refused: only the model calls tools"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.caller")


_ITEMS: Mapping[str, Callable[[Conversation, Raw, str], None]] = {
    "message": _add_message,
    "reasoning": _add_reasoning,
    "function_call": _add_call,
    "function_call_output": _add_output,
}
