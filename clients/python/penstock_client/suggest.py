"""Error messages for unknown names, with the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

# Names in other libraries, with ours.
ELSEWHERE: Mapping[str, str] = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "maxOutputTokens": "max_output_tokens",
    "min_tokens": "min_output_tokens",
    "thinking_budget": "budget",
    "reasoning_effort": "effort",
    "tool_choice": "tool_mode",
    "tool_config": "tool_mode",
    "functions": "tools",
    "function_call": "tool_mode",
    "parallel_tool_calls": "parallel",
    "allowed_function_names": "allowed_tools",
    "reasoning": "effort",
    "reasoning_content": "thought",
    "n": "candidates",
    "candidate_count": "candidates",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "response_model": "response_format",
    "output_type": "response_format",
    "logprobs": "top_logprobs",
}


def unknown(what: str, name: object, known: Collection[str]) -> str:
    """Return a message such as `unknown option 'thinkin'; did you mean 'thinking'?`."""
    text = str(name)
    meant = ELSEWHERE.get(text)
    if meant not in known:
        meant = next(iter(difflib.get_close_matches(text.lower(), known, 1, cutoff=0.7)), None)
    hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
