"""Read `POST /v1/chat/completions` and convert it to a call of the service."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, UnsetType

from penstock_gateway import options as shared
from penstock_gateway.errors import GatewayError
from penstock_gateway.fields import CHAT, refuse_by_name
from penstock_gateway.messages import messages_of
from penstock_gateway.options import one_of


class _TemplateArguments(shared.Strict, frozen=True, kw_only=True):
    enable_thinking: bool | None = None


class ChatRequest(shared.ChoicesRequest, frozen=True, kw_only=True):
    """Hold the body, field by field; those of the type `Refused` are refused by name."""

    messages: list[Raw]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Raw] | None = None
    tool_choice: Raw | UnsetType = UNSET
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    thought_history: Literal["current_turn", "all_turns", "none"] | None = None
    max_tool_calls: int | None = None
    chat_template_kwargs: _TemplateArguments | None = None
    store: shared.Refused = UNSET
    modalities: shared.Refused = UNSET
    audio: shared.Refused = UNSET
    prediction: shared.Refused = UNSET
    verbosity: shared.Refused = UNSET
    web_search_options: shared.Refused = UNSET
    functions: shared.Refused = UNSET
    function_call: shared.Refused = UNSET
    moderation: shared.Refused = UNSET
    prompt_cache_retention: shared.Refused = UNSET
    prompt_cache_options: shared.Refused = UNSET
    chat_template: shared.Refused = UNSET


def to_call(request: ChatRequest) -> shared.ServiceCall:
    """Return the call of the service.

    Raises:
        GatewayError: A field is refused, or fields contradict each other.
    """
    refuse_by_name(request, CHAT)
    made = shared.choices_options(request)
    made |= _thinking(request)
    made |= _output(request)
    tools = shared.tools_of(request.tools)
    made |= shared.tool_options(tools, request.tool_choice, request.parallel_tool_calls, request.max_tool_calls)
    made["session_id"] = one_of(session_id=request.session_id, prompt_cache_key=request.prompt_cache_key)
    given = {name: value for name, value in made.items() if value is not None}
    return shared.ServiceCall(messages_of(request.messages), given, request.timeout, request.flush_interval)


def _thinking(request: ChatRequest) -> dict[str, Any]:
    template = request.chat_template_kwargs
    enabled = template.enable_thinking if template is not None else None
    by_template = None if enabled is None else "thinking" if enabled else "fast"
    return {
        "thinking": one_of(thinking_mode=request.thinking_mode, chat_template_kwargs=by_template),
        "effort": shared.EFFORTS[request.reasoning_effort] if request.reasoning_effort else None,
        "history": request.thought_history,
    }


def _output(request: ChatRequest) -> dict[str, Any]:
    return {
        "max_output_tokens": shared.integer_of(
            max_completion_tokens=request.max_completion_tokens, max_tokens=request.max_tokens
        ),
        "top_logprobs": _top_logprobs(request),
    }


def _top_logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return shared.within("top_logprobs", request.top_logprobs) or 0
    if request.top_logprobs:
        raise GatewayError("top_logprobs needs logprobs: true", param="top_logprobs", reason="CONFLICTING_FIELDS")
    return None
