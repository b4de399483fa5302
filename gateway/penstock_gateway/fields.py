"""Tables of request fields: each is honoured, mapped, accepted without effect, or refused by name.

docs/reference/openai-compatibility.md has the same tables; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from penstock_gateway.errors import REQUEST, Kind, ParamOf, refusals

Treatment = Literal["honoured", "mapped", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """Say what becomes of one field of a request.

    Attributes:
        treatment: `honoured`: means what it means at OpenAI (or vLLM). `mapped`: becomes something near it. `accepted`:
            has no effect on the output. `refused`: an error that names it.
        note: What it becomes, or why it is refused.
        spec: Paths of the service's fields that it sets; errors of the service are told under the request's name. What
            follows a colon is the part of the field that sets it.
        neutral: JSON values of a refused field that ask for nothing, and are let through.
    """

    treatment: Treatment
    note: str
    spec: str = ""
    neutral: tuple[str, ...] = ()


Fields = Mapping[str, Field]

_CONSTRAINTS = (
    "spec.output.json_schema:json spec.output.regex:regex spec.output.grammar:grammar spec.output.choices:choice "
    "spec.output.structured_output"
)
SAMPLING: Fields = {
    "temperature": Field("honoured", "0 to 2; 0 is greedy", "spec.sampling.temperature"),
    "top_p": Field("honoured", "above 0, at most 1", "spec.sampling.top_p"),
    "frequency_penalty": Field("honoured", "-2 to 2", "spec.sampling.frequency_penalty"),
    "presence_penalty": Field("honoured", "-2 to 2", "spec.sampling.presence_penalty"),
    "logit_bias": Field("honoured", "token ids to -100 to 100", "spec.sampling.logit_bias"),
    "seed": Field("honoured", "0 to 2^63-1", "spec.sampling.seed"),
    "stop": Field("honoured", "a text or a list; not searched in thoughts and tool calls", "spec.output.stop_strings"),
}
CHOICES: Fields = {
    "n": Field("honoured", "1 to the service's limit", "spec.output.candidate_count"),
}
STREAM: Fields = {
    "stream": Field("honoured", "events of server-sent events, ended by `[DONE]`"),
    "stream_options": Field("honoured", "`include_usage`; `include_obfuscation` only as false; needs `stream`"),
}
IDENTITY: Fields = {
    "model": Field("honoured", "the served model; empty takes it, another one is 404", "spec.model"),
    "user": Field("accepted", "not stored, not logged, no effect"),
}
SERVICE_TIER: Fields = {
    "service_tier": Field("mapped", "priority: `flex` low, `priority` high, others normal", "spec.priority"),
}
ACCEPTED: Fields = {
    "metadata": Field("accepted", "not stored, not logged, no effect"),
    "safety_identifier": Field("accepted", "not stored, not logged, no effect"),
    "store": Field("refused", "nothing is stored; absent is false, as replies say", neutral=("false",)),
    **SERVICE_TIER,
    "prompt_cache_key": Field("mapped", "the session id, by which replicas route", "spec.context.session_id"),
}
EXTENSIONS: Fields = {
    "top_k": Field("honoured", "vLLM's; 0 or -1 is off", "spec.sampling.top_k"),
    "min_p": Field("honoured", "vLLM's; 0 to 1", "spec.sampling.min_p"),
    "repetition_penalty": Field("honoured", "vLLM's; 0.001 to 2", "spec.sampling.repetition_penalty"),
    "min_tokens": Field("honoured", "vLLM's; fewest output tokens", "spec.output.min_output_tokens"),
    "stop_token_ids": Field("honoured", "vLLM's; the answer ends at the first", "spec.output.stop_token_ids"),
    "cache_salt": Field("honoured", "vLLM's; keeps the prefix cache apart", "spec.context.cache_salt"),
    "session_id": Field("honoured", "vLLM's; routes to the same replica", "spec.context.session_id"),
    "timeout": Field("honoured", "Penstock's; seconds to the deadline, as the header `x-request-timeout`"),
    "max_context_tokens": Field(
        "honoured", "Penstock's; most tokens of prompt plus output", "spec.context.max_context_tokens"
    ),
    "overflow": Field(
        "honoured",
        "Penstock's; `error`, `drop_oldest_turns`, `truncate_left`, `truncate_middle`",
        "spec.context.overflow",
    ),
    "flush_interval": Field("honoured", "Penstock's; seconds for which deltas may be joined", "flush_interval"),
    "resumable": Field("honoured", "Penstock's; events have ids, and a dropped stream can be continued"),
}
TOKEN_IDS: Fields = {
    "return_token_ids": Field("honoured", "vLLM's; `token_ids` in each choice", "spec.output.return_token_ids"),
}
CONSTRAINTS: Fields = {
    "structured_outputs": Field("honoured", "vLLM's; one of `json`, `regex`, `choice`, `grammar`", _CONSTRAINTS),
}
"""Before the formats in each table: where both are sent, the format asks for nothing."""
RESPONSE_FORMAT: Fields = {
    "response_format": Field(
        "honoured",
        "`text`, `json_object`, `json_schema`, held by a grammar",
        "spec.output.json_schema spec.output.structured_output",
    ),
}
THINKING: Fields = {
    "thinking_mode": Field("honoured", "Penstock's; `fast`, `thinking`, `auto`", "spec.thinking.mode"),
    "thinking_budget": Field(
        "honoured", "Penstock's; most thought tokens, exact; -1 is no limit", "spec.thinking.thinking_budget"
    ),
    "thinking_token_budget": Field("honoured", "vLLM's name of `thinking_budget`", "spec.thinking.thinking_budget"),
    "answer_reserve": Field("honoured", "Penstock's; tokens kept for the answer", "spec.thinking.answer_reserve"),
    "closing_message": Field("honoured", "Penstock's; ends the thought at the budget", "spec.thinking.closing_message"),
    "thought_stop": Field(
        "honoured", "Penstock's; a text or a list that ends the thought", "spec.thinking.stop_patterns.strings"
    ),
    "thought_stop_regex": Field(
        "honoured", "Penstock's; ends the thought where it matches", "spec.thinking.stop_patterns.regex"
    ),
    "early_exit": Field("honoured", "Penstock's; `off`, `marker`, `probe`", "spec.thinking.early_exit"),
    "early_exit_probability": Field(
        "honoured", "Penstock's; from which probability on the thought ends", "spec.thinking.early_exit_probability"
    ),
    "include_reasoning": Field("honoured", "vLLM's; false sends no thought", "spec.thinking.include_thoughts"),
}
TOOLS: Fields = {
    "tools": Field("honoured", "of the type `function`; others are refused", "spec.tools"),
    "tool_choice": Field(
        "honoured",
        "`none`, `auto`, `required`, a named function, `allowed_tools`",
        "spec.tool_config.mode spec.tool_config.allowed_names",
    ),
    "parallel_tool_calls": Field("honoured", "false allows one call", "spec.tool_config.parallel"),
}
SERVED_BY_OPENAI: Fields = {
    "moderation": Field("refused", "the service does not moderate"),
    "prompt_cache_retention": Field(
        "refused", "the prefix cache keeps what fits into memory", neutral=('"in_memory"', '"in-memory"')
    ),
    "prompt_cache_options": Field("refused", "the prefix cache is automatic"),
}
VLLM: Fields = {
    "guided_json": Field("refused", "vLLM's old name; use `response_format` or `structured_outputs`"),
    "guided_regex": Field("refused", "vLLM's old name; use `structured_outputs`"),
    "guided_choice": Field("refused", "vLLM's old name; use `structured_outputs`"),
    "guided_grammar": Field("refused", "vLLM's old name; use `structured_outputs`"),
    "priority": Field("refused", "vLLM's; use `service_tier`", neutral=("0",)),
    "ignore_eos": Field("refused", "vLLM's; use `min_tokens`", neutral=("false",)),
    "prompt_logprobs": Field("refused", "vLLM's; prompts have no log probabilities here"),
}
CHAT: Fields = {
    "messages": Field("honoured", "see the table of messages", "spec.messages.messages"),
    **IDENTITY,
    "max_completion_tokens": Field("honoured", "thought, answer and tool calls", "spec.output.max_output_tokens"),
    "max_tokens": Field("honoured", "the old name of the same", "spec.output.max_output_tokens"),
    **SAMPLING,
    **CHOICES,
    "top_logprobs": Field("honoured", "0 to the service's limit; needs `logprobs`", "spec.output.top_logprobs"),
    "logprobs": Field("honoured", "of the answer's tokens", "spec.output.top_logprobs"),
    **STREAM,
    **CONSTRAINTS,
    **RESPONSE_FORMAT,
    **TOOLS,
    "reasoning_effort": Field(
        "mapped", "`minimal` is low; `xhigh` and `max` are high; a budget wins", "spec.thinking.effort"
    ),
    **ACCEPTED,
    "modalities": Field("refused", "the output is text", neutral=('["text"]',)),
    "audio": Field("refused", "the output is text"),
    "prediction": Field("refused", "predicted outputs are not used"),
    "verbosity": Field("refused", "say in the prompt how long the answer shall be", neutral=('"medium"',)),
    "web_search_options": Field("refused", "there are no hosted tools; give the model one of your own"),
    "functions": Field("refused", "deprecated; use `tools`"),
    "function_call": Field("refused", "deprecated; use `tool_choice`"),
    **SERVED_BY_OPENAI,
    **THINKING,
    "thought_history": Field("honoured", "Penstock's; `current_turn`, `all_turns`, `none`", "spec.thinking.history"),
    "max_tool_calls": Field("honoured", "Penstock's; most tool calls of one output", "spec.tool_config.max_calls"),
    "chat_template_kwargs": Field(
        "mapped", "vLLM's; `enable_thinking` alone, as `thinking_mode`", "spec.thinking.mode:enable_thinking"
    ),
    **EXTENSIONS,
    **TOKEN_IDS,
    **VLLM,
    "chat_template": Field("refused", "vLLM's; the template is the model's own"),
}
"""Fields of `POST /v1/chat/completions`."""
COMPLETIONS: Fields = {
    "prompt": Field(
        "honoured",
        "a text, token ids, or a list of either; as it stands, without the chat template",
        "spec.text spec.token_ids",
    ),
    **IDENTITY,
    "max_tokens": Field("honoured", "thought and answer; default 16, as at OpenAI", "spec.output.max_output_tokens"),
    **SAMPLING,
    **CHOICES,
    "best_of": Field("refused", "nothing ranks the outputs; use `n`", neutral=("1",)),
    "echo": Field("honoured", "for texts, without `logprobs` and `overflow`"),
    "suffix": Field("refused", "nothing is inserted; write the whole prompt", neutral=('""',)),
    "logprobs": Field("honoured", "0 to the service's limit, of the answer's tokens", "spec.output.top_logprobs"),
    **STREAM,
    **SERVICE_TIER,
    **CONSTRAINTS,
    **RESPONSE_FORMAT,
    **THINKING,
    **EXTENSIONS,
    **TOKEN_IDS,
    **VLLM,
    "use_beam_search": Field("refused", "vLLM's; use `n`", neutral=("false",)),
    "truncate_prompt_tokens": Field("refused", "vLLM's; use `max_context_tokens` and `overflow`"),
}
"""Fields of `POST /v1/completions`."""
RESPONSES: Fields = {
    "input": Field("honoured", "a text or a list of items, see the table of items", "spec.messages.messages"),
    "instructions": Field("honoured", "the first message, of the system"),
    **IDENTITY,
    "max_output_tokens": Field("honoured", "thought, answer and tool calls", "spec.output.max_output_tokens"),
    **TOOLS,
    "max_tool_calls": Field("mapped", "most calls of functions in one output", "spec.tool_config.max_calls"),
    "reasoning": Field(
        "mapped",
        "`effort` as chats' `reasoning_effort`; `context` is `thought_history`; with `summary` the whole thought is "
        "the summary",
        "spec.thinking.effort:effort spec.thinking.history:context",
    ),
    **CONSTRAINTS,
    "text": Field(
        "honoured",
        "`format`: `text`, `json_object`, `json_schema`, held by a grammar; `verbosity` only as `medium`",
        "spec.output.json_schema:format spec.output.structured_output:format",
    ),
    "include": Field(
        "honoured",
        "`message.output_text.logprobs`; `reasoning.encrypted_content` is null, because thoughts come as text; others "
        "are refused",
    ),
    "top_logprobs": Field("honoured", "0 to the service's limit", "spec.output.top_logprobs"),
    "truncation": Field("mapped", "`auto` drops the oldest turns, `disabled` is an error", "spec.context.overflow"),
    "stream": Field("honoured", "typed events of server-sent events"),
    "stream_options": Field("honoured", "`include_obfuscation` only as false"),
    **ACCEPTED,
    **SAMPLING,
    "previous_response_id": Field("refused", "nothing is stored; send the items in `input`"),
    "conversation": Field("refused", "nothing is stored; send the items in `input`"),
    "background": Field("refused", "nothing is stored; use a stream that is `resumable`", neutral=("false",)),
    "background_options": Field("refused", "nothing runs in the background"),
    "prompt": Field("refused", "no prompts are stored; use `input` and `instructions`"),
    "context_management": Field("refused", "nothing is compacted; use `truncation`"),
    "image": Field("refused", "images are not compressed"),
    "access_programs": Field("refused", "there are none"),
    **SERVED_BY_OPENAI,
    **THINKING,
    "thought_history": CHAT["thought_history"],
    **EXTENSIONS,
}
"""Fields of `POST /v1/responses`."""


def refuse_by_name(request: msgspec.Struct, fields: Fields) -> None:
    """Raise GatewayError with all refused fields that a request has, each with the reason."""
    found = []
    for name, field in fields.items():
        if field.treatment != "refused":
            continue
        value = getattr(request, name)
        if isinstance(value, msgspec.Raw) and not _asks_for_nothing(bytes(value), field):
            found.append((name, f"{name} is refused: {field.note}"))
    if found:
        error = refusals(found)
        error.kind = Kind(400, REQUEST, "unsupported_parameter")
        raise error


def _asks_for_nothing(value: bytes, field: Field) -> bool:
    if value == b"null":
        return True
    if not field.neutral or len(value) > max(map(len, field.neutral)) + 16:
        return False
    return b"".join(value.split()).decode(errors="replace") in field.neutral


def param_of(fields: Fields, request: msgspec.Struct | None = None) -> ParamOf:
    """Return the function that finds the request's name for a field of the service, such as `tools[0]`.

    Args:
        fields: The table of the request's kind.
        request: The request; of several names for one field, that which it uses is told.
    """
    by_spec: dict[str, tuple[str, str]] = {}
    given = [name for name in fields if getattr(request, name, None) not in (None, msgspec.UNSET, {})]
    for name in (*given, *fields):
        for spec in fields[name].spec.split():
            path, _, part = spec.partition(":")
            by_spec.setdefault(path, (name, part))

    def find(path: str) -> str | None:
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            found = by_spec.get(".".join(part.partition("[")[0] for part in parts[:end]))
            if found is not None:
                name, inside = found
                _, bracket, index = parts[end - 1].partition("[")
                place = "" if _is_single(getattr(request, name, None)) else f"{bracket}{index}"
                return f"{name}.{inside}{place}" if inside else f"{name}{place}"
        return None

    return find


def _is_single(value: object) -> bool:
    """Return whether a value has no items, such as a text where a list of texts may stand."""
    return isinstance(value, str) or (isinstance(value, msgspec.Raw) and not bytes(value).startswith(b"["))
