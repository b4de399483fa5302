"""Read `POST /v1/completions` and convert it to calls of the service, one for each prompt."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw

from penstock_gateway import options as shared
from penstock_gateway.bodies import decode
from penstock_gateway.errors import REQUEST, GatewayError, Kind
from penstock_gateway.fields import COMPLETIONS, refuse_by_name

DEFAULT_MAX_TOKENS = 16
"""OpenAI's and vLLM's."""
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Prompt = str | list[TokenId]
_UNSUPPORTED = Kind(400, REQUEST, "unsupported_value")
_BEGINS_WITH_NUMBER = re.compile(rb"\[\s*[-0-9]")


class CompletionRequest(shared.ChoicesRequest, frozen=True, kw_only=True):
    """Hold the body, field by field; those of the type `Refused` are refused by name."""

    prompt: Raw
    echo: bool | None = None
    logprobs: int | None = None
    best_of: shared.Refused = UNSET
    suffix: shared.Refused = UNSET
    use_beam_search: shared.Refused = UNSET
    truncate_prompt_tokens: shared.Refused = UNSET


def to_calls(request: CompletionRequest, max_prompts: int) -> list[shared.ServiceCall]:
    """Return the calls of the service, in the order of the prompts.

    Raises:
        GatewayError: A field is refused, fields contradict each other, or there are more than `max_prompts` prompts.
    """
    refuse_by_name(request, COMPLETIONS)
    prompts = _prompts(request.prompt, max_prompts)
    _check_echo(request, prompts)
    if request.resumable and len(prompts) > 1:
        text = f"resumable needs one prompt, got {len(prompts)}: send one request for each"
        raise GatewayError(text, param="resumable", reason="CONFLICTING_FIELDS")
    made = shared.choices_options(request)
    most = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    made["max_output_tokens"] = shared.within("max_tokens", most)
    made["top_logprobs"] = shared.within("logprobs", request.logprobs)
    given = {name: value for name, value in made.items() if value is not None}
    call = shared.ServiceCall(None, given, request.timeout, request.flush_interval)
    return [replace(call, options={**given, **_input(prompt)}) for prompt in prompts]


def echo_of(request: CompletionRequest, call: shared.ServiceCall) -> str:
    """Return the text that each choice of a call begins with."""
    return call.options["text"] if request.echo else ""


def _input(prompt: Prompt) -> dict[str, Any]:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": prompt}


def _prompts(given: Raw, max_prompts: int) -> list[Prompt]:
    data = bytes(given)
    if data.startswith(b'"'):
        return [decode(given, str, "prompt")]
    if not data.startswith(b"["):
        text = "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
        raise GatewayError(text, param="prompt")
    if _BEGINS_WITH_NUMBER.match(data):
        return [decode(given, list[TokenId], "prompt")]
    listed = decode(given, list[Raw], "prompt")
    if not 1 <= len(listed) <= max_prompts:
        text = f"prompt must have 1 to {max_prompts} prompts (max_prompts of the gateway), got {len(listed)}"
        raise GatewayError(text, param="prompt", reason="LIMIT_EXCEEDED" if listed else "MISSING_FIELD")
    return [_listed(one, f"prompt[{index}]") for index, one in enumerate(listed)]


def _listed(given: Raw, path: str) -> Prompt:
    return decode(given, list[TokenId], path) if bytes(given).startswith(b"[") else decode(given, str, path)


def _check_echo(request: CompletionRequest, prompts: list[Prompt]) -> None:
    if not request.echo:
        return
    if request.logprobs is not None:
        text = "echo and logprobs exclude each other: prompts have no log probabilities here"
        raise GatewayError(text, param="echo", reason="CONFLICTING_FIELDS")
    if request.overflow not in (None, "error"):
        text = "echo and overflow exclude each other: what is dropped of the prompt would be echoed"
        raise GatewayError(text, param="echo", reason="CONFLICTING_FIELDS")
    if any(not isinstance(prompt, str) for prompt in prompts):
        raise GatewayError("echo needs prompts of text, got token ids", kind=_UNSUPPORTED, param="echo")
