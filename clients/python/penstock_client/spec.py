"""Build a `GenerationSpec` from keywords. Both clients use it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, TypedDict, Unpack, cast

from penstock_proto.v1 import generation_pb2 as pb

from penstock_client import suggest
from penstock_client.messages import Message, MessageLike, to_protos
from penstock_client.seconds import duration_of
from penstock_client.tools import Tool, ToolLike, tool_of

Prompt = str | Sequence[MessageLike]
"""A str is one user message. A sequence is a conversation, oldest first, of `Message`, (role, content) or dicts."""


class GenerationOptions(TypedDict, total=False):
    """Keywords of `stream`, `interact`, `generate` and `count`. Absent or None: the server's default, see `model()`.

    The server checks the ranges, which are those of `penstock.v1.GenerationSpec`, and names the field that is wrong.
    """

    model: str | None
    """Name of the model. Default: the served one."""
    text: str | None
    """Raw text instead of a prompt; no chat template is applied."""
    token_ids: Iterable[int] | None
    """Raw token ids instead of a prompt."""
    thinking: Literal["fast", "thinking", "auto"] | None
    """Whether the model thinks before it answers."""
    budget: int | None
    """Highest number of thought tokens; -1 is no limit, 0 is no thought."""
    include_thoughts: bool | None
    """Whether the reply has the text of the thought."""
    effort: Literal["none", "low", "medium", "high"] | None
    """How hard the model thinks; the server's table makes it a budget. A `budget` overrides it."""
    history: Literal["current_turn", "all_turns", "none"] | None
    """Which earlier thoughts the model is given again. Default: those since the last user message."""
    tools: Iterable[ToolLike] | None
    """Tools that the model may ask for: what the decorator `tool` made, `Tool`, functions or dicts."""
    tool_mode: Literal["auto", "required", "none", "validated"] | None
    """Whether the model calls tools. Default: it decides. `validated` and `required` hold each call to its schema."""
    allowed_tools: Iterable[str] | None
    """Names of the only tools that may be called."""
    parallel: bool | None
    """Whether one output may have several calls."""
    max_tool_calls: int | None
    """Highest number of calls of one output."""
    answer_reserve: int | None
    """Output tokens kept for the answer."""
    closing_message: str | None
    """Text that ends the thought where the budget is reached."""
    thought_stop: str | Iterable[str] | None
    """The thought ends where one of these strings shows."""
    thought_stop_regex: str | None
    """The thought ends where this regular expression matches."""
    early_exit: Literal["off", "marker", "probe"] | None
    """What ends the thought before its budget, where more of it would not change the answer."""
    early_exit_probability: float | None
    """Probability from which on it ends: of the closing marker, or of the answer's first tokens with `probe`."""
    max_context_tokens: int | None
    """Highest number of tokens of prompt plus output."""
    overflow: Literal["error", "drop_oldest_turns", "truncate_left", "truncate_middle"] | None
    """How to shorten a prompt that does not fit."""
    cache_salt: str | None
    """Separates this request's prefix cache from that of other salts."""
    session_id: str | None
    """Id by which replicas route the requests of one conversation."""
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    max_output_tokens: int | None
    """Highest number of output tokens, thought plus answer."""
    min_output_tokens: int | None
    stop: str | Iterable[str] | None
    """The answer ends before the first of these strings."""
    stop_token_ids: Iterable[int] | None
    """The answer ends with the first of these tokens."""
    candidates: int | None
    """Number of outputs."""
    top_logprobs: int | None
    """Number of likely tokens that are returned with each token."""
    return_token_ids: bool | None
    """Whether the reply has token ids."""
    json_schema: str | Mapping[str, Any] | None
    """JSON schema that the answer follows."""
    response_format: type[Any] | None
    """Type of the answer, such as a pydantic model: sends its JSON schema; `reply.parsed` is the value."""
    regex: str | None
    """Regular expression that the answer matches."""
    grammar: str | None
    """Grammar that the answer follows."""
    choices: Iterable[str] | None
    """Texts of which the answer is one."""
    priority: Literal["low", "normal", "high"] | None
    """Position in the server's queue."""


# keyword -> (sub-message of the spec, or "" for the spec itself; field)
_FIELDS: Mapping[str, tuple[str, str]] = {
    "model": ("", "model"),
    "thought_stop_regex": ("thinking.stop_patterns", "regex"),
    "budget": ("thinking", "thinking_budget"),
    **{
        name: ("thinking", name)
        for name in ("include_thoughts", "answer_reserve", "closing_message", "early_exit_probability")
    },
    **{name: ("context", name) for name in ("max_context_tokens", "cache_salt", "session_id")},
    **{name: ("sampling", name) for name in pb.SamplingConfig.DESCRIPTOR.fields_by_name if name != "logit_bias"},
    "candidates": ("output", "candidate_count"),
    **{
        name: ("output", name)
        for name in ("max_output_tokens", "min_output_tokens", "top_logprobs", "return_token_ids")
    },
    **{name: ("output", name) for name in ("regex", "grammar")},
    "parallel": ("tool_config", "parallel"),
    "max_tool_calls": ("tool_config", "max_calls"),
}
_ENUMS = {
    "thinking": ("thinking", "mode", pb.ThinkingMode, "THINKING_MODE_"),
    "overflow": ("context", "overflow", pb.OverflowPolicy, "OVERFLOW_POLICY_"),
    "priority": ("", "priority", pb.Priority, "PRIORITY_"),
    "early_exit": ("thinking", "early_exit", pb.EarlyExit, "EARLY_EXIT_"),
    "effort": ("thinking", "effort", pb.Effort, "EFFORT_"),
    "history": ("thinking", "history", pb.ThoughtHistory, "THOUGHT_HISTORY_"),
    "tool_mode": ("tool_config", "mode", pb.ToolMode, "TOOL_MODE_"),
}
_LISTS = {
    "thought_stop": ("thinking.stop_patterns", "strings"),
    "stop": ("output", "stop_strings"),
    "stop_token_ids": ("output", "stop_token_ids"),
    "allowed_tools": ("tool_config", "allowed_names"),
}
_STRUCTURED = ("json_schema", "response_format", "regex", "grammar", "choices")


def build_spec(
    prompt: Prompt | None = None, *, spec: pb.GenerationSpec | None = None, **options: Unpack[GenerationOptions]
) -> pb.GenerationSpec:
    """Return the request for a prompt and options, or `spec` itself.

    Args:
        prompt: One user message, or a conversation.
        spec: A complete request; then no prompt and no options are allowed.
        **options: The fields of `GenerationOptions`.

    Raises:
        TypeError: An option is unknown or has the wrong type.
        ValueError: An option has a value that no request can hold, or options contradict each other.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in options if name not in GenerationOptions.__annotations__]
    if unknown:
        raise TypeError(suggest.unknown("option", unknown[0], GenerationOptions.__annotations__))
    if spec is not None:
        if prompt is not None or given:
            raise ValueError("spec is the complete request: remove the prompt and the other keywords")
        return spec
    made = pb.GenerationSpec()
    _set_input(made, prompt, given)
    if sum(name in given for name in _STRUCTURED) > 1:
        got = ", ".join(name for name in _STRUCTURED if name in given)
        raise ValueError(f"at most one of {', '.join(_STRUCTURED)} is allowed, got {got}")
    for name, value in given.items():
        try:
            _set_option(made, name, value)
        except TypeError as error:
            raise TypeError(f"{name}: {_in_words(error, value)}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return made


def _in_words(error: TypeError, value: object) -> str:
    """Return what is wrong where protobuf only says "bad argument type for built-in operation": it wants a str."""
    if "bad argument type" not in str(error):
        return str(error)
    got = next((one for one in value if not isinstance(one, str)), value) if isinstance(value, list | tuple) else value
    return f"must be a str, got {type(got).__name__}"


def stream_request(
    spec: pb.GenerationSpec, resumable: bool, flush_interval_seconds: float | None
) -> pb.StreamGenerateRequest:
    """Return the request of `StreamGenerate`."""
    flush_interval = duration_of("flush_interval_seconds", flush_interval_seconds)
    return pb.StreamGenerateRequest(spec=spec, resumable=resumable, flush_interval=flush_interval)


def interact_request(spec: pb.GenerationSpec, flush_interval_seconds: float | None) -> pb.InteractRequest:
    """Return the first request of `Interact`."""
    flush_interval = duration_of("flush_interval_seconds", flush_interval_seconds)
    return pb.InteractRequest(start=spec, flush_interval=flush_interval)


def _set_input(spec: pb.GenerationSpec, prompt: Prompt | None, given: dict[str, Any]) -> None:
    if (prompt is not None) + ("text" in given) + ("token_ids" in given) != 1:
        inputs = {"a prompt": prompt is not None, "text": "text" in given, "token_ids": "token_ids" in given}
        got = [name for name, is_given in inputs.items() if is_given]
        raise ValueError(f"exactly one of a prompt, text= and token_ids= is needed, got {' and '.join(got) or 'none'}")
    if prompt is None:
        return
    if not isinstance(prompt, str | Sequence):
        raise TypeError(f"prompt must be a str or a sequence of messages, got {type(prompt).__name__}; see also text=")
    turns: Sequence[MessageLike] = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    spec.messages.SetInParent()
    for position, turn in enumerate(turns):
        try:
            spec.messages.messages.extend(to_protos(turn))
        except (TypeError, ValueError) as error:
            raise ValueError(f"messages[{position}]: {error}") from error


def _set_tools(spec: pb.GenerationSpec, given: Iterable[ToolLike]) -> None:
    if isinstance(given, str | Mapping) or callable(given):
        raise TypeError(f"must be a list of tools, got {type(given).__name__}")
    for position, one in enumerate(given):
        try:
            made = tool_of(one)
            spec.tools.append(made.to_proto() if isinstance(made, Tool) else made)
        except TypeError as error:
            raise TypeError(f"tools[{position}]: {error}") from error
        except ValueError as error:
            raise ValueError(f"tools[{position}]: {error}") from error


def _set_option(spec: pb.GenerationSpec, name: str, value: Any) -> None:
    if name in _FIELDS:
        section, field = _FIELDS[name]
        setattr(_section(spec, section), field, value)
    elif name in _ENUMS:
        section, field, wrapper, prefix = _ENUMS[name]
        setattr(_section(spec, section), field, _enum_number(wrapper, prefix, value))
    elif name == "text":
        spec.text = value
    elif name == "token_ids":
        spec.token_ids.SetInParent()
        spec.token_ids.ids.extend(value)
    elif name == "logit_bias":
        spec.sampling.logit_bias.update(value)
    elif name in _LISTS:
        section, field = _LISTS[name]
        getattr(_section(spec, section), field).extend([value] if isinstance(value, str) else value)
    elif name == "json_schema":
        spec.output.json_schema = value if isinstance(value, str) else json.dumps(value)
    elif name == "tools":
        _set_tools(spec, value)
    elif name == "response_format":
        from penstock_client import structured

        spec.output.json_schema = structured.json_schema_for(value)
    elif name == "choices":
        spec.output.choices.choices.extend([value] if isinstance(value, str) else value)


def _section(spec: pb.GenerationSpec, name: str) -> Any:
    """Return the sub-message at a path of names; "" is the spec itself."""
    return attrgetter(name)(spec) if name else spec


def _enum_number(wrapper: Any, prefix: str, value: object) -> int:
    names = [name.removeprefix(prefix) for name in wrapper.keys() if not name.endswith("_UNSPECIFIED")]  # noqa: SIM118
    if not isinstance(value, str) or value.upper() not in names:
        allowed = [name.lower() for name in names]
        near = difflib.get_close_matches(str(value).lower(), allowed, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"must be one of {', '.join(allowed)}, got {value!r}{hint}")
    return cast(int, wrapper.Value(prefix + value.upper()))


def resume_request(generation_id: str, resume_token: str, last_sequence: int) -> pb.ResumeRequest:
    """Return the request of `Resume`.

    Raises:
        TypeError: A value is of another type.
        ValueError: `last_sequence` is below 0, or larger than any sequence number.
    """
    _check_texts(generation_id=generation_id, resume_token=resume_token)
    if isinstance(last_sequence, bool) or not isinstance(last_sequence, int):
        raise TypeError(f"last_sequence must be an int, got {type(last_sequence).__name__}")
    if not 0 <= last_sequence < 2**64:
        raise ValueError(f"last_sequence must be in [0, 2^64), got {last_sequence}")
    return pb.ResumeRequest(generation_id=generation_id, resume_token=resume_token, last_sequence=last_sequence)


def _check_texts(**texts: object) -> None:
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {type(value).__name__}")


def steer_request(
    generation_id: str, resume_token: str, *, finish_thinking: bool, budget: int | None, cancel: bool
) -> pb.SteerRequest:
    """Return the request of `Steer`.

    Raises:
        TypeError: `budget` is not an integer.
        ValueError: Not exactly one action is given, or no request can hold `budget`.
    """
    if finish_thinking + (budget is not None) + cancel != 1:
        raise ValueError("give exactly one of finish_thinking=True, budget=TOKENS and cancel=True")
    _check_texts(generation_id=generation_id, resume_token=resume_token)
    request = pb.SteerRequest(generation_id=generation_id, resume_token=resume_token)
    if finish_thinking:
        request.finish_thinking.SetInParent()
    elif cancel:
        request.cancel.SetInParent()
    else:
        assert budget is not None
        request.change_budget.thinking_budget = budget
        request.change_budget.SetInParent()
    return request
