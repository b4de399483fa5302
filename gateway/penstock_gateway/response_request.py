"""Read `POST /v1/responses` and convert it to a call of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, Raw, UnsetType

from penstock_gateway import options as shared
from penstock_gateway.bodies import decode
from penstock_gateway.errors import REQUEST, GatewayError, Kind, ParamOf
from penstock_gateway.fields import RESPONSES, param_of, refuse_by_name
from penstock_gateway.options import one_of
from penstock_gateway.response_items import conversation_of

LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
_Refused = Raw | UnsetType
_Summary = Literal["auto", "concise", "detailed"]
_UNSUPPORTED = Kind(400, REQUEST, "unsupported_value")


class Reasoning(shared.Strict, frozen=True, kw_only=True):
    """Hold OpenAI's `reasoning`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class Text(shared.Strict, frozen=True, kw_only=True):
    """Hold OpenAI's `text`."""

    format: Raw | UnsetType = UNSET
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(shared.CommonRequest, frozen=True, kw_only=True):
    """Hold the body, field by field; those of the type `Raw` at the end are refused by name."""

    input: str | list[Raw]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    tools: list[Raw] | None = None
    tool_choice: Raw | UnsetType = UNSET
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: shared.EventOptions | None = None
    thought_history: Literal["current_turn", "all_turns", "none"] | None = None
    access_programs: _Refused = UNSET
    background: _Refused = UNSET
    background_options: _Refused = UNSET
    context_management: _Refused = UNSET
    conversation: _Refused = UNSET
    image: _Refused = UNSET
    moderation: _Refused = UNSET
    previous_response_id: _Refused = UNSET
    prompt: _Refused = UNSET
    prompt_cache_options: _Refused = UNSET
    prompt_cache_retention: _Refused = UNSET
    store: _Refused = UNSET


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """Describe the call that a request becomes.

    Attributes:
        call: The call of the service.
        param_of: Finds the request's name for a field of the service.
        echo: The fields of a response that repeat the request.
        has_summary: Whether the thought is sent as a summary.
    """

    call: shared.ServiceCall
    param_of: ParamOf
    echo: dict[str, Any]
    has_summary: bool


def to_call(request: ResponsesRequest) -> ResponsesCall:
    """Return the call of the service.

    Raises:
        GatewayError: A field is refused, or fields contradict each other.
    """
    refuse_by_name(request, RESPONSES)
    _check_options(request)
    tools = shared.tools_of(request.tools, flat=True)
    text, reasoning = request.text or Text(), request.reasoning or Reasoning()
    made = shared.common_options(request)
    made |= shared.with_format(shared.text_format(text.format), "text.format", request)
    made |= shared.tool_options(tools, request.tool_choice, request.parallel_tool_calls, request.max_tool_calls)
    made |= _thinking(request, reasoning)
    made |= {
        "max_output_tokens": shared.within("max_output_tokens", request.max_output_tokens),
        "top_logprobs": _top_logprobs(request),
        "session_id": one_of(session_id=request.session_id, prompt_cache_key=request.prompt_cache_key),
        "overflow": one_of(overflow=request.overflow, truncation=_OVERFLOWS.get(request.truncation or "")),
    }
    conversation = conversation_of(request.input, request.instructions)
    given = {name: value for name, value in made.items() if value is not None}
    return ResponsesCall(
        shared.ServiceCall(conversation.messages, given, request.timeout, request.flush_interval),
        _found_by(conversation.param_of, param_of(RESPONSES, request)),
        echo_of(request),
        bool(reasoning.summary or reasoning.generate_summary),
    )


_OVERFLOWS = {"auto": "drop_oldest_turns", "disabled": "error"}
_HISTORIES = {"current_turn": "current_turn", "all_turns": "all_turns"}


def _found_by(first: ParamOf, second: ParamOf) -> ParamOf:
    return lambda path: first(path) or second(path)


def _check_options(request: ResponsesRequest) -> None:
    shared.check_stream_options(request.stream_options)
    for index, name in enumerate(request.include or ()):
        if name not in (LOGPROBS, ENCRYPTED):
            raise _refused(f"include[{index}]", f"only {LOGPROBS} and {ENCRYPTED} can be included")
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        raise _refused("text.verbosity", "say in the prompt how long the answer shall be")
    reasoning = request.reasoning
    if reasoning is None:
        return
    for name in ("summary", "generate_summary"):
        if getattr(reasoning, name) == "concise":
            raise _refused(f"reasoning.{name}", "a thought is sent whole; auto and detailed are taken")
    if reasoning.mode not in (None, "standard"):
        raise _refused("reasoning.mode", "only standard is taken")


def _refused(name: str, why: str) -> GatewayError:
    return GatewayError(f"{name} is refused: {why}", kind=_UNSUPPORTED, param=name)


def _thinking(request: ResponsesRequest, reasoning: Reasoning) -> dict[str, Any]:
    context = {"reasoning.context": _HISTORIES.get(reasoning.context or "")}
    return {
        "effort": shared.EFFORTS[reasoning.effort] if reasoning.effort else None,
        "history": one_of(thought_history=request.thought_history, **context),
    }


def _top_logprobs(request: ResponsesRequest) -> int | None:
    if request.top_logprobs or LOGPROBS in (request.include or ()):
        return shared.within("top_logprobs", request.top_logprobs) or 0
    return None


def echo_of(request: ResponsesRequest) -> dict[str, Any]:
    """Return the fields of a response that repeat the request, with OpenAI's defaults; `store` is always false."""
    text, reasoning = request.text or Text(), request.reasoning or Reasoning()
    tools = [decode(raw, shared.FlatTool, "tools") for raw in request.tools or ()]
    choice, form = _on_one_line(request.tool_choice), _on_one_line(text.format)
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": request.safety_identifier,
        "service_tier": request.service_tier or "default",
        "store": False,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"} if form is None else form, "verbosity": "medium"},
        "tool_choice": "auto" if choice is None else choice,
        "tools": [_tool_of(tool) for tool in tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def _tool_of(tool: shared.FlatTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": _on_one_line(tool.parameters),
        "strict": bool(tool.strict),
    }


def _on_one_line(value: Raw | UnsetType) -> Raw | None:
    """Return JSON as it came, without the line breaks between its parts, which would end a line of an event."""
    raw = shared.given(value)
    return None if raw is None else Raw(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))
