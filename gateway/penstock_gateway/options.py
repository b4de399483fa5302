"""Convert what several kinds of requests share, such as sampling, tools and output, to options of the client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType
from penstock_client import Message, Tool

from penstock_gateway.bodies import decode
from penstock_gateway.errors import REQUEST, GatewayError, Kind

JSON_OBJECT = '{"type": "object"}'
EFFORTS: Mapping[str, str] = {
    "none": "none",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""OpenAI's and vLLM's efforts, and the service's."""
PRIORITIES: Mapping[str, str | None] = {
    "auto": None,
    "default": None,
    "flex": "low",
    "priority": "high",
    "scale": "high",
}
"""OpenAI's service tiers, and the service's priorities."""
Refused = Raw | UnsetType
"""The type of a field that is known, and refused by name where it asks for something."""
_MAX_DURATION_SECONDS = 1e9
"""What the wire can hold; the service checks the range."""
_UNSUPPORTED = Kind(400, REQUEST, "unsupported_value")
_STRUCTURED = {"json": "json_schema", "regex": "regex", "choice": "choices", "grammar": "grammar"}


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Refuse unknown fields."""


class EventOptions(Strict, frozen=True, kw_only=True):
    """Hold the `stream_options` of `/v1/responses`."""

    include_obfuscation: bool | None = None


class StreamOptions(EventOptions, frozen=True, kw_only=True):
    """Hold the `stream_options` of completions."""

    include_usage: bool | None = None


class CommonRequest(Strict, frozen=True, kw_only=True):
    """Hold the fields that all requests for text have, OpenAI's and the extensions."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    thinking_mode: Literal["fast", "thinking", "auto"] | None = None
    thinking_budget: int | None = None
    thinking_token_budget: int | None = None
    answer_reserve: int | None = None
    closing_message: str | None = None
    thought_stop: str | list[str] | None = None
    thought_stop_regex: str | None = None
    early_exit: Literal["off", "marker", "probe"] | None = None
    early_exit_probability: float | None = None
    include_reasoning: bool | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: dict[str, Raw] | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    timeout: float | None = None
    max_context_tokens: int | None = None
    overflow: Literal["error", "drop_oldest_turns", "truncate_left", "truncate_middle"] | None = None
    flush_interval: float | None = None
    resumable: bool | None = None


class ChoicesRequest(CommonRequest, frozen=True, kw_only=True):
    """Hold the fields that requests with several choices have beside the common ones.

    Those of the type `Refused` are vLLM's, and are refused by name.
    """

    n: int | None = None
    max_tokens: int | None = None
    stream_options: StreamOptions | None = None
    response_format: Raw | UnsetType = UNSET
    return_token_ids: bool | None = None
    guided_json: Refused = UNSET
    guided_regex: Refused = UNSET
    guided_choice: Refused = UNSET
    guided_grammar: Refused = UNSET
    priority: Refused = UNSET
    ignore_eos: Refused = UNSET
    prompt_logprobs: Refused = UNSET


@dataclass(frozen=True, slots=True)
class ServiceCall:
    """Describe one call of the service.

    Attributes:
        messages: The conversation; None where `options` has another input.
        options: The client's options.
        timeout: Seconds to the deadline, or None.
        flush_interval: Seconds for which deltas may be joined, or None.
    """

    messages: Sequence[Message] | None
    options: dict[str, Any]
    timeout: float | None = None
    flush_interval: float | None = None


def common_options(request: CommonRequest) -> dict[str, Any]:
    """Return the options that all requests have. Raises GatewayError for what the client cannot send."""
    if request.flush_interval is not None and not 0 <= request.flush_interval <= _MAX_DURATION_SECONDS:
        text = f"flush_interval must be in [0, {_MAX_DURATION_SECONDS:.0f}] seconds, got {request.flush_interval:g}"
        raise GatewayError(text, param="flush_interval")
    return {
        "model": request.model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": _logit_bias(request.logit_bias),
        "seed": within("seed", request.seed, 2**63),
        "stop": request.stop,
        "priority": PRIORITIES[request.service_tier] if request.service_tier else None,
        "top_k": within("top_k", 0 if request.top_k == -1 else request.top_k),
        "min_p": request.min_p,
        "min_output_tokens": within("min_tokens", request.min_tokens),
        "stop_token_ids": _each_within("stop_token_ids", request.stop_token_ids),
        "cache_salt": request.cache_salt,
        "session_id": request.session_id,
        "max_context_tokens": within("max_context_tokens", request.max_context_tokens),
        "overflow": request.overflow,
        **_structured(request.structured_outputs),
        **_thinking(request),
    }


def choices_options(request: ChoicesRequest) -> dict[str, Any]:
    """Return the options of a request with several choices. Raises GatewayError for what the client cannot send."""
    check_stream_options(request.stream_options)
    if request.stream_options is not None and not request.stream:
        raise GatewayError("stream_options needs stream: true", param="stream_options", reason="CONFLICTING_FIELDS")
    return {
        **common_options(request),
        **with_format(response_format(request.response_format), "response_format", request),
        "candidates": within("n", request.n),
        "return_token_ids": request.return_token_ids,
    }


def with_format(made: dict[str, Any], name: str, request: CommonRequest) -> dict[str, Any]:
    """Return the options `made` of a format. Raises GatewayError where another field constrains the answer, too."""
    if made and request.structured_outputs:
        text = f"{name} and structured_outputs are two names of one constraint: give one"
        raise GatewayError(text, param="structured_outputs", reason="CONFLICTING_FIELDS")
    return made


def one_of(**given: Any) -> Any:
    """Return the value of two names of one field. Raises GatewayError where they differ."""
    (first, one), (second, other) = given.items()
    if one is not None and other is not None and one != other:
        text = f"{first} and {second} are two names of one field; they differ"
        raise GatewayError(text, param=second, reason="CONFLICTING_FIELDS")
    return other if one is None else one


def _thinking(request: CommonRequest) -> dict[str, Any]:
    return {
        "thinking": request.thinking_mode,
        "budget": integer_of(
            thinking_budget=request.thinking_budget, thinking_token_budget=request.thinking_token_budget
        ),
        "answer_reserve": within("answer_reserve", request.answer_reserve),
        "closing_message": request.closing_message,
        "thought_stop": request.thought_stop,
        "thought_stop_regex": request.thought_stop_regex,
        "early_exit": request.early_exit,
        "early_exit_probability": request.early_exit_probability,
        "include_thoughts": request.include_reasoning,
    }


def check_stream_options(options: EventOptions | None) -> None:
    """Raise GatewayError for an option of streams that cannot be had."""
    if options is not None and options.include_obfuscation:
        text = "stream_options.include_obfuscation must be absent or false: events have no padding"
        raise GatewayError(text, kind=_UNSUPPORTED, param="stream_options.include_obfuscation")


def _logit_bias(given: Mapping[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    made = {}
    for key, value in given.items():
        digits = key.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 10:
            raise GatewayError('logit_bias must have token ids as its keys, such as "50256"', param="logit_bias")
        made[_checked("logit_bias", int(key), 2**31)] = value
    return made


def within(name: str, value: int | None, most: int = 2**31) -> int | None:
    """Return an integer that the wire can hold; the service checks the range."""
    return None if value is None else _checked(name, value, most)


def integer_of(**given: int | None) -> int | None:
    """Return the integer that has two names, as `one_of` and `within` do; an error has the name that was sent."""
    value: int | None = one_of(**given)
    return None if value is None else within(next(name for name, one in given.items() if one is not None), value)


def _checked(name: str, value: int, most: int) -> int:
    if not -most <= value < most:
        raise GatewayError(f"{name} must be an integer of {most.bit_length()} bits, got a larger one", param=name)
    return value


def _each_within(name: str, values: Iterable[int] | None) -> list[int] | None:
    return None if values is None else [_checked(f"{name}[{at}]", value, 2**31) for at, value in enumerate(values)]


def given(value: Raw | UnsetType) -> Raw | None:
    """Return a value of any form; None where it is absent or null."""
    return value if isinstance(value, Raw) and bytes(value) != b"null" else None


def _structured(given: Mapping[str, Raw] | None) -> dict[str, Any]:
    """Return the constraint of vLLM's `structured_outputs`: exactly one."""
    asked = {name: raw for name, raw in (given or {}).items() if bytes(raw) != b"null"}
    if not asked:
        return {}
    name, raw = next(iter(asked.items()))
    if len(asked) > 1 or name not in _STRUCTURED:
        text = f"structured_outputs must have exactly one of {', '.join(_STRUCTURED)}"
        raise GatewayError(text, param="structured_outputs", reason="CONFLICTING_FIELDS")
    path = f"structured_outputs.{name}"
    if name == "json":
        return {"json_schema": schema_text(raw, path)}
    return {_STRUCTURED[name]: decode(raw, list[str], path) if name == "choice" else decode(raw, str, path)}


def schema_text(raw: Raw, path: str) -> str:
    """Return a JSON schema as text: an object, or a text that holds one."""
    data = bytes(raw)
    if data.startswith(b'"'):
        return decode(raw, str, path)
    if not data.startswith(b"{"):
        raise GatewayError(f"{path} must be a JSON schema, an object", param=path)
    return data.decode()


class _JsonSchema(Strict, frozen=True, kw_only=True):
    name: str | None = None
    schema: Raw | UnsetType = UNSET
    description: str | None = None
    strict: bool | None = None


class _Format(Strict, frozen=True, kw_only=True):
    type: str
    json_schema: _JsonSchema | None = None


class _TextFormat(_JsonSchema, frozen=True, kw_only=True):
    type: str


def response_format(value: Raw | UnsetType) -> dict[str, Any]:
    """Return the options for OpenAI's `response_format`; a schema is always held by a grammar, `strict` or not."""
    if (raw := given(value)) is None:
        return {}
    form = decode(raw, _Format, "response_format")
    schema = form.json_schema.schema if form.json_schema is not None else UNSET
    return _constraint(form.type, schema, "response_format", "response_format.json_schema.schema")


def text_format(value: Raw | UnsetType) -> dict[str, Any]:
    """Return the options for `text.format` of `/v1/responses`, which has name and schema beside the type."""
    if (raw := given(value)) is None:
        return {}
    form = decode(raw, _TextFormat, "text.format")
    return _constraint(form.type, form.schema, "text.format", "text.format.schema")


def _constraint(kind: str, schema: Raw | UnsetType, path: str, schema_path: str) -> dict[str, Any]:
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": JSON_OBJECT}
    if kind != "json_schema":
        text = f"{path}.type must be text, json_object or json_schema"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.type")
    if (raw := given(schema)) is None:
        raise GatewayError(f"{schema_path} is required", param=schema_path, reason="MISSING_FIELD")
    return {"json_schema": schema_text(raw, schema_path)}


class _ToolKind(msgspec.Struct, frozen=True):
    type: str


class _FunctionTool(Strict, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None


class _Tool(Strict, frozen=True, kw_only=True):
    type: Literal["function"]
    function: _FunctionTool


class FlatTool(_FunctionTool, frozen=True, kw_only=True, rename={"is_async": "async"}):
    """Hold a tool as `/v1/responses` has it."""

    type: Literal["function"]
    is_async: Raw | UnsetType = UNSET
    allowed_callers: Raw | UnsetType = UNSET
    defer_loading: Raw | UnsetType = UNSET
    output_schema: Raw | UnsetType = UNSET


_TOOL_REFUSALS = {
    "is_async": ("async", "the service waits for results"),
    "allowed_callers": ("allowed_callers", "there are no hosted tools that could call it"),
    "defer_loading": ("defer_loading", "all tools are shown to the model"),
    "output_schema": ("output_schema", "results are texts"),
}
_NOTHING = (b"null", b"false", b"[]", b'["direct"]')


def tools_of(listed: Sequence[Raw] | None, *, flat: bool = False) -> list[Tool] | None:
    """Return the tools of a request; `flat` where name and parameters stand beside the type.

    Raises:
        GatewayError: A tool is of another type than `function`, or is none.
    """
    if not listed:
        return None
    return [_tool(raw, f"tools[{index}]", flat) for index, raw in enumerate(listed)]


def _tool(raw: Raw, path: str, flat: bool) -> Tool:
    kind = decode(raw, _ToolKind, path).type
    if kind != "function":
        text = f"{path}.type must be function, got {kind[:32]!r}: there are no hosted and no custom tools"
        raise GatewayError(text, kind=_UNSUPPORTED, param=f"{path}.type")
    made = decode(raw, FlatTool, path) if flat else decode(raw, _Tool, path).function
    _refuse_of_tool(made, path)
    inner = path if flat else f"{path}.function"
    schema = ""
    if (parameters := given(made.parameters)) is not None:
        schema = schema_text(parameters, f"{inner}.parameters")
    return Tool(made.name, made.description or "", schema, bool(made.strict))


def _refuse_of_tool(tool: _FunctionTool, path: str) -> None:
    for attribute, (name, why) in _TOOL_REFUSALS.items():
        value = getattr(tool, attribute, UNSET)
        if isinstance(value, Raw) and b"".join(bytes(value)[:32].split()) not in _NOTHING:
            raise GatewayError(f"{path}.{name} is refused: {why}", kind=_UNSUPPORTED, param=f"{path}.{name}")


def tool_options(
    tools: Sequence[Tool] | None, choice: Raw | UnsetType, parallel: bool | None, max_calls: int | None
) -> dict[str, Any]:
    """Return the options for tools and how they may be called. Raises as `tool_choice` does."""
    made = tool_choice(choice, has_tools=tools is not None)
    if tools is None:
        return made
    return {"tools": tools, "parallel": parallel, "max_tool_calls": within("max_tool_calls", max_calls)} | made


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    function: _Named | None = None
    name: str | None = None
    allowed_tools: _Allowed | None = None
    mode: str | None = None
    tools: list[_Choice] | None = None


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class _Allowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: str
    tools: list[_Choice]


def tool_choice(value: Raw | UnsetType, *, has_tools: bool) -> dict[str, Any]:
    """Return the options for OpenAI's `tool_choice`, in the form of either API.

    Raises:
        GatewayError: It is of another form, or needs tools and there are none.
    """
    if (raw := given(value)) is None:
        return {}
    if bytes(raw).startswith(b'"'):
        mode = decode(raw, str, "tool_choice")
        return _mode(mode, has_tools) if mode != "auto" else {}
    choice = decode(raw, _Choice, "tool_choice")
    if choice.type == "allowed_tools":
        mode, tools = (choice.allowed_tools.mode, choice.allowed_tools.tools) if choice.allowed_tools else _flat(choice)
        names = [_name_of(one) for one in tools]
        if mode not in ("auto", "required"):
            raise GatewayError("tool_choice.mode must be auto or required", param="tool_choice")
        return {**_mode(mode, has_tools), "allowed_tools": names}
    return {**_mode("required", has_tools), "allowed_tools": [_name_of(choice)], "max_tool_calls": 1}


def _flat(given: _Choice) -> tuple[str, list[_Choice]]:
    if given.mode is None or given.tools is None:
        raise GatewayError("tool_choice needs mode and tools", param="tool_choice", reason="MISSING_FIELD")
    return given.mode, given.tools


def _name_of(given: _Choice) -> str:
    name = given.function.name if given.function else given.name
    if given.type != "function" or name is None:
        text = "tool_choice must be none, auto, required, a function of tools, or allowed_tools"
        raise GatewayError(text, kind=_UNSUPPORTED, param="tool_choice")
    return name


def _mode(mode: str, has_tools: bool) -> dict[str, Any]:
    if mode not in ("none", "auto", "required"):
        text = "tool_choice must be none, auto, required, a function of tools, or allowed_tools"
        raise GatewayError(text, kind=_UNSUPPORTED, param="tool_choice")
    if not has_tools:
        if mode == "none":
            return {}
        raise GatewayError("tool_choice needs tools, and the request has none", param="tool_choice")
    return {"tool_mode": mode}
