"""Prepare conversations for chat templates, and learn from a template how it writes thoughts and tool calls."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import BadRequest, FieldViolation
from penstock.types import Image, Message, Role, Tool, ToolCallFormat

Turn = dict[str, Any]
"""A message as chat templates read it."""

# What templates look for in a schema; they never write these words between angle brackets.
_SCHEMA_WORDS = frozenset(
    {
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "const",
        "description",
        "title",
        "default",
        "format",
        "additionalProperties",
        "anyOf",
        "oneOf",
        "allOf",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "nullable",
        "object",
        "array",
        "string",
        "integer",
        "number",
        "boolean",
        "null",
    }
)
_SPACE = re.compile(r"[ \t\r\n]*")
# Longer integers are copied as they are: Python refuses to parse them.
_MAX_INTEGER_DIGITS = 4000


@dataclass(frozen=True, slots=True)
class Piece:
    """Hold a part of a prompt: markup of the template, or text of the caller, in which nothing is a control token."""

    text: str
    is_markup: bool


class Placeholders:
    """Replace texts of a caller by random placeholders, and put them back into what a template has made of them.

    A placeholder contains one backslash. A template that serializes it as JSON doubles the backslash, so the number of
    backslashes tells how often the text must be escaped at its place.
    """

    def __init__(self, is_clean: Callable[[str], bool]) -> None:
        """Start without placeholders. A text for which `is_clean` is true is left as it is."""
        self._is_clean = is_clean
        # Digits survive what a template does to letters, and nobody can guess 126 random bits.
        self._nonce = str(secrets.randbelow(10**38) + 10**38)
        self._bodies: list[tuple[str, bool]] = []

    def text(self, text: str) -> str:
        """Return the text, or a placeholder between the text's own leading and trailing white space."""
        body = text.strip()
        if not body or self._is_clean(body):
            return text
        start = text.index(body)
        return text[:start] + self._add(body, False) + text[start + len(body) :]

    def verbatim(self, json_text: str) -> str:
        """Return a placeholder for a JSON value. Where a template writes it as a JSON string, the value replaces it."""
        return self._add(json_text, True)

    def _add(self, body: str, is_json: bool) -> str:
        self._bodies.append((body, is_json))
        return f"{self._nonce}\\{len(self._bodies) - 1}:"

    def pieces(self, text: str) -> list[Piece]:
        """Return a rendered text with the caller's texts at their places."""
        pieces: list[Piece] = []
        end = 0
        for match in re.finditer(rf"{self._nonce}(\\+)(\d+):", text) if self._bodies else ():
            body, is_json = self._bodies[int(match[2])]
            escapes = len(match[1]).bit_length() - 1
            start, after = match.span()
            if is_json and escapes == 1 and start > end and text[start - 1] == text[after : after + 1] == '"':
                start, after, escapes = start - 1, after + 1, 0
            for _ in range(escapes):
                body = json.dumps(body, ensure_ascii=False)[1:-1]
            pieces += [Piece(text[end:start], True), Piece(body, False)]
            end = after
        return [piece for piece in (*pieces, Piece(text[end:], True)) if piece.text]


# ---------------------------------------------------------------------------------------------------- caller's input


def tools_for_template(tools: Sequence[Tool], placeholders: Placeholders) -> list[dict[str, Any]]:
    """Return the tools as templates read them: key order, large integers and Unicode are kept.

    Raise BadRequest for a schema that is not a JSON object.
    """
    described = []
    for number, tool in enumerate(tools):
        function: dict[str, Any] = {"name": placeholders.text(tool.name)}
        if tool.description:
            function["description"] = placeholders.text(well_formed(tool.description))
        try:
            function["parameters"] = _schema(tool.parameters_json_schema, placeholders)
        except (ValueError, RecursionError) as error:
            path = f"spec.tools[{number}].parameters_json_schema"
            raise BadRequest(FieldViolation(path, "must be a JSON object as text", "INVALID_FIELD")) from error
        described.append({"type": "function", "function": function})
    return described


class _Number(str):
    """A number whose text Python would write otherwise."""

    __slots__ = ()


def _integer(text: str) -> int | _Number:
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS and text != "-0" else _Number(text)


def _real(text: str) -> float | _Number:
    return float(text) if repr(float(text)) == text else _Number(text)


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _schema(text: str, placeholders: Placeholders) -> dict[str, Any]:
    if not text:
        return {"type": "object", "properties": {}}
    schema = json.loads(text, parse_int=_integer, parse_float=_real, parse_constant=_no_constant)
    if not isinstance(schema, dict):
        raise ValueError("not an object")
    hidden: dict[str, Any] = _hidden(schema, placeholders)
    return hidden


def _hidden(value: Any, placeholders: Placeholders) -> Any:
    """Return a JSON value with placeholders for the texts in it."""
    if isinstance(value, dict):
        return {_hidden(key, placeholders): _hidden(entry, placeholders) for key, entry in value.items()}
    if isinstance(value, list):
        return [_hidden(entry, placeholders) for entry in value]
    if isinstance(value, _Number):
        return placeholders.verbatim(str(value))
    if isinstance(value, str) and value not in _SCHEMA_WORDS:
        return placeholders.text(well_formed(value))
    return value


def well_formed(text: str) -> str:
    """Return the text with U+FFFD for surrogates without a partner, which JSON can spell and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def arguments_of(json_text: str) -> dict[str, str | tuple[str]]:
    """Return the arguments of a tool call by name: a string's text, or a 1-tuple with the text of another JSON value.

    Raise ValueError where the text is not a JSON object.
    """
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)
    arguments: dict[str, str | tuple[str]] = {}
    at = _expect(json_text, 0, "{")
    if json_text[at : at + 1] != "}":
        while True:
            if json_text[at : at + 1] != '"':
                raise ValueError(f"no key at {at}")
            key, at = decoder.raw_decode(json_text, at)
            at = _expect(json_text, at, ":")
            value, end = decoder.raw_decode(json_text, at)
            is_text = json_text[at] == '"'
            arguments[well_formed(key)] = well_formed(value) if is_text else (json_text[at:end],)
            at = _skip(json_text, end)
            if json_text[at : at + 1] != ",":
                break
            at = _expect(json_text, at, ",")
    if _expect(json_text, at, "}") != len(json_text):
        raise ValueError("text after the object")
    return arguments


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, character: str) -> int:
    """Return the place after a character, and after the white space around it."""
    at = _skip(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"no {character} at {at}")
    return _skip(text, at + 1)


def shown_images(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Return the images of a conversation in the order in which `TurnWriter` writes them."""
    if not any(message.images or message.tool_results for message in messages):
        return ()
    writer = TurnWriter(Placeholders(lambda _: True), verbatim_arguments=False)
    contents = [turn["content"] for turn in writer.turns(messages, [False] * len(messages))]
    items = [item for content in contents if isinstance(content, list) for item in content]
    return tuple(item["image"] for item in items if item["type"] == "image")


class TurnWriter:
    """Convert messages to what a template reads."""

    def __init__(self, placeholders: Placeholders, verbatim_arguments: bool) -> None:
        """Write arguments as one JSON text where `verbatim_arguments` is true, else as a mapping."""
        self._placeholders = placeholders
        self._verbatim_arguments = verbatim_arguments

    def turns(self, messages: Sequence[Message], with_thought: Sequence[bool]) -> list[Turn]:
        """Return the turns; a message's thought is in its turn where `with_thought` is true for the message.

        Results are in the order of their calls, because templates without ids tell them apart by place alone. Raise
        ValueError where the arguments of a call are not a JSON object.
        """
        turns: list[Turn] = []
        results: list[tuple[int, Turn]] = []
        calls: dict[str, tuple[int, str]] = {}
        for message, thinks in zip(messages, with_thought, strict=True):
            if message.role is Role.TOOL:
                results += self._results(message, calls)
                continue
            turns += [turn for _, turn in sorted(results, key=lambda result: result[0])]
            results = []
            turns.append(self._turn(message, thinks))
            calls = {call.id: (place, call.name) for place, call in enumerate(message.tool_calls)}
        return turns + [turn for _, turn in sorted(results, key=lambda result: result[0])]

    def _results(self, message: Message, calls: Mapping[str, tuple[int, str]]) -> list[tuple[int, Turn]]:
        """Return the results with the places of their calls. The text of a failed call is given like any other."""
        if not message.tool_results:
            return [(len(calls), {"role": "tool", "content": self._placeholders.text(message.content)})]
        turns = []
        for result in message.tool_results:
            place, name = calls.get(result.call_id, (len(calls), ""))
            turn = {
                "role": "tool",
                "content": self._content(result.text, result.images),
                "tool_call_id": self._placeholders.text(result.call_id),
            }
            turns.append((place, turn | ({"name": self._placeholders.text(name)} if name else {})))
        return turns

    def _turn(self, message: Message, thinks: bool) -> Turn:
        turn: Turn = {"role": message.role.value, "content": self._content(message.content, message.images)}
        if thinks and message.thought.strip():
            turn["reasoning_content"] = self._placeholders.text(message.thought)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "id": self._placeholders.text(call.id),
                    "function": {
                        "name": self._placeholders.text(call.name),
                        "arguments": self._arguments(call.arguments_json or "{}"),
                    },
                }
                for call in message.tool_calls
            ]
        return turn

    def _content(self, text: str, images: Sequence[Image]) -> str | list[Turn]:
        """Return a text, or a list of texts and images where there are images."""
        if not images:
            return self._placeholders.text(text)
        items: list[Turn] = []
        written = 0
        for image in images:
            if before := text[written : image.place]:
                items.append({"type": "text", "text": self._placeholders.text(before)})
            items.append({"type": "image", "image": image})
            written = image.place
        if rest := text[written:]:
            items.append({"type": "text", "text": self._placeholders.text(rest)})
        return items

    def _arguments(self, json_text: str) -> dict[str, str] | str:
        """Return what the caller sent, value by value as it stands: the model's own tokens are in the cache."""
        arguments = arguments_of(json_text)
        if self._verbatim_arguments:
            return self._placeholders.verbatim(json_text)
        return {
            self._placeholders.text(name): self._placeholders.text(value)
            if isinstance(value, str)
            else self._placeholders.verbatim(value[0])
            for name, value in arguments.items()
        }


# -------------------------------------------------------------------------------------------------- template's layout

Apply = Callable[..., str]
"""Render turns. Keywords: tools, generates (whether to add the generation prompt), thinking. Raises BadRequest."""


@dataclass(frozen=True, slots=True)
class ThoughtLayout:
    """Hold how a template writes an assistant's thought: `header` `opening` thought `closing` content."""

    header: str
    opening: str
    closing: str

    def section(self, thought: str) -> list[Piece]:
        """Return a whole think section."""
        return [Piece(self.opening, True), Piece(thought.strip(), False), Piece(self.closing, True)]


def learn_thought_layout(apply: Apply) -> ThoughtLayout | None:
    """Return how the template writes thoughts; None where it writes none, or nothing between header and content."""
    user, answer = {"role": "user", "content": "probe0"}, {"role": "assistant", "content": "probe2"}
    try:
        _, _, end_of_user = apply([user]).partition("probe0")
        historical = apply([user, answer, user])
        live = apply([user, {**answer, "reasoning_content": "probe1"}])
    except (BadRequest, ValueError):  # The template refuses them, or there is none.
        return None
    if not end_of_user or live.count("probe1") != 1 or not live.find("probe1") < live.find("probe2"):
        return None
    header = _between(historical, "probe0", "probe2").removeprefix(end_of_user)
    opening = _between(live, "probe0", "probe1").removeprefix(end_of_user)
    closing = _between(live, "probe1", "probe2")
    if not header or not opening.startswith(header) or opening == header or not closing:
        return None
    return ThoughtLayout(header, opening.removeprefix(header), closing)


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


def with_sections(pieces: Sequence[Piece], layout: ThoughtLayout, thoughts: Sequence[str | None]) -> list[Piece] | None:
    """Add the think sections that the template left out.

    Args:
        pieces: The prompt.
        layout: How the template writes thoughts.
        thoughts: The thought of each assistant message; None for a message that has no section.

    Returns:
        The prompt; None where it does not have one header for each message, so that no place is certain.
    """
    found = 0
    result: list[Piece] = []
    for piece in pieces:
        if not piece.is_markup:
            result.append(piece)
            continue
        first, *rest = piece.text.split(layout.header)
        result.append(Piece(first, True))
        for after in rest:
            result.append(Piece(layout.header, True))
            thought = thoughts[found] if found < len(thoughts) else None
            if thought is not None and not after.startswith(layout.opening):
                result += layout.section(thought)
            found += 1
            result.append(Piece(after, True))
    is_certain = len(thoughts) <= found <= len(thoughts) + 1
    return [piece for piece in result if piece.text] if is_certain else None


def learn_call_format(apply: Apply) -> tuple[ToolCallFormat | None, bool, str]:
    """Find out how the template writes tool calls, by rendering one.

    Returns:
        The format (None where the template has no tools), whether arguments can be given as one JSON text, and why.
    """
    tool = {
        "type": "function",
        "function": {"name": "probe_tool", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    try:
        text = apply(_probe_call({"probe_key": "probe_value"}), tools=[tool])
    except (BadRequest, ValueError):
        return None, False, "the chat template refuses tools"
    if "probe_tool" not in text:
        return None, False, "the chat template does not show tools to the model"
    if re.search(r"<function=probe_call>\s*<parameter=probe_key>\s*probe_value\s*</parameter>", text):
        return ToolCallFormat.XML, False, "the chat template writes <function=NAME> with <parameter=KEY>"
    if not re.search(r'"name":\s*"probe_call"', text) or "probe_value" not in text:
        return None, False, "the chat template writes tool calls in a layout that this service does not read"
    why = "the chat template writes a JSON object with name and arguments"
    placeholders = Placeholders(lambda _: True)
    try:
        as_text = apply(_probe_call(placeholders.verbatim('{"probe_key": "probe_value"}')), tools=[tool])
    except (BadRequest, ValueError):
        return ToolCallFormat.JSON, False, why
    whole = "".join(piece.text for piece in placeholders.pieces(as_text))
    return ToolCallFormat.JSON, whole == text, why


def _probe_call(arguments: Mapping[str, str] | str) -> list[Turn]:
    call = {"type": "function", "id": "probe_id", "function": {"name": "probe_call", "arguments": arguments}}
    return [
        {"role": "user", "content": "probe"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "probe", "tool_call_id": "probe_id", "name": "probe_call"},
    ]
