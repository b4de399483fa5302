"""Convert OpenAI's messages to the client's, each with the path of what is wrong."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType
from penstock_client import ImagePart, Message, Part, TextPart, ThoughtPart, ToolCall, ToolResult

from penstock_gateway.bodies import decode
from penstock_gateway.errors import REQUEST, GatewayError, Kind

Content = str | list[Raw] | None
_UNSUPPORTED = Kind(400, REQUEST, "unsupported_value")
_MAX_SHOWN = 32


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class _Role(msgspec.Struct, frozen=True):
    role: str


class _Kind(msgspec.Struct, frozen=True):
    type: str


class _Instructions(_Strict, frozen=True):
    role: Literal["system", "developer"]
    content: str | list[Raw]
    name: Raw | UnsetType = UNSET


class _User(_Strict, frozen=True):
    role: Literal["user"]
    content: str | list[Raw]
    name: Raw | UnsetType = UNSET


class _Function(_Strict, frozen=True):
    name: str
    arguments: str = "{}"


class _Call(_Strict, frozen=True):
    id: str
    function: _Function
    type: Literal["function"] = "function"
    index: int | None = None


class _Assistant(_Strict, frozen=True):
    role: Literal["assistant"]
    content: Content = None
    tool_calls: list[Raw] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: Raw | UnsetType = UNSET
    annotations: Raw | UnsetType = UNSET
    audio: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    # LiteLLM's copy of fields of the reply that stand in the message as well.
    provider_specific_fields: Raw | UnsetType = UNSET


class _ToolMessage(_Strict, frozen=True):
    role: Literal["tool"]
    tool_call_id: str
    content: str | list[Raw]
    name: str | None = None


class _Text(_Strict, frozen=True):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Raw | UnsetType = UNSET
    logprobs: Raw | UnsetType = UNSET
    prompt_cache_breakpoint: Raw | UnsetType = UNSET


class _ImageUrl(_Strict, frozen=True):
    url: str
    detail: Literal["auto"] | None = None


class _Image(_Strict, frozen=True):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _InputImage(_Strict, frozen=True):
    type: Literal["input_image"]
    image_url: str | None = None
    detail: Literal["auto"] | None = None
    file_id: Raw | UnsetType = UNSET
    prompt_cache_breakpoint: Raw | UnsetType = UNSET


_NOTHING = (b"null", b"[]")
_REFUSED = {
    "name": "the model's template does not show names: write the name into the content",
    "refusal": "the service sends no refusals",
    "annotations": "the service has no annotations",
    "audio": "the input is text",
    "function_call": "deprecated; use tool_calls",
}


def messages_of(given: Sequence[Raw]) -> list[Message]:
    """Return the conversation.

    Raises:
        GatewayError: A message is no message, or has what the service does not take; the error names its path.
    """
    return [_message(raw, f"messages[{index}]") for index, raw in enumerate(given)]


_PATH = re.compile(
    r"spec\.messages\.messages\[(\d+)\](?:\.parts\[(?:(\d+)\](?!\.tool_result)|\d+\]\.tool_result\.content\[(\d+)\]))?.*"
)


def param_in(path: str, messages: int, names_of: Callable[[int], tuple[str, Sequence[str]]]) -> str | None:
    """Return the request's name of a message or a part that the service names; None for other paths.

    Args:
        path: The service's name.
        messages: Number of messages.
        names_of: Returns the request's name of a message, and those of its parts, for its index. A tool's message has
            one result, whose parts are meant.
    """
    found = _PATH.fullmatch(path)
    if found is None or int(found[1]) >= messages:
        return None
    name, parts = names_of(int(found[1]))
    place = found[2] or found[3]
    part = int(place) if place else len(parts)
    return parts[part] if part < len(parts) else name


def chat_param_in(messages: Sequence[Message], path: str) -> str | None:
    """Return the name that a chat has for a message or a part that the service names; None for other paths."""
    return param_in(path, len(messages), lambda index: (f"messages[{index}]", _part_names(messages[index], index)))


def _part_names(message: Message, index: int) -> list[str]:
    path, names, calls = f"messages[{index}]", [], 0
    for place, part in enumerate(message.parts):
        match part:
            case ThoughtPart():
                names.append(f"{path}.reasoning_content")
            case ToolCall():
                names.append(f"{path}.tool_calls[{calls}]")
                calls += 1
            case _:
                names.append(f"{path}.content[{place}]" if message.role == "user" else f"{path}.content")
    return names


def _message(raw: Raw, path: str) -> Message:
    role = decode(raw, _Role, path).role
    make = _ROLES.get(role)
    if make is None:
        hint = {"function": ": deprecated; use a message of the role tool"}.get(role, "")
        text = f"{path}.role must be one of {', '.join(_ROLES)}, got {shown(role)}{hint}"
        raise GatewayError(text, param=f"{path}.role")
    return make(raw, path)


def _instructions(raw: Raw, path: str) -> Message:
    given = decode(raw, _Instructions, path)
    _refuse(given, path)
    return Message("system", text_of(given.content, f"{path}.content"))


def _user(raw: Raw, path: str) -> Message:
    given = decode(raw, _User, path)
    _refuse(given, path)
    if isinstance(given.content, str):
        return Message("user", given.content)
    return Message("user", "", tuple(parts_of(given.content, f"{path}.content")))


def _assistant(raw: Raw, path: str) -> Message:
    given = decode(raw, _Assistant, path)
    _refuse(given, path)
    thought = given.reasoning_content or given.reasoning or ""
    if given.reasoning_content and given.reasoning and given.reasoning_content != given.reasoning:
        text = f"{path}.reasoning_content and {path}.reasoning are two names of one text; they differ"
        raise GatewayError(text, param=f"{path}.reasoning", reason="CONFLICTING_FIELDS")
    text = text_of(given.content, f"{path}.content") if given.content is not None else ""
    calls = [_call(one, f"{path}.tool_calls[{index}]") for index, one in enumerate(given.tool_calls or ())]
    if not thought and not calls:
        return Message("assistant", text)
    parts: list[Part] = [ThoughtPart(thought)] if thought else []
    parts += [TextPart(text)] if text else []
    return Message("assistant", "", (*parts, *calls))


def _call(raw: Raw, path: str) -> ToolCall:
    given = decode(raw, _Call, path)
    return ToolCall(given.id, given.function.name, given.function.arguments or "{}")


def _tool(raw: Raw, path: str) -> Message:
    given = decode(raw, _ToolMessage, path)
    return Message("tool", "", (ToolResult(given.tool_call_id, text_of(given.content, f"{path}.content")),))


_ROLES: Mapping[str, Callable[[Raw, str], Message]] = {
    "system": _instructions,
    "developer": _instructions,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _refuse(message: msgspec.Struct, path: str) -> None:
    for name, why in _REFUSED.items():
        value = getattr(message, name, UNSET)
        if isinstance(value, Raw) and bytes(value) not in _NOTHING:
            param = f"{path}.{name}"
            raise GatewayError(f"{param} is refused: {why}", kind=_UNSUPPORTED, param=param)


def text_of(content: str | list[Raw], path: str) -> str:
    """Return the text of a content: a text, or a list of text parts."""
    if isinstance(content, str):
        return content
    return "".join(_text(raw, f"{path}[{index}]").text for index, raw in enumerate(content))


def parts_of(content: Sequence[Raw], path: str) -> list[TextPart | ImagePart]:
    """Return the parts of a user's message or a tool's result: texts and images, in the form of either API."""
    return [_part(raw, f"{path}[{index}]") for index, raw in enumerate(content)]


def _part(raw: Raw, path: str) -> TextPart | ImagePart:
    kind = decode(raw, _Kind, path).type
    if kind == "image_url":
        return image_of(decode(raw, _Image, path).image_url.url, f"{path}.image_url.url")
    if kind != "input_image":
        return _text(raw, path)
    given = decode(raw, _InputImage, path)
    if isinstance(given.file_id, Raw) and bytes(given.file_id) != b"null":
        text = f"{path}.file_id is refused: no files are stored; give image_url a data URL"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.file_id")
    if given.image_url is None:
        raise GatewayError(f"{path}.image_url is required", param=f"{path}.image_url", reason="MISSING_FIELD")
    return image_of(given.image_url, f"{path}.image_url")


def _text(raw: Raw, path: str) -> TextPart:
    kind = decode(raw, _Kind, path).type
    if kind not in ("text", "input_text", "output_text"):
        place = "here" if kind in ("image_url", "input_image") else "by this service"
        text = f"{path}.type must be text, got {shown(kind)}: it is not taken {place}"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.type")
    return TextPart(decode(raw, _Text, path).text)


def image_of(url: str, path: str) -> ImagePart:
    """Return the image of a data URL. Addresses are refused: nothing is ever fetched."""
    head, comma, data = url.partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() != "data" or not comma:
        text = f"{path} must be a data URL (data:image/png;base64,...): no address is ever fetched"
        raise GatewayError(text, kind=_UNSUPPORTED, param=path)
    mime_type, _, encoding = rest.partition(";")
    if encoding.lower() != "base64":
        raise GatewayError(f"{path} must be encoded in base64", param=path)
    try:
        return ImagePart(base64.b64decode(data, validate=True), mime_type)
    except (binascii.Error, ValueError):
        raise GatewayError(f"{path} must be valid base64", param=path) from None


def shown(text: str) -> str:
    """Return a caller's text for a message, cut where it is long."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
