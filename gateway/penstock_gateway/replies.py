"""Parts of replies that several endpoints share: usage, finish reasons, log probabilities, and our own extension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock_client import (
    Candidate,
    EffectiveSettings,
    FinishReason,
    Response,
    TokenLogprob,
    TokenLogprobs,
    ToolCall,
    ToolCallStatus,
    Usage,
)

FINISH_REASONS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.MAX_OUTPUT_TOKENS: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CANCELLED: "stop",
    FinishReason.DRAINED: "length",
    FinishReason.UNKNOWN: "stop",
}
"""OpenAI's finish reasons; the extension `penstock` has the service's own. `content_filter` is never sent."""


def finish_reason(candidate: Candidate) -> str:
    """Return OpenAI's finish reason of a candidate that has ended."""
    return FINISH_REASONS[candidate.finish_reason or FinishReason.UNKNOWN]


def stop_reason(candidate: Candidate) -> str | None:
    """Return vLLM's `stop_reason`: the stop string that ended the answer."""
    return candidate.matched_stop or None


def thought_of(text: str | None) -> dict[str, Any]:
    """Return a thought under both names: `reasoning_content` is most clients' and `reasoning` is vLLM's."""
    return {"reasoning_content": text, "reasoning": text}


def ending_of(candidate: Candidate) -> dict[str, Any]:
    """Return what a choice of a complete reply says of its end, and its token ids where they were asked for."""
    made: dict[str, Any] = {"finish_reason": finish_reason(candidate), "stop_reason": stop_reason(candidate)}
    if candidate.answer_token_ids or candidate.thought_token_ids:
        made["token_ids"] = [*candidate.thought_token_ids, *candidate.answer_token_ids]
    return made


def usage_of(*usages: Usage) -> dict[str, Any]:
    """Return OpenAI's usage, of several calls together; thought tokens are part of the completion tokens."""
    return {
        "prompt_tokens": sum(one.prompt_tokens for one in usages),
        "completion_tokens": sum(one.output_tokens for one in usages),
        "total_tokens": sum(one.total_tokens for one in usages),
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in usages)},
        "completion_tokens_details": {"reasoning_tokens": sum(one.reasoning_tokens for one in usages)},
    }


def logprobs_of(entries: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
    """Return the `content` of OpenAI's `logprobs`."""
    return [{**_logprob(entry.sampled), "top_logprobs": [_logprob(one) for one in entry.top]} for entry in entries]


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    text = one.token_bytes.decode(errors="replace")
    return {"token": text, "logprob": one.logprob, "bytes": list(one.token_bytes)}


def tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call of a message."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def started_extension(response: Response) -> dict[str, Any]:
    """Return the extension of a stream's first chunk."""
    made: dict[str, Any] = {"generation_id": response.generation_id}
    if response.effective_settings is not None:
        made["settings"] = settings_of(response.effective_settings)
    return made


def extension(response: Response) -> dict[str, Any]:
    """Return the extension `penstock` of a complete reply: what OpenAI's format has no place for."""
    made = started_extension(response)
    made["candidates"] = [_candidate(one) for one in response.candidates]
    if response.cost is not None:
        made["cost"] = {
            "usd": str(response.cost.usd),
            "input_usd_ticks": response.cost.input_usd_ticks,
            "cached_usd_ticks": response.cost.cached_usd_ticks,
            "output_usd_ticks": response.cost.output_usd_ticks,
            "total_usd_ticks": response.cost.total_usd_ticks,
        }
    if response.timing is not None:
        timing = response.timing
        made["timing"] = {
            "queue_seconds": timing.queue_seconds,
            "first_token_seconds": timing.first_token_seconds,
            "first_answer_token_seconds": timing.first_answer_token_seconds,
            "total_seconds": timing.total_seconds,
        }
    if response.usage is not None:
        made["usage"] = {
            "answer_tokens": response.usage.answer_tokens,
            "tool_tokens": response.usage.tool_tokens,
            "marker_tokens": response.usage.marker_tokens,
            "drafted_tokens": response.usage.drafted_tokens,
            "accepted_tokens": response.usage.accepted_tokens,
            "recomputed_tokens": response.usage.recomputed_tokens,
        }
    return made


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "finish_reason": candidate.finish_reason,
        "matched_stop": candidate.matched_stop or None,
        "thinking_outcome": candidate.thinking_outcome,
        "reasoning_tokens": candidate.reasoning_tokens,
        "answer_tokens": candidate.answer_tokens,
        "tool_tokens": candidate.tool_tokens,
        "incomplete_tool_calls": [one.id for one in candidate.tool_calls if one.status is not ToolCallStatus.COMPLETE],
    }


def settings_of(settings: EffectiveSettings) -> dict[str, Any]:
    """Return what the service made of the request."""
    return {
        "thinking_mode": settings.thinking_mode,
        "requested_thinking_mode": settings.requested_thinking_mode,
        "thinking_budget": settings.thinking_budget,
        "thinking_reason": settings.thinking_reason,
        "effort": settings.effort,
        "answer_reserve": settings.answer_reserve,
        "max_output_tokens": settings.max_output_tokens,
        "window_tokens": settings.window_tokens,
        "dropped_tokens": settings.dropped_tokens,
        "dropped_messages": settings.dropped_messages,
    }
