"""Validate every field of a request against its range, the server's limits and what the engine refuses.

All violations are collected before any is raised, each under its proto path, so that a caller can correct them at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from penstock.config.schema import LimitSettings
from penstock.errors import BadRequest, FeatureOff, FieldViolation, ModelNotFound
from penstock.generation.complexity import too_complex
from penstock.generation.images import IMAGE_TYPES, images_of
from penstock.generation.stop_patterns import regex_fault
from penstock.generation.tool_planning import needs_grammar
from penstock.generation.tool_validation import validate_tool_messages, validate_tools
from penstock.generation.violations import invalid, limit
from penstock.types import (
    MIN_MARKER_PROBABILITY,
    EarlyExit,
    Effort,
    Image,
    Message,
    ModelCard,
    Request,
    Role,
    Sampling,
    StructuredOutput,
    ThinkingMode,
)

_INT32_MAX = 2**31 - 1
MIN_REPETITION_PENALTY = 0.001
_MAX_LABEL_BYTES = 256
_MAX_SHOWN_NAME = 64
_MAX_VIOLATIONS = 16  # They are sent in trailers, of which clients accept 8 KiB.


def validate(request: Request, card: ModelCard, limits: LimitSettings) -> None:
    """Check a request. Raise BadRequest with the first 16 violations, ModelNotFound, or FeatureOff.

    `limits` are `Config.resolved_limits`.
    """
    if request.model not in ("", card.name):
        raise unknown_model(request.model, card)
    found = itertools.chain(
        _input(request, card, limits),
        _thinking(request, limits),
        _context(request),
        _sampling(request.sampling, card, limits),
        _output(request, card, limits),
        validate_tools(request, limits),
    )
    violations = tuple(itertools.islice(found, _MAX_VIOLATIONS))
    if violations:
        raise BadRequest(*violations)
    _refuse_unsupported(request, card)


def unknown_model(name: str, card: ModelCard) -> ModelNotFound:
    """Return the error for a request that names another model than the served one."""
    shown = name if len(name) <= _MAX_SHOWN_NAME else f"{name[:_MAX_SHOWN_NAME]}..."
    return ModelNotFound(f"model must be empty or {card.name}, got {shown!r}", served_model=card.name)


def _number(
    field: str, value: float | None, low: float, high: float, *, low_open: bool = False
) -> Iterator[FieldViolation]:
    if value is None:
        return
    above = value > low if low_open else value >= low
    if not (math.isfinite(value) and above and value <= high):
        yield invalid(field, f"must be in {'(' if low_open else '['}{low}, {high}], got {value}")


def _bytes(text: str) -> int:
    return len(text.encode())


def _input(request: Request, card: ModelCard, limits: LimitSettings) -> Iterator[FieldViolation]:
    if request.messages is not None:
        yield from _messages(request.messages, request, limits)
    elif request.text is not None:
        if not request.text:
            yield invalid("text", "must not be empty", "MISSING_FIELD")
        yield from limit("text", _bytes(request.text), limits.max_prompt_bytes, "bytes")
    elif request.token_ids is not None:
        if not request.token_ids:
            yield invalid("token_ids.ids", "must not be empty", "MISSING_FIELD")
        yield from _ids("token_ids.ids", request.token_ids, card)
    else:
        yield invalid("input", "one of messages, text and token_ids must be set, got none", "MISSING_FIELD")


def _ids(field: str, ids: Sequence[int], card: ModelCard) -> Iterator[FieldViolation]:
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < card.vocab_size:
            yield invalid(f"{field}[{index}]", f"must be in [0, {card.vocab_size}), got {token_id}")
            return  # One is enough: a wrong vocabulary would cause thousands.


def _messages(messages: Sequence[Message], request: Request, limits: LimitSettings) -> Iterator[FieldViolation]:
    if not messages:
        yield invalid("messages.messages", "must not be empty", "MISSING_FIELD")
        return
    yield from limit("messages.messages", len(messages), limits.max_messages, "messages")
    size = sum(map(_message_bytes, messages)) + sum(_bytes(tool.description) for tool in request.tools.tools)
    yield from limit("messages", size, limits.max_prompt_bytes, "bytes")
    yield from validate_tool_messages(messages, limits)
    yield from _images(images_of(messages), limits)
    last = max((n for n, message in enumerate(messages) if message.role is not Role.SYSTEM), default=0)
    path = f"messages.messages[{last}]"
    if messages[last].role is Role.SYSTEM:
        yield invalid(f"{path}.role", "must not be ROLE_SYSTEM in all messages: one must be the user's")
    elif messages[last].role is Role.USER and not messages[last].content and not messages[last].images:
        yield invalid(f"{path}.content", "must not be empty", "MISSING_FIELD")


def _images(images: Sequence[Image], limits: LimitSettings) -> Iterator[FieldViolation]:
    yield from limit("messages", len(images), limits.max_images, "images")
    yield from limit("messages", sum(len(image.data) for image in images), limits.max_image_bytes, "bytes of images")
    for image in images:
        field = image.path.removeprefix("spec.")
        if not image.data:
            yield invalid(f"{field}.data", "must not be empty", "MISSING_FIELD")
        if image.mime_type not in IMAGE_TYPES:
            got = "none" if not image.mime_type else repr(image.mime_type[:_MAX_SHOWN_NAME])
            yield invalid(f"{field}.mime_type", f"must be one of {', '.join(IMAGE_TYPES)}, got {got}")


def _message_bytes(message: Message) -> int:
    calls = sum(_bytes(call.name) + _bytes(call.arguments_json) for call in message.tool_calls)
    return _bytes(message.content) + _bytes(message.thought) + calls + sum(_bytes(r.text) for r in message.tool_results)


def _thinking(request: Request, limits: LimitSettings) -> Iterator[FieldViolation]:
    thinking = request.thinking
    yield from _number("thinking.thinking_budget", thinking.budget_tokens, -1, _INT32_MAX)
    yield from _number("thinking.answer_reserve", thinking.answer_reserve_tokens, 1, _INT32_MAX)
    if thinking.mode is ThinkingMode.FAST and thinking.effort not in (None, Effort.NONE):
        what = f"must be absent or EFFORT_NONE with THINKING_MODE_FAST, got EFFORT_{thinking.effort.name}"
        yield invalid("thinking.effort", what, "CONFLICTING_FIELDS")
    if thinking.closing_message is not None:
        size = _bytes(thinking.closing_message)
        yield from limit("thinking.closing_message", size, limits.max_closing_message_bytes, "bytes")
    least = MIN_MARKER_PROBABILITY if thinking.early_exit is EarlyExit.MARKER else 0
    yield from _number("thinking.early_exit_probability", thinking.early_exit_probability, least, 1, low_open=not least)
    stops = thinking.stop_patterns
    yield from _stop_strings("thinking.stop_patterns.strings", stops.strings, limits)
    too_long = list(limit("thinking.stop_patterns.regex", _bytes(stops.regex), limits.max_stop_string_bytes, "bytes"))
    yield from too_long
    if stops.regex and not too_long and (fault := regex_fault(stops.regex)):
        yield invalid("thinking.stop_patterns.regex", fault)


def _context(request: Request) -> Iterator[FieldViolation]:
    yield from _number("context.max_context_tokens", request.context.max_context_tokens, 2, _INT32_MAX)
    for field in ("cache_salt", "session_id"):
        yield from limit(f"context.{field}", _bytes(getattr(request.context, field) or ""), _MAX_LABEL_BYTES, "bytes")


def _sampling(sampling: Sampling, card: ModelCard, limits: LimitSettings) -> Iterator[FieldViolation]:
    yield from _number("sampling.temperature", sampling.temperature, 0, 2)
    yield from _number("sampling.top_p", sampling.top_p, 0, 1, low_open=True)
    yield from _number("sampling.top_k", sampling.top_k, 0, card.vocab_size)
    yield from _number("sampling.min_p", sampling.min_p, 0, 1)
    yield from _number("sampling.presence_penalty", sampling.presence_penalty, -2, 2)
    yield from _number("sampling.frequency_penalty", sampling.frequency_penalty, -2, 2)
    # Logits are divided by it: a much smaller one makes them infinite in float32, and the tokens noise.
    yield from _number("sampling.repetition_penalty", sampling.repetition_penalty, MIN_REPETITION_PENALTY, 2)
    if sampling.seed is not None and sampling.seed < 0:
        yield invalid("sampling.seed", f"must be in [0, 2^63), got {sampling.seed}")
    yield from limit("sampling.logit_bias", len(sampling.logit_bias), limits.max_logit_biases, "entries")
    for token_id, bias in sampling.logit_bias.items():
        path = f"sampling.logit_bias[{token_id}]"
        if not 0 <= token_id < card.vocab_size:
            yield invalid(path, f"token id must be in [0, {card.vocab_size}), got {token_id}")
        yield from _number(path, bias, -100, 100)


def _output(request: Request, card: ModelCard, limits: LimitSettings) -> Iterator[FieldViolation]:
    output = request.output
    yield from _number("output.max_output_tokens", output.max_tokens, 1, _INT32_MAX)
    if limits.max_output_tokens is not None and output.max_tokens is not None:
        yield from limit("output.max_output_tokens", output.max_tokens, limits.max_output_tokens, "tokens")
    yield from _number("output.min_output_tokens", output.min_tokens, 0, _INT32_MAX)
    if output.max_tokens is not None and output.max_tokens > card.context_window_tokens:
        most = card.context_window_tokens
        yield invalid(
            "output.max_output_tokens",
            f"must be at most the context window of {most} tokens, got {output.max_tokens}; unset is all that fits",
            "LIMIT_EXCEEDED",
        )
    if output.max_tokens is not None and output.min_tokens > output.max_tokens:
        yield invalid(
            "output.min_output_tokens",
            f"must be at most max_output_tokens {output.max_tokens}, got {output.min_tokens}",
            "CONFLICTING_FIELDS",
        )
    if output.min_tokens > 0 and output.structured is not None:
        yield invalid(
            "output.min_output_tokens",
            f"must be 0 with structured output, whose constraint ends the answer, got {output.min_tokens}",
            "CONFLICTING_FIELDS",
        )
    yield from _stop_strings("output.stop_strings", output.stop_strings, limits)
    yield from limit("output.stop_token_ids", len(output.stop_token_ids), limits.max_stop_strings, "ids")
    yield from _ids("output.stop_token_ids", output.stop_token_ids, card)
    yield from _number("output.candidate_count", output.candidate_count, 1, _INT32_MAX)
    yield from limit("output.candidate_count", output.candidate_count, limits.max_candidates, "candidates")
    yield from _number("output.top_logprobs", output.top_logprobs, 0, _INT32_MAX)
    yield from limit("output.top_logprobs", output.top_logprobs or 0, limits.max_top_logprobs, "tokens")
    if output.structured is not None:
        yield from _structured(output.structured, limits)


def _stop_strings(path: str, strings: Sequence[str], limits: LimitSettings) -> Iterator[FieldViolation]:
    yield from limit(path, len(strings), limits.max_stop_strings, "strings")
    for index, stop in enumerate(strings):
        if not stop:
            yield invalid(f"{path}[{index}]", "must not be empty", "MISSING_FIELD")
        yield from limit(f"{path}[{index}]", _bytes(stop), limits.max_stop_string_bytes, "bytes")


def _structured(structured: StructuredOutput, limits: LimitSettings) -> Iterator[FieldViolation]:
    if not structured.choices and structured.kind.value == "choice":
        yield invalid("output.choices.choices", "must not be empty", "MISSING_FIELD")
    for index, choice in enumerate(structured.choices):
        if not choice:
            yield invalid(f"output.choices.choices[{index}]", "must not be empty", "MISSING_FIELD")
    name = "choices" if structured.choices else structured.kind.value
    if structured.kind.value != "choice" and not structured.spec.strip():
        yield invalid(f"output.{name}", "must not be empty", "MISSING_FIELD")
    size = _bytes(structured.spec) + sum(_bytes(choice) for choice in structured.choices)
    too_large = list(limit(f"output.{name}", size, limits.max_schema_bytes, "bytes"))
    yield from too_large
    if not too_large and (fault := too_complex(structured)):
        yield invalid(f"output.{name}", fault, "LIMIT_EXCEEDED")


def _refuse_unsupported(request: Request, card: ModelCard) -> None:
    """Raise FeatureOff for a field that the engine does not support. Values that mean "off" are accepted."""
    sampling, output = request.sampling, request.output
    asked = {
        "spec.sampling.min_p": bool(sampling.min_p),
        "spec.sampling.logit_bias": bool(sampling.logit_bias),
        "spec.sampling.seed": sampling.seed is not None,
        "spec.sampling.presence_penalty": bool(sampling.presence_penalty),
        "spec.sampling.frequency_penalty": bool(sampling.frequency_penalty),
        "spec.sampling.repetition_penalty": sampling.repetition_penalty not in (None, 1.0),
        "spec.output.min_output_tokens": output.min_tokens > 0,
        "spec.output.top_logprobs": output.top_logprobs is not None,
        "spec.output.structured_output": output.structured is not None,
        "spec.output.stop_token_ids": bool(output.stop_token_ids),
        "spec.tools": bool(request.tools.tools),
    }
    images = images_of(request.messages or ())
    if images and not card.image_token_ids:
        off = next((feature.reason for feature in card.profile if feature.name == "images"), "it reads text only")
        raise FeatureOff(f"this server reads no images: {off}", field=images[0].path, feature="images")
    has_calls = any(message.tool_calls or message.tool_results for message in request.messages or ())
    if card.tool_call_format is None and (request.tools.tools or has_calls):
        field = "spec.tools" if request.tools.tools else "spec.messages"
        raise FeatureOff("the chat template of this model has no tools", field=field, feature="tool_calls")
    if needs_grammar(request.tools) and (why := card.unsupported_fields.get("spec.output.structured_output")):
        raise FeatureOff(why, field="spec.tool_config", feature=card.unsupported_beside)
    for field, reason in card.unsupported_fields.items():
        if asked.get(field, False):
            raise FeatureOff(reason, field=field, feature=card.unsupported_beside)
