"""Fit the prompt into the context window, or report by how much it exceeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.errors import BadRequest, ContextOverflow, FieldViolation
from penstock.types import ContextConfig, ContextPlan, Message, ModelCard, Overflow, Role

Render = Callable[[Sequence[Message]], list[int]]


def window_tokens(config: ContextConfig, card: ModelCard) -> int:
    """Return the window of a call. Raise BadRequest where the caller asks for more than the model has."""
    if config.max_context_tokens is None:
        return card.context_window_tokens
    if config.max_context_tokens > card.context_window_tokens:
        raise BadRequest(
            FieldViolation(
                "spec.context.max_context_tokens",
                f"must be at most the model's window of {card.context_window_tokens}, got {config.max_context_tokens}",
                "LIMIT_EXCEEDED",
            )
        )
    return config.max_context_tokens


def fit_messages(
    messages: Sequence[Message], render: Render, overflow: Overflow, window: int, output_tokens_needed: int
) -> ContextPlan:
    """Render a conversation, without its oldest turns where the policy allows to drop them.

    A turn is a user message and the model's answer to it. System messages and the last user turn stay. Raise
    ContextOverflow where the rest does not fit, BadRequest for a policy that does not apply to messages.
    """
    if overflow in (Overflow.TRUNCATE_LEFT, Overflow.TRUNCATE_MIDDLE):
        raise _unsuited(overflow, "messages", "OVERFLOW_POLICY_DROP_OLDEST_TURNS")
    ids = render(messages)
    room = window - output_tokens_needed
    if len(ids) <= room:
        return ContextPlan(tuple(ids), window)
    starts = [i for i, m in enumerate(messages) if m.role is Role.USER]
    if overflow is not Overflow.DROP_OLDEST_TURNS or len(starts) < 2:
        raise _overflow(len(ids), window, output_tokens_needed)
    # Fewer turns never render longer, so a binary search finds the first start that fits.
    low, high = 1, len(starts) - 1
    fitted: tuple[list[int], int] | None = None
    while low <= high:
        middle = (low + high) // 2
        kept = _from(messages, starts[middle])
        shorter = render(kept)
        if len(shorter) <= room:
            fitted, high = (shorter, len(messages) - len(kept)), middle - 1
        else:
            low = middle + 1
    if fitted is None:
        raise _overflow(len(render(_from(messages, starts[-1]))), window, output_tokens_needed)
    shorter, dropped_messages = fitted
    return ContextPlan(tuple(shorter), window, len(ids) - len(shorter), dropped_messages)


def kept_messages(messages: Sequence[Message], plan: ContextPlan) -> Sequence[Message]:
    """Return the messages that the plan's prompt shows."""
    if not plan.dropped_messages:
        return messages
    starts = (index for index, message in enumerate(messages) if message.role is Role.USER)
    dropped = plan.dropped_messages
    return next(kept for start in starts if len(messages) - len(kept := _from(messages, start)) == dropped)


def _from(messages: Sequence[Message], start: int) -> list[Message]:
    """Return the messages from `start` on, and all system messages."""
    return [m for index, m in enumerate(messages) if index >= start or m.role is Role.SYSTEM]


def fit_tokens(ids: Sequence[int], overflow: Overflow, window: int, output_tokens_needed: int) -> ContextPlan:
    """Cut a raw prompt where the policy allows it. Raise as `fit_messages` does."""
    if overflow is Overflow.DROP_OLDEST_TURNS:
        raise _unsuited(overflow, "text and token_ids", "OVERFLOW_POLICY_TRUNCATE_LEFT or _MIDDLE")
    room = window - output_tokens_needed
    dropped = len(ids) - room
    if dropped <= 0:
        return ContextPlan(tuple(ids), window)
    if overflow is Overflow.ERROR or room < 1:
        raise _overflow(len(ids), window, output_tokens_needed)
    if overflow is Overflow.TRUNCATE_LEFT:
        return ContextPlan(tuple(ids[dropped:]), window, dropped)
    tail = room // 2
    return ContextPlan((*ids[: room - tail], *ids[len(ids) - tail :]), window, dropped)


def _overflow(prompt_tokens: int, window: int, output_tokens_needed: int) -> ContextOverflow:
    over = prompt_tokens + output_tokens_needed - window
    return ContextOverflow(
        f"a prompt of {prompt_tokens} tokens and at least {output_tokens_needed} tokens of output exceed the window of "
        f"{window} by {over}",
        prompt_tokens=prompt_tokens,
        window_tokens=window,
        output_tokens_needed=output_tokens_needed,
        overflow_tokens=over,
    )


def _unsuited(overflow: Overflow, what: str, instead: str) -> BadRequest:
    return BadRequest(
        FieldViolation(
            "spec.context.overflow",
            f"{overflow.value.upper()} does not apply to {what}; use {instead}",
            "CONFLICTING_FIELDS",
        )
    )
