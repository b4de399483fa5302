"""Plan a call: mode, prompt and budget, in the order in which each depends on the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from penstock.config.schema import Config
from penstock.engine.base import Engine, Tokenizer
from penstock.errors import BadRequest, FieldViolation
from penstock.generation.context_window import fit_messages, fit_tokens, window_tokens
from penstock.generation.thinking import (
    Situation,
    ThinkingDefaults,
    choose_mode,
    defaults_for,
    plan_budget,
    question_of,
    timed_answer_tokens,
)
from penstock.types import (
    Budget,
    ContextPlan,
    GenerationPlan,
    Markers,
    Message,
    ModeChoice,
    ModelCard,
    Overflow,
    Request,
    Sampling,
    ThinkingConfig,
    ThinkingMode,
)


def plan_generation(
    request: Request,
    engine: Engine,
    config: Config,
    seconds_to_deadline: float | None,
    likely_answer_tokens: int | None = None,
    default_max_output_tokens: int | None = None,
) -> GenerationPlan:
    """Plan one call; `default_max_output_tokens` applies where the request names no maximum.

    Raise BadRequest, ContextOverflow or FeatureOff. Does not run anything on the engine.
    """
    card, tokenizer = engine.card, engine.tokenizer
    load = engine.load()
    now = Situation(seconds_to_deadline, load.seconds_per_token, load.first_token_seconds, likely_answer_tokens)
    thinking, defaults = request.thinking, defaults_for(config.thinking, card)
    if thinking.mode is None:
        thinking = replace(thinking, mode=ThinkingMode(defaults.default_mode))
    question = question_of(request.messages, request.text)
    raw = request.messages is None
    ids: Sequence[int] = ()
    in_thought = may_open = False
    if raw:
        ids = request.token_ids if request.token_ids is not None else tokenizer.encode(request.text or "")
        in_thought = ends_in_thought(ids, card.markers)
        choice = _raw_choice(request.thinking, in_thought, card.markers)
        may_open = card.markers is not None and not in_thought and choice.mode is ThinkingMode.THINKING
    else:
        choice = choose_mode(thinking, defaults, card, question, now)
    thinks = choice.mode is ThinkingMode.THINKING
    closing_ids = _closing_ids(thinking, config, card.markers, tokenizer) if thinks or in_thought else ()
    # The markers need room in the window too, besides the output tokens.
    overhead = len(closing_ids) + (1 if may_open else 0)
    context = _fit(request, defaults, card, tokenizer, choice, ids, overhead)
    window_left = context.window_tokens - len(context.prompt_token_ids) - overhead
    budget = plan_budget(
        thinking,
        request.output,
        defaults,
        choice,
        window_left_tokens=window_left,
        max_output_limit_tokens=_most_output(request, config, default_max_output_tokens),
    )
    _refuse_minimum(request, budget)
    if not raw:
        in_thought = thinks
    return GenerationPlan(
        request=request,
        context=context,
        budget=budget,
        requested_mode=request.thinking.mode if raw else thinking.mode,
        choice=choice,
        sampling=effective_sampling(request.sampling, card.default_sampling),
        closing_ids=closing_ids,
        in_thought=in_thought,
        may_open=may_open,
        closes_before_deadline=thinks and thinking.mode is ThinkingMode.AUTO,
        timed_answer_tokens=timed_answer_tokens(thinking, budget.answer_reserve_tokens, now),
        deadline_monotonic=None if seconds_to_deadline is None else time.monotonic() + seconds_to_deadline,
        seconds_per_token=load.seconds_per_token,
        window_left_tokens=window_left,
    )


def _most_output(request: Request, config: Config, default: int | None) -> int | None:
    most = config.limits.max_output_tokens
    if request.output.max_tokens is not None or default is None:
        return most
    return default if most is None else min(most, default)


def checkpoint_of_plan(plan: GenerationPlan) -> dict[str, Any]:
    """Return plain data of what another server cannot plan again, because it depended on the time and the load."""
    return {"mode": plan.choice.mode.value, "budget": asdict(plan.budget)}


def with_checkpoint_mode(request: Request, checkpoint: Mapping[str, Any]) -> Request:
    """Return the request with the mode that was decided first, so that its prompt renders as before."""
    return replace(request, thinking=replace(request.thinking, mode=ThinkingMode(checkpoint["mode"])))


def with_budget(plan: GenerationPlan, checkpoint: Mapping[str, Any]) -> GenerationPlan:
    """Return the plan with the budget that was decided first."""
    return replace(plan, budget=Budget(**checkpoint["budget"]))


def _fit(
    request: Request,
    defaults: ThinkingDefaults,
    card: ModelCard,
    tokenizer: Tokenizer,
    choice: ModeChoice,
    ids: Sequence[int],
    overhead_tokens: int,
) -> ContextPlan:
    window = window_tokens(request.context, card)
    overflow = request.context.overflow
    wanted = request.output.max_tokens
    if wanted is None:
        # A policy that drops context makes room for a useful answer; ERROR is raised only where not one token fits.
        wanted = 1 if overflow is Overflow.ERROR else min(defaults.answer_reserve_tokens, max(1, window // 4))
    needed = wanted + overhead_tokens
    if request.messages is None:
        return fit_tokens(ids, overflow, window, needed)
    thinks = choice.mode is ThinkingMode.THINKING

    def render(messages: Sequence[Message]) -> list[int]:
        return tokenizer.render(messages, thinking=thinks)

    return fit_messages(request.messages, render, overflow, window, needed)


def ends_in_thought(ids: Sequence[int], markers: Markers | None) -> bool:
    """Return whether a raw prompt ends inside an open think section."""
    if markers is None:
        return False
    for token_id in reversed(ids):
        if token_id == markers.close_id:
            return False
        if token_id == markers.open_id:
            return True
    return False


def _raw_choice(thinking: ThinkingConfig, in_thought: bool, markers: Markers | None) -> ModeChoice:
    """Return the mode of raw input: its markers, not the requested mode, tell whether there is a thought."""
    if in_thought:
        if thinking.mode is ThinkingMode.FAST:
            raise _conflict("must not be THINKING_MODE_FAST for a prompt that ends inside an open think section")
        return ModeChoice(ThinkingMode.THINKING, None, "raw prompt that ends inside an open think section")
    if thinking.mode is ThinkingMode.THINKING or thinking.budget_tokens not in (None, 0):
        if markers is None:
            raise _conflict("must not be THINKING_MODE_THINKING: this model has no think section")
        return ModeChoice(ThinkingMode.THINKING, None, "raw prompt; the model may open its own think section")
    return ModeChoice(ThinkingMode.FAST, None, "raw prompt without an open think section")


def _refuse_minimum(request: Request, budget: Budget) -> None:
    """Raise BadRequest for a minimum that cannot be reached; it is never shortened."""
    if request.output.min_tokens > budget.max_output_tokens:
        raise BadRequest(
            FieldViolation(
                "spec.output.min_output_tokens",
                f"must be at most {budget.max_output_tokens}, the most output tokens of this call, "
                f"got {request.output.min_tokens}",
                "LIMIT_EXCEEDED",
            )
        )


def _conflict(description: str) -> BadRequest:
    return BadRequest(FieldViolation("spec.thinking.mode", description, "CONFLICTING_FIELDS"))


def _closing_ids(
    thinking: ThinkingConfig, config: Config, markers: Markers | None, tokenizer: Tokenizer
) -> tuple[int, ...]:
    if markers is None:
        return ()
    message = config.thinking.closing_message if thinking.closing_message is None else thinking.closing_message
    return (*(tokenizer.encode_text(message) if message else ()), markers.close_id)


def effective_sampling(asked: Sampling, defaults: Sampling) -> Sampling:
    """Return the requested parameters, with the checkpoint's defaults where none were requested."""
    filled = {
        f.name: getattr(defaults, f.name) if getattr(asked, f.name) is None else getattr(asked, f.name)
        for f in fields(Sampling)
    }
    return Sampling(**filled)
