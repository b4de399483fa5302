"""Convert messages of parts, tools and tool calls between proto and the service's types.

What a message of a role may consist of is checked here, where its parts still have their paths; names, ids and schemas
are checked by `generation.tool_validation`.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock_proto.v1 import generation_pb2 as pb

from penstock.errors import BadRequest, FieldReason, FieldViolation
from penstock.types import (
    Image,
    Message,
    Role,
    Tool,
    ToolCall,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
    ToolCallStatus,
    ToolConfig,
    ToolEvent,
    ToolMode,
    ToolResult,
)

_ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
TOOL_MODES_TO_PROTO = {
    ToolMode.AUTO: pb.TOOL_MODE_AUTO,
    ToolMode.REQUIRED: pb.TOOL_MODE_REQUIRED,
    ToolMode.NONE: pb.TOOL_MODE_NONE,
    ToolMode.VALIDATED: pb.TOOL_MODE_VALIDATED,
}
_TOOL_MODES: dict[int, ToolMode] = {number: mode for mode, number in TOOL_MODES_TO_PROTO.items()}
_TOOL_MODES[pb.TOOL_MODE_UNSPECIFIED] = ToolMode.AUTO
_STATUSES = {
    pb.TOOL_CALL_STATUS_UNSPECIFIED: ToolCallStatus.COMPLETE,
    pb.TOOL_CALL_STATUS_COMPLETE: ToolCallStatus.COMPLETE,
    pb.TOOL_CALL_STATUS_INCOMPLETE: ToolCallStatus.INCOMPLETE,
}
_STATUSES_TO_PROTO = {
    ToolCallStatus.COMPLETE: pb.TOOL_CALL_STATUS_COMPLETE,
    ToolCallStatus.INCOMPLETE: pb.TOOL_CALL_STATUS_INCOMPLETE,
}
MAX_PARTS = 4096
"""Most parts of a conversation, with those of its tool results: an empty one costs a caller two bytes and us a loop."""
# Parts that a message of a role may have. An assistant's must have this order.
_PARTS_OF = {
    Role.SYSTEM: ("text",),
    Role.USER: ("text", "image"),
    Role.ASSISTANT: ("thought", "text", "tool_call"),
    Role.TOOL: ("tool_result",),
}


def messages_from_proto(messages: pb.Messages) -> tuple[Message, ...]:
    """Return a conversation. Raise BadRequest for a part that its message cannot have."""
    parts = sum(len(message.parts) for message in messages.messages)
    if parts <= MAX_PARTS:
        parts += sum(len(part.tool_result.content) for message in messages.messages for part in message.parts)
    if parts > MAX_PARTS:
        what = f"must have at most {MAX_PARTS} parts, with those of tool results, got at least {parts}"
        raise _invalid("spec.messages", what, "LIMIT_EXCEEDED")
    return tuple(
        _message(message, f"spec.messages.messages[{index}]") for index, message in enumerate(messages.messages)
    )


def _message(message: pb.Message, path: str) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise unknown_enum(f"{path}.role", message.role)
    if not message.parts:
        if role is Role.TOOL:
            raise _invalid(f"{path}.parts", "must have a tool_result in a ROLE_TOOL message, got none", "MISSING_FIELD")
        return Message(role, message.content)
    if message.content:
        raise _invalid(f"{path}.content", "must be empty beside parts: write it as a text part", "CONFLICTING_FIELDS")
    return _message_of_parts(role, message.parts, path)


def _message_of_parts(role: Role, parts: Iterable[pb.Part], path: str) -> Message:
    texts = _Texts()
    thought = ""
    calls: list[ToolCall] = []
    results: list[ToolResult] = []
    before = ""
    for index, part in enumerate(parts):
        at = f"{path}.parts[{index}]"
        kind = _kind(part, role, at, before)
        before = kind
        if kind in ("text", "image"):
            texts.add(part, at)
        elif kind == "thought":
            thought = part.thought
        elif kind == "tool_call":
            calls.append(_tool_call(part.tool_call, f"{at}.tool_call"))
        else:
            results.append(_tool_result(part.tool_result, f"{at}.tool_result"))
    before_calls = texts.parts + bool(thought)
    return Message(role, texts.text, thought, tuple(calls), tuple(results), before_calls, tuple(texts.images))


class _Texts:
    """Join texts, and note the places of the images between them."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._length = 0
        self.parts = 0
        self.images: list[Image] = []

    def add(self, part: pb.Part, path: str) -> None:
        """Add a text or an image."""
        self.parts += 1
        if part.WhichOneof("part") == "image":
            self.images.append(Image(part.image.data, part.image.mime_type, self._length, f"{path}.image"))
        else:
            self._texts.append(part.text)
            self._length += len(part.text)

    @property
    def text(self) -> str:
        """Return all texts."""
        return "".join(self._texts)


def _kind(part: pb.Part, role: Role, path: str, before: str) -> str:
    """Return the kind of a part. Raise BadRequest where it cannot stand in a message of `role` after `before`."""
    kind, allowed = part.WhichOneof("part"), _PARTS_OF[role]
    if kind is None:
        raise _invalid(path, f"one of {', '.join(allowed)} must be set, got none", "MISSING_FIELD")
    if kind not in allowed:
        raise _invalid(path, f"must be one of {', '.join(allowed)} in a ROLE_{role.name} message, got {kind}")
    if role is Role.ASSISTANT and before and allowed.index(kind) < allowed.index(before):
        raise _invalid(path, f"parts must be in the order {', '.join(allowed)}, got {kind} after {before}")
    if kind == "thought" and before == "thought":
        raise _invalid(path, "must have at most one thought, got a second one")
    return kind


def _tool_call(call: pb.ToolCall, path: str) -> ToolCall:
    if call.status not in _STATUSES:
        raise unknown_enum(f"{path}.status", call.status)
    return ToolCall(call.id, call.name, call.arguments_json, _STATUSES[call.status])


def _tool_result(result: pb.ToolResult, path: str) -> ToolResult:
    texts = _Texts()
    for index, part in enumerate(result.content):
        kind, at = part.WhichOneof("part"), f"{path}.content[{index}]"
        if kind not in ("text", "image"):
            raise _invalid(at, f"must be text or image in a tool_result, got {kind or 'none'}")
        texts.add(part, at)
    return ToolResult(result.call_id, texts.text, result.is_error, tuple(texts.images))


def tools_from_proto(spec: pb.GenerationSpec) -> ToolConfig:
    """Return the tools of a request and how they may be called. Raise BadRequest for unknown enum numbers."""
    config = spec.tool_config
    if config.mode not in _TOOL_MODES:
        raise unknown_enum("spec.tool_config.mode", config.mode)
    most = config.max_calls if config.HasField("max_calls") else None
    if config.HasField("parallel") and not config.parallel:
        if most not in (None, 1):
            raise _invalid(
                "spec.tool_config.max_calls",
                f"must be 1 or absent without parallel calls, got {most}",
                "CONFLICTING_FIELDS",
            )
        most = 1
    return ToolConfig(
        tools=tuple(Tool(tool.name, tool.description, tool.parameters_json_schema, tool.strict) for tool in spec.tools),
        mode=_TOOL_MODES[config.mode],
        allowed_names=tuple(config.allowed_names),
        max_calls=most,
    )


def tool_call_to_proto(call: ToolCall) -> pb.ToolCall:
    """Return a tool call as a message."""
    return pb.ToolCall(
        id=call.id, name=call.name, arguments_json=call.arguments_json, status=_STATUSES_TO_PROTO[call.status]
    )


def write_tool_event(message: pb.GenerationEvent, event: ToolEvent) -> None:
    """Write an event of a tool call into an empty message."""
    target: pb.ToolCallArguments | pb.ToolCallStarted | pb.ToolCallFinished
    match event:
        case ToolCallArguments():
            target = message.tool_call_arguments
            target.json_fragment = event.json_fragment
        case ToolCallStarted():
            target = message.tool_call_started
            target.id = event.id
            target.name = event.name
        case ToolCallFinished():
            target = message.tool_call_finished
            target.call.MergeFrom(tool_call_to_proto(event.call))
    target.candidate_index = event.candidate_index
    target.call_index = event.call_index
    target.token_count = event.token_count


def unknown_enum(field: str, number: int) -> BadRequest:
    """Return the error for a number that an enum does not have."""
    return _invalid(field, f"must be a value of this enum, got {number}")


def _invalid(field: str, description: str, reason: FieldReason = "INVALID_FIELD") -> BadRequest:
    return BadRequest(FieldViolation(field, description, reason))
