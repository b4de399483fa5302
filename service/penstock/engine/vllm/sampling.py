"""Convert an `EngineRequest` into vLLM's `SamplingParams`: names, defaults and the two counts that differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from penstock.engine.vllm.compat.constraint_prefix import PREFIX_TOKENS
from penstock.engine.vllm.constraints.compiling import compiled_text
from penstock.engine.vllm.marker_exit import EXIT
from penstock.errors import EngineRefused
from penstock.types import EngineRequest, Markers, ModelCard, Sampling, StructuredKind, StructuredOutput

_MAX_BAD_WORDS = 32  # vLLM checks each one in Python at every step
MAX_ALLOWED_TOKEN_IDS = 1024
"""Limit of vLLM's Model Runner V2 per request (v1/worker/gpu/sample/logit_bias.py); its worker dies above it.
Biases (1,024) and stop tokens (128) have limits there too; the service's own limits are lower."""


def sampling_params(request: EngineRequest, card: ModelCard, name_of: Callable[[int], str | None]) -> SamplingParams:
    """Return vLLM's parameters. `name_of` returns the text that encodes to exactly one token. Raise `EngineRefused`."""
    budget = request.thought_budget_tokens
    if budget is not None and card.markers is not None:
        budget += thought_tokens_in_prompt(request.prompt_token_ids, card.markers) or 0
    try:
        return SamplingParams(
            **_drawing(request.sampling, card.default_sampling),
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            stop_token_ids=_stops(request, card),
            logprobs=request.top_logprobs,
            thinking_token_budget=budget if card.forces_budget else None,
            **_without(request.banned_token_ids, card, name_of),
            structured_outputs=_structured(request.structured) if request.structured else None,
            extra_args=_extra_args(request) or None,
            output_kind=RequestOutputKind.DELTA,
            detokenize=False,
            skip_clone=True,
        )
    except ValueError as error:
        raise EngineRefused(f"vLLM refuses the sampling parameters: {error}") from error


def _extra_args(request: EngineRequest) -> dict[str, Any]:
    """Return what the extensions of vLLM read of a request."""
    arguments: dict[str, Any] = {}
    if request.constrained_prompt_tokens:
        arguments[PREFIX_TOKENS] = request.constrained_prompt_tokens
    if request.exit_probability is not None:
        arguments[EXIT] = [math.log(request.exit_probability), request.thought_start]
    return arguments


def _stops(request: EngineRequest, card: ModelCard) -> list[int]:
    """Return the stop tokens, which a constraint limits to the end of sequence.

    vLLM's grammar takes every stop token as the end of the text and nothing else, so a stop token that the constraint
    needs could never be written. The service finds such tokens itself (`generation.output_parser`).
    """
    return sorted(card.eos_ids if request.structured else {*request.stop_token_ids, *card.eos_ids})


def thought_tokens_in_prompt(prompt: tuple[int, ...], markers: Markers) -> int | None:
    """Return the tokens after the opening marker of a thought that the prompt leaves open; None where none is open.

    vLLM counts them against its budget (v1/sample/thinking_budget_state.py, `_init_state_entry`): the newline that the
    template adds, and in a continuation the thought so far. Our budget counts only what this run generates, so they are
    added.
    """
    backwards = prompt[::-1]
    try:
        opened = backwards.index(markers.open_id)
    except ValueError:
        return None
    return None if markers.close_id in backwards[:opened] else opened


def _drawing(asked: Sampling, default: Sampling) -> dict[str, Any]:
    """Return the sampling parameters of the caller, else the checkpoint's. vLLM's neutral values are the default."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    drawing: dict[str, Any] = {}
    for name in (*names, "seed"):
        value = getattr(asked, name)
        value = getattr(default, name) if value is None else value
        if value is not None:
            drawing[name] = value
    if asked.logit_bias:
        drawing["logit_bias"] = dict(asked.logit_bias)
    return drawing


def _without(banned: tuple[int, ...], card: ModelCard, name_of: Callable[[int], str | None]) -> dict[str, Any]:
    """Return parameters that ban tokens, also under speculation, where logit_bias does not work.

    Ban them as words where that is exact, else allow all other tokens. vLLM strips a word and encodes it again, so a
    ban is exact for markers and other words that do not begin with a space. Listing all other tokens is always exact,
    but costs a list of the vocabulary per request.
    """
    names = [name_of(token_id) for token_id in banned]
    if len(names) <= _MAX_BAD_WORDS and all(name and name == name.lstrip() for name in names):
        return {"bad_words": names}
    allowed = set(range(card.vocab_size)).difference(banned)
    if len(allowed) > MAX_ALLOWED_TOKEN_IDS and not _runs_v1(card):
        raise EngineRefused(
            f"Model Runner V2 can ban at most {_MAX_BAD_WORDS} tokens, each a word that encodes to one token, or allow "
            f"at most {MAX_ALLOWED_TOKEN_IDS} tokens, got {len(banned)} to ban and {len(allowed)} to allow"
        )
    return {"allowed_token_ids": sorted(allowed)}


def _runs_v1(card: ModelCard) -> bool:
    return any(feature.name == "model_runner" and feature.value == "V1" for feature in card.profile)


def _structured(structured: StructuredOutput) -> StructuredOutputsParams:
    match structured.kind:
        case StructuredKind.JSON_SCHEMA:
            return StructuredOutputsParams(json=compiled_text(structured))
        case StructuredKind.REGEX:
            return StructuredOutputsParams(regex=compiled_text(structured))
        case StructuredKind.GRAMMAR:
            return StructuredOutputsParams(grammar=structured.spec)
        case StructuredKind.CHOICE:
            return StructuredOutputsParams(choice=list(structured.choices))
        case StructuredKind.TOOL_CALLS:
            return StructuredOutputsParams(structural_tag=compiled_text(structured))
