"""Messages of a conversation and their parts, and their conversion from what other libraries' users write."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol, Self

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client import suggest
from penstock_client.values import ToolCallStatus, from_proto_enum

RoleName = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[RoleName, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a message.

    Attributes:
        text: The text.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtPart:
    """An earlier thought of the model; the option `history` decides whether the model is given it again.

    Attributes:
        text: The whole thought.
    """

    text: str


_SIGNATURES = (
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/webp", 8, b"WEBP"),
)
"""Media types, with the place and the bytes by which a file is known."""


class _PilImage(Protocol):
    """An image of Pillow, which this package does not need."""

    def save(self, fp: IO[bytes], format: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image, inline: the service fetches no addresses. Servers that read text only refuse it with `FeatureOff`.

    Attributes:
        data: The encoded image.
        mime_type: Its type: `image/png`, `image/jpeg` or `image/webp`.
    """

    data: bytes = field(repr=False)
    mime_type: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return an image, its type read from its first bytes. Raise ValueError for what is no PNG, JPEG or WebP."""
        for mime_type, at, signature in _SIGNATURES:
            if data[at : at + len(signature)] == signature:
                return cls(data, mime_type)
        raise ValueError("must be a PNG, JPEG or WebP image, got something else")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the image in a file. Raise OSError where it cannot be read, ValueError for another format."""
        with open(path, "rb") as file:
            data = file.read()
        try:
            return cls.from_bytes(data)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_pil(cls, image: _PilImage) -> Self:
        """Return an image of Pillow, as PNG."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return cls(buffer.getvalue(), "image/png")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for.

    Attributes:
        id: The server's id of the call; its `ToolResult` names it.
        name: Name of the tool. Without a grammar the model may write a name that no tool has.
        arguments_json: The arguments: the text of a JSON object.
        status: Whether the call is whole. Do not execute one that is not COMPLETE.
    """

    id: str
    name: str
    arguments_json: str = "{}"
    status: ToolCallStatus = ToolCallStatus.COMPLETE

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError where they are no JSON object, as in an INCOMPLETE call."""
        try:
            made = json.loads(self.arguments_json or "{}")
        except RecursionError:
            raise ValueError("the arguments are nested too deep") from None
        if not isinstance(made, dict):
            raise ValueError("the arguments are no JSON object")
        return made

    @classmethod
    def from_proto(cls, call: pb.ToolCall) -> Self:
        """Convert the message."""
        status = from_proto_enum(ToolCallStatus, pb.ToolCallStatus, call.status)
        return cls(call.id, call.name, call.arguments_json, status)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Hold what a tool returned.

    Attributes:
        call_id: Id of the `ToolCall` that it answers.
        content: The text for the model, or texts and images in order.
        is_error: Whether the tool failed; then `content` says how.
    """

    call_id: str
    content: str | tuple[TextPart | ImagePart, ...] = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The text of the content, without its images."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


Part = TextPart | ThoughtPart | ImagePart | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: a text, or parts in order.

    System and user messages have texts (and images, for users); tool messages have `ToolResult`; assistant messages
    have at most one thought, then texts, then tool calls.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: The text; empty beside `parts`.
        parts: The parts, in order.

    Raises:
        ValueError: Both `content` and `parts` are given.
    """

    role: RoleName
    content: str = ""
    parts: Sequence[Part] = ()

    def __post_init__(self) -> None:
        if self.content and self.parts:
            raise ValueError("a message has either content or parts: put the text into parts, as a TextPart")

    @property
    def text(self) -> str:
        """The text of the message: `content`, or the texts of its parts, joined."""
        return self.content or "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of an assistant message."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @classmethod
    def system(cls, text: str) -> Self:
        """Return a message of the system."""
        return cls("system", text)

    @classmethod
    def user(cls, *content: str | TextPart | ImagePart) -> Self:
        """Return a message of the user: one text, or texts and images in order."""
        if len(content) == 1 and isinstance(content[0], str):
            return cls("user", content[0])
        return cls("user", "", tuple(TextPart(part) if isinstance(part, str) else part for part in content))

    @classmethod
    def assistant(cls, text: str = "", *, thought: str = "", tool_calls: Iterable[ToolCall] = ()) -> Self:
        """Return an earlier message of the model. `reply.message` makes it from a reply."""
        calls = tuple(tool_calls)
        if not thought and not calls:
            return cls("assistant", text)
        parts = (*([ThoughtPart(thought)] if thought else ()), *([TextPart(text)] if text else ()), *calls)
        return cls("assistant", "", parts)

    @classmethod
    def tool(cls, *results: ToolResult) -> Self:
        """Return the message with the results of the tool calls in the message before."""
        return cls("tool", "", results)


MessageLike = Message | tuple[str, str | Sequence[Any]] | Mapping[str, Any] | pb.Message
"""A message: `Message`, (role, content), or a dict as OpenAI's and Anthropic's libraries take it."""


def to_protos(turn: object) -> list[pb.Message]:
    """Return the messages for one item of a prompt: one, or two where a dict mixes tool results and text.

    Raises:
        TypeError: A part has the wrong type.
        ValueError: The item is no message.
    """
    if isinstance(turn, pb.Message):
        return [turn]
    return [_to_proto(message) for message in _messages_of(turn)]


def _to_proto(message: Message) -> pb.Message:
    made = pb.Message(role=_role(message.role))
    if not isinstance(message.content, str):
        raise ValueError(f"content must be a str, got {type(message.content).__name__}")
    made.content = message.content
    made.parts.extend(_part_to_proto(part_of(part)) for part in message.parts)
    return made


def _role(role: object) -> pb.Role.ValueType:
    if role not in ROLES:
        hint = {"developer": "; did you mean 'system'?", "function": "; did you mean 'tool'?"}.get(str(role), "")
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}{hint}")
    return pb.Role.Value(f"ROLE_{str(role).upper()}")


def _part_to_proto(part: Part) -> pb.Part:
    match part:
        case TextPart():
            return pb.Part(text=part.text)
        case ThoughtPart():
            return pb.Part(thought=part.text)
        case ImagePart():
            return pb.Part(image=pb.Image(mime_type=part.mime_type, data=part.data))
        case ToolCall():
            status = pb.ToolCallStatus.Value(f"TOOL_CALL_STATUS_{part.status.name}")
            call = pb.ToolCall(id=part.id, name=part.name, arguments_json=part.arguments_json, status=status)
            return pb.Part(tool_call=call)
    content = (TextPart(part.content),) if isinstance(part.content, str) and part.content else part.content or ()
    told = [_part_to_proto(one) for one in _texts_and_images(content)]
    return pb.Part(tool_result=pb.ToolResult(call_id=part.call_id, content=told, is_error=part.is_error))


_KEYS = ("role", "content", "parts", "thought", "tool_calls", "tool_call_id")


def _messages_of(turn: object) -> list[Message]:
    if isinstance(turn, Message):
        return [turn]
    if isinstance(turn, Mapping):
        return _from_dict({key: value for key, value in turn.items() if value is not None or key == "content"})
    if isinstance(turn, tuple | list) and len(turn) == 2:
        return _from_content(turn[0], turn[1])
    hint = "; use its `message`" if hasattr(turn, "message") else ""
    raise ValueError(f"a message must be a Message, (role, content) or a dict, got {type(turn).__name__}{hint}")


def _from_dict(turn: Mapping[str, Any]) -> list[Message]:
    surplus = next((key for key in turn if key not in _KEYS), None)
    if surplus is not None:
        raise ValueError(suggest.unknown("key", surplus, _KEYS))
    if "role" not in turn or len(turn) < 2:
        raise ValueError(f"a dict must have the keys role and content, got {', '.join(map(repr, turn)) or 'none'}")
    role = turn["role"]
    if "tool_call_id" in turn:  # OpenAI
        if role != "tool":
            raise ValueError(f"tool_call_id belongs to a message of the role 'tool', got {role!r}")
        return [
            Message(
                "tool",
                "",
                (ToolResult(_string(turn["tool_call_id"], "tool_call_id"), _result_of(turn.get("content"))),),
            )
        ]
    if "tool_calls" not in turn and "thought" not in turn:
        return _from_content(role, turn["content"] if "parts" not in turn else turn["parts"])
    if role != "assistant":
        raise ValueError(f"tool_calls and thought belong to a message of the role 'assistant', got {role!r}")
    content = turn.get("content")
    calls = [_openai_call(call) for call in turn.get("tool_calls", ())]
    text = _text_of(content) if content is not None else ""
    return [Message.assistant(text, thought=_string(turn.get("thought", ""), "thought"), tool_calls=calls)]


def _from_content(role: Any, content: object) -> list[Message]:
    _role(role)
    if isinstance(content, str):
        return [Message(role, content)]
    if not isinstance(content, list | tuple):
        raise ValueError(f"content must be a str or a list of parts, got {type(content).__name__}")
    parts = [part_of(part, at) for at, part in enumerate(content)]
    results = [part for part in parts if isinstance(part, ToolResult)]
    if role != "user" or not results:
        return [Message(role, "", tuple(parts))]
    # Anthropic's form: the results are in the user's message, before its texts.
    others = [part for part in parts if not isinstance(part, ToolResult)]
    return [Message("tool", "", tuple(results)), *([Message("user", "", tuple(others))] if others else [])]


def _text_of(content: object) -> str:
    """Return the text of a str or of a list of texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"content must be a str or a list of texts, got {type(content).__name__}")
    parts = [part_of(part, at) for at, part in enumerate(content)]
    other = next((part for part in parts if not isinstance(part, TextPart)), None)
    if other is not None:
        raise ValueError(f"only texts are allowed here, got {type(other).__name__}")
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def _result_of(content: object) -> str | tuple[TextPart | ImagePart, ...]:
    """Return a tool's content: a text where it has no images."""
    if not isinstance(content, list | tuple):
        return _text_of(content)
    parts = _texts_and_images(content)
    return parts if any(isinstance(part, ImagePart) for part in parts) else _text_of(parts)


def _texts_and_images(content: Iterable[object]) -> tuple[TextPart | ImagePart, ...]:
    made: list[TextPart | ImagePart] = []
    for at, part in enumerate(content):
        found = part_of(part, at)
        if not isinstance(found, TextPart | ImagePart):
            raise ValueError(f"only texts and images are allowed in a tool's result, got {type(found).__name__}")
        made.append(found)
    return tuple(made)


def _openai_call(call: object) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call must be a ToolCall or a dict, got {type(call).__name__}")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping):
        raise ValueError(f"the function of a tool call must be a dict, got {type(inner).__name__}")
    _known(call, "key of a tool call:", ("type", "id", "function") if inner is not call else _CALL)
    if inner is not call:
        _known(inner, "key of a tool call's function:", ("name", "arguments"))
    missing = [key for key in ("id",) if key not in call] + [key for key in ("name",) if key not in inner]
    if missing:
        raise ValueError(f"a tool call needs id, name and arguments; {', '.join(missing)} is missing")
    arguments = inner.get("arguments", inner.get("arguments_json", "{}"))
    return ToolCall(_string(call["id"], "id"), _string(inner["name"], "name"), _arguments(arguments))


_CALL = ("type", "id", "name", "arguments", "arguments_json")


def _known(given: Mapping[str, Any], what: str, known: tuple[str, ...]) -> None:
    """Raise ValueError for the first key that is not known."""
    surplus = next((key for key in given if key not in known), None)
    if surplus is not None:
        raise ValueError(suggest.unknown(what, surplus, known))


def _arguments(arguments: object) -> str:
    if not isinstance(arguments, str | Mapping):
        raise ValueError(f"the arguments of a tool call must be a dict or a str, got {type(arguments).__name__}")
    return arguments if isinstance(arguments, str) else json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)


def part_of(part: object, at: int | None = None) -> Part:
    """Return the part for a str, a part, or a dict as other libraries write it.

    Raises:
        ValueError: It is no part; the message begins with the position `at`, where that is given.
    """
    try:
        return _part_of(part)
    except (ValueError, TypeError) as error:
        raise ValueError(f"parts[{at}]: {error}" if at is not None else str(error)) from None


def _part_of(part: object) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, Part):
        return part
    if not isinstance(part, Mapping):
        raise ValueError(
            f"a part must be a str, a TextPart, ThoughtPart, ImagePart, ToolCall or ToolResult, or a dict with a type, "
            f"got {type(part).__name__}"
        )
    kind = part.get("type")
    if kind not in _PARTS:
        raise ValueError(suggest.unknown("type of a part", kind, _PARTS))
    required, optional, make = _PARTS[kind]
    _known(part, f"key of a part of the type {kind!r}:", ("type", *required, *optional))
    missing = [key for key in required if key not in part]
    if missing:
        raise ValueError(f"a part of the type {kind!r} needs {', '.join(missing)}")
    return make(part)


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a str, got {type(value).__name__}")
    return value


def _image_of_url(part: Mapping[str, Any]) -> ImagePart:
    address = part["image_url"]
    if isinstance(address, Mapping):
        _known(address, "key of image_url:", ("url", "detail"))
    url = address.get("url") if isinstance(address, Mapping) else address
    head, comma, data = _string(url, "url").partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise ValueError("the service fetches no addresses: pass ImagePart(data, mime_type), or a base64 data: URL")
    return ImagePart(_from_base64(data), head.removeprefix("data:").removesuffix(";base64"))


def _image(part: Mapping[str, Any]) -> ImagePart:
    source = part.get("source", part)
    if not isinstance(source, Mapping) or source.get("type") == "url" or "data" not in source:
        raise ValueError("the service fetches no addresses: pass ImagePart(data, mime_type), or a base64 source")
    if source is not part:
        _known(source, "key of source:", ("type", "data", "media_type", "mime_type"))
    data, kind = source["data"], source.get("mime_type", source.get("media_type"))
    data = data if isinstance(data, bytes) else _from_base64(_string(data, "data"))
    return ImagePart(data, _string(kind, "mime_type"))


def _from_base64(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("the image's data must be base64") from None


def _tool_result(part: Mapping[str, Any]) -> ToolResult:
    call_id = part.get("call_id", part.get("tool_use_id"))
    if call_id is None:
        raise ValueError("a part of the type 'tool_result' needs call_id (or tool_use_id)")
    content, is_error = part.get("content") or "", part.get("is_error") or False
    if not isinstance(is_error, bool):
        raise ValueError(f"is_error must be True or False, got {type(is_error).__name__}")
    return ToolResult(_string(call_id, "call_id"), _result_of(content), is_error)


def _text(part: Mapping[str, Any]) -> TextPart:
    return TextPart(_string(part["text"], "text"))


# type -> (keys that it needs, keys that it may have, what it becomes)
_PARTS: Mapping[Any, tuple[tuple[str, ...], tuple[str, ...], Callable[[Mapping[str, Any]], Part]]] = {
    "text": (("text",), (), _text),
    "input_text": (("text",), (), _text),
    "output_text": (("text",), (), _text),
    "thought": (("text",), (), lambda part: ThoughtPart(_string(part["text"], "text"))),
    "thinking": (("thinking",), ("signature",), lambda part: ThoughtPart(_string(part["thinking"], "thinking"))),
    "image": ((), ("source", "data", "mime_type"), _image),
    "image_url": (("image_url",), (), _image_of_url),
    "tool_call": (("id", "name"), ("arguments_json", "arguments"), _openai_call),
    "tool_use": (
        ("id", "name", "input"),
        (),
        lambda part: ToolCall(_string(part["id"], "id"), _string(part["name"], "name"), _arguments(part["input"])),
    ),
    "tool_result": ((), ("call_id", "tool_use_id", "content", "is_error"), _tool_result),
}
