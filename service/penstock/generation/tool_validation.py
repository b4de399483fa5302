"""Validate tools, tool calls and tool results of a request. See `generation.validation`, which calls this."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from penstock.config.schema import LimitSettings
from penstock.errors import FieldViolation
from penstock.generation.complexity import schema_fault
from penstock.generation.tool_calls.json_calls import NAME
from penstock.generation.tool_planning import needs_grammar
from penstock.generation.violations import invalid, limit
from penstock.types import Message, Request, Role, Tool, ToolCall, ToolCallStatus, ToolConfig, ToolMode, ToolResult

TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_NAME_RULE = "must be a letter or _ and then at most 63 letters, digits, _, - or ."
_CALL_NAME_RULE = "must be 1 to 64 letters, digits, _, - or ."
_MAX_ID_BYTES = 64
_MAX_NAME = 64


def validate_tools(request: Request, limits: LimitSettings) -> Iterator[FieldViolation]:
    """Yield violations of the tools and of how they may be called. What is too large is not read further."""
    tools, config = request.tools.tools, request.tools
    yield from _max_calls(config, limits)
    if not tools:
        yield from _without_tools(config)
        return
    if request.messages is None:
        yield invalid("tools", "must be empty for text and token_ids, which no template renders", "CONFLICTING_FIELDS")
    too_large = next(_sizes(config, limits), None)
    if too_large is not None:
        yield too_large
        return
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        yield from _tool(tool, f"tools[{index}]", names.get(tool.name))
        names.setdefault(tool.name, index)
    yield from _allowed_names(config, names)
    if config.mode is not ToolMode.NONE and request.output.structured is not None:
        yield invalid(
            "output.structured_output",
            "must be absent beside tools that may be called: set tool_config.mode to TOOL_MODE_NONE, or remove it",
            "CONFLICTING_FIELDS",
        )
    if needs_grammar(config) and request.output.min_tokens:
        yield invalid(
            "output.min_output_tokens",
            f"must be 0 beside tool calls that a grammar holds, got {request.output.min_tokens}",
            "CONFLICTING_FIELDS",
        )


def _sizes(config: ToolConfig, limits: LimitSettings) -> Iterator[FieldViolation]:
    yield from limit("tools", len(config.tools), limits.max_tools, "tools")
    yield from limit("tool_config.allowed_names", len(config.allowed_names), limits.max_tools, "names")
    size = sum(len(tool.parameters_json_schema.encode()) for tool in config.tools)
    yield from limit("tools", size, limits.max_schema_bytes, "bytes of schemas")


def _max_calls(config: ToolConfig, limits: LimitSettings) -> Iterator[FieldViolation]:
    most = config.max_calls
    if most is not None and not 1 <= most <= limits.max_tool_calls:
        what = f"must be in [1, {limits.max_tool_calls}], got {most}"
        yield invalid("tool_config.max_calls", what, "INVALID_FIELD" if most < 1 else "LIMIT_EXCEEDED")


def _without_tools(config: ToolConfig) -> Iterator[FieldViolation]:
    if config.mode in (ToolMode.REQUIRED, ToolMode.VALIDATED):
        what = f"must not be empty with TOOL_MODE_{config.mode.name}, got no tool"
        yield invalid("tools", what, "MISSING_FIELD")
    if config.allowed_names:
        yield invalid("tool_config.allowed_names", "must be empty without tools", "CONFLICTING_FIELDS")


def _tool(tool: Tool, path: str, same_name: int | None) -> Iterator[FieldViolation]:
    if not tool.name:
        yield invalid(f"{path}.name", "must not be empty", "MISSING_FIELD")
    elif not TOOL_NAME.fullmatch(tool.name):
        yield invalid(f"{path}.name", f"{_NAME_RULE}, got {_name_fault(tool.name, TOOL_NAME)}")
    elif same_name is not None:
        yield invalid(f"{path}.name", f"must be unique, got the name of spec.tools[{same_name}]")
    if tool.parameters_json_schema:
        at = f"{path}.parameters_json_schema"
        if fault := schema_fault(tool.parameters_json_schema):
            yield invalid(at, fault, "LIMIT_EXCEEDED")
        elif fault := _object_fault(tool.parameters_json_schema):
            yield invalid(at, fault)


def _object_fault(text: str) -> str:
    """Return what is wrong with the schema of a tool's arguments; empty for nothing."""
    try:
        schema = json.loads(text, parse_int=_no_digits, parse_float=_no_digits, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return "must be JSON text, got text that is no JSON"
    if not isinstance(schema, dict):
        return f"must be a JSON object, got {_kind(schema)}"
    of_type = schema.get("type", "object")
    if of_type != "object":
        return 'must describe an object ("type": "object"), got another type'
    return ""


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _no_digits(_: str) -> int:
    """Return a number for any number: Python reads no integers of over 4,300 digits."""
    return 0


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _allowed_names(config: ToolConfig, names: dict[str, int]) -> Iterator[FieldViolation]:
    if config.allowed_names and config.mode is ToolMode.NONE:
        yield invalid("tool_config.allowed_names", "must be empty with TOOL_MODE_NONE", "CONFLICTING_FIELDS")
    seen: set[str] = set()
    for index, name in enumerate(config.allowed_names):
        path = f"tool_config.allowed_names[{index}]"
        if name not in names:
            yield invalid(path, f"must be the name of a tool of the request, got {len(name)} other characters")
        elif name in seen:
            yield invalid(path, "must be named once, got a name again")
        seen.add(name)


def validate_tool_messages(messages: Sequence[Message], limits: LimitSettings) -> Iterator[FieldViolation]:
    """Yield violations of tool calls and their results: each call has exactly one result, right after its message."""
    open_calls: dict[str, str] = {}
    answered: set[str] = set()
    for index, message in enumerate(messages):
        path = f"messages.messages[{index}]"
        if message.role is Role.TOOL:
            for place, result in enumerate(message.tool_results):
                yield from _result(result, f"{path}.parts[{place}].tool_result", open_calls, answered)
            continue
        yield from _unanswered(open_calls)
        open_calls, answered = {}, set()
        if message.tool_calls:
            yield from limit(f"{path}.parts", len(message.tool_calls), limits.max_tool_calls, "tool calls")
            for place, call in enumerate(message.tool_calls[: limits.max_tool_calls], message.parts_before_calls):
                at = f"{path}.parts[{place}].tool_call"
                yield from _call(call, at, open_calls)
                open_calls.setdefault(call.id, at)
    yield from _unanswered(open_calls)


def _call(call: ToolCall, path: str, others: dict[str, str]) -> Iterator[FieldViolation]:
    if not call.id:
        yield invalid(f"{path}.id", "must not be empty", "MISSING_FIELD")
    elif call.id in others:
        yield invalid(f"{path}.id", "must be unique in its message")
    yield from limit(f"{path}.id", len(call.id.encode()), _MAX_ID_BYTES, "bytes")
    if not NAME.fullmatch(call.name):
        yield invalid(f"{path}.name", f"{_CALL_NAME_RULE}, got {_name_fault(call.name, NAME)}")
    if call.status is ToolCallStatus.INCOMPLETE:
        yield invalid(f"{path}.status", "must be TOOL_CALL_STATUS_COMPLETE: leave out calls that were cut")
    elif call.arguments_json and (fault := _arguments_fault(call.arguments_json)):
        yield invalid(f"{path}.arguments_json", fault)


class _Pairs(list[tuple[str, object]]):
    """Hold the members of a JSON object, also those with the same name."""


def _arguments_fault(text: str) -> str:
    """Return what is wrong with the arguments of an earlier call; empty for nothing."""
    try:
        found = json.loads(
            text,
            parse_int=_no_digits,
            parse_float=_no_digits,
            parse_constant=_refuse_constant,
            object_pairs_hook=_Pairs,
        )
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, _Pairs):
        return "must be a JSON object as text, got something else"
    # Inside a value the model is given the text as it stands, but of two arguments with one name only the last.
    if len({name for name, _ in found}) < len(found):
        return "must name each argument once, got one twice"
    return ""


def _result(result: ToolResult, path: str, open_calls: dict[str, str], answered: set[str]) -> Iterator[FieldViolation]:
    if not result.call_id:
        yield invalid(f"{path}.call_id", "must not be empty", "MISSING_FIELD")
    elif result.call_id in answered:
        yield invalid(f"{path}.call_id", "must be unique: this call has a result already")
    elif result.call_id not in open_calls:
        yield invalid(f"{path}.call_id", "must be the id of a tool call in the assistant message before")
    else:
        answered.add(result.call_id)
        del open_calls[result.call_id]


def _unanswered(open_calls: dict[str, str]) -> Iterator[FieldViolation]:
    for path in open_calls.values():
        yield invalid(path, "must have its result in a ROLE_TOOL message right after, got none", "MISSING_FIELD")


def _name_fault(name: str, rule: re.Pattern[str]) -> str:
    """Return what is wrong with a name, without the name: errors are recorded where content is not."""
    valid = rule.match(name)
    at = valid.end() if valid else 0
    wrong = f", the first wrong one at {at}" if at < min(len(name), _MAX_NAME) else ""
    return f"{len(name)} characters{wrong}"
