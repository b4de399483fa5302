"""Plan a call: mode, prompt and budget, in the order in which each depends on the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from penstock.config.schema import Config
from penstock.engine.base import Engine, Tokenizer
from penstock.errors import BadRequest, FieldViolation
from penstock.generation.context_window import fit_messages, fit_tokens, kept_messages, window_tokens
from penstock.generation.early_exit import AutoReading
from penstock.generation.thinking import (
    Situation,
    ThinkingDefaults,
    asks_for_thought,
    choose_mode,
    defaults_for,
    plan_budget,
    plan_early_exit,
    question_of,
    timed_answer_tokens,
)
from penstock.generation.tool_planning import constraint_of, max_tool_calls
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
    Role,
    Sampling,
    ThinkingConfig,
    ThinkingMode,
)


@dataclass(frozen=True, slots=True)
class PlanningFacts:
    """Facts that a plan depends on besides the request and the engine.

    Attributes:
        seconds_to_deadline: None where the call has no deadline.
        likely_answer_tokens: What nearly all recent answers needed; None while too few are known.
        default_max_output_tokens: Holds where the request names no maximum; None leaves it to window and limits.
    """

    seconds_to_deadline: float | None = None
    likely_answer_tokens: int | None = None
    default_max_output_tokens: int | None = None


def plan_generation(
    request: Request, engine: Engine, config: Config, facts: PlanningFacts = PlanningFacts()
) -> GenerationPlan:
    """Plan one call. Does not run anything on the engine.

    Raise BadRequest, ContextOverflow or FeatureOff.
    """
    card, tokenizer, load = engine.card, engine.tokenizer, engine.load()
    seconds_left = facts.seconds_to_deadline
    now = Situation(seconds_left, load.seconds_per_token, load.first_token_seconds, facts.likely_answer_tokens)
    defaults = defaults_for(config.thinking, card)
    thinking = request.thinking
    if thinking.mode is None:
        thinking = replace(thinking, mode=ThinkingMode(defaults.default_mode))
    prompt = _read_prompt(request, thinking, defaults, engine, now)
    thinks = prompt.choice.mode is ThinkingMode.THINKING
    closing_ids = _closing_ids(thinking, config, card.markers, tokenizer) if thinks or prompt.in_thought else ()
    # The markers need room in the window too, beside what counts as output.
    overhead = len(closing_ids) + (1 if prompt.may_open else 0)
    context = _fit(request, defaults, engine, prompt, overhead)
    window_left = context.window_tokens - len(context.prompt_token_ids) - overhead
    most = min(window_left, _most_output(request, config, facts.default_max_output_tokens) or window_left)
    budget = plan_budget(thinking, request.output, defaults, prompt.choice, most)
    _refuse_minimum(request, budget)
    return GenerationPlan(
        request=request,
        context=context,
        budget=budget,
        requested_mode=request.thinking.mode if prompt.is_raw else thinking.mode,
        choice=prompt.choice,
        sampling=effective_sampling(request.sampling, card.default_sampling),
        closing_ids=closing_ids,
        in_thought=prompt.in_thought if prompt.is_raw else thinks,
        may_open=prompt.may_open,
        closes_before_deadline=thinks and thinking.mode is ThinkingMode.AUTO,
        timed_answer_tokens=timed_answer_tokens(thinking, budget.answer_reserve_tokens, now),
        deadline_monotonic=None if seconds_left is None else time.monotonic() + seconds_left,
        seconds_per_token=load.seconds_per_token,
        window_left_tokens=window_left,
        max_tool_calls=max_tool_calls(request, config.limits),
        structured=constraint_of(request, card),
        early_exit=plan_early_exit(thinking, defaults, card, beside=_blind(request)) if thinks else None,
    )


def _blind(request: Request) -> bool:
    """Return whether the beginning of the answer says nothing: that of JSON or of a tool call is the same for all."""
    return request.output.structured is not None or bool(request.tools.callable_tools)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The mode that a request is rendered in. `ids`, `in_thought` and `may_open` are of a raw prompt alone."""

    choice: ModeChoice
    is_raw: bool = False
    ids: Sequence[int] = ()
    in_thought: bool = False
    may_open: bool = False


def _read_prompt(
    request: Request, thinking: ThinkingConfig, defaults: ThinkingDefaults, engine: Engine, now: Situation
) -> _Prompt:
    markers = engine.card.markers
    if request.messages is not None:
        if _answer_is_begun(request.messages):
            return _Prompt(_choice_for_begun_answer(request.thinking))
        return _Prompt(choose_mode(thinking, defaults, engine.card, question_of(request.messages, request.text), now))
    ids = request.token_ids if request.token_ids is not None else engine.tokenizer.encode(request.text or "")
    _refuse_image_tokens(ids, engine.card.image_token_ids, "text" if request.token_ids is None else "token_ids.ids")
    in_thought = ends_in_thought(ids, markers)
    choice = _raw_choice(request.thinking, in_thought, markers)
    may_open = markers is not None and not in_thought and choice.mode is ThinkingMode.THINKING
    return _Prompt(choice, True, ids, in_thought, may_open)


def _refuse_image_tokens(ids: Sequence[int], reserved: frozenset[int], field: str) -> None:
    """Raise BadRequest for a raw prompt with a token of images: it would stand for a picture that is not there."""
    if not reserved or reserved.isdisjoint(ids):
        return
    place = next(place for place, token_id in enumerate(ids) if token_id in reserved)
    what = f"must have no token of images, got {ids[place]} at {place}; send an image as a part of a message"
    raise BadRequest(FieldViolation(f"spec.{field}", what, "INVALID_FIELD"))


def _answer_is_begun(messages: Sequence[Message]) -> bool:
    """Return whether the last message that is not the system's is an assistant's with text, which is continued."""
    last = next((message for message in reversed(messages) if message.role is not Role.SYSTEM), None)
    return last is not None and last.role is Role.ASSISTANT and bool(last.content.strip())


def _choice_for_begun_answer(thinking: ThinkingConfig) -> ModeChoice:
    """Return FAST. Raise BadRequest where the caller asks for a thought, which would come before the answer."""
    asks = thinking.mode is None and asks_for_thought(thinking)
    if asks or thinking.mode is ThinkingMode.THINKING:
        raise _conflict("must be FAST or AUTO: the last message begins the answer, and a thought comes before it")
    return ModeChoice(ThinkingMode.FAST, None, "the last message begins the answer")


def _most_output(request: Request, config: Config, default: int | None) -> int | None:
    most = config.limits.max_output_tokens
    if request.output.max_tokens is not None or default is None:
        return most
    return default if most is None else min(most, default)


def may_ask_engine(plan: GenerationPlan, card: ModelCard) -> bool:
    """Return whether AUTO asks the engine: nothing else decides, and the answer's start says how certain it is."""
    return (
        plan.choice.asks_engine
        and not _blind(plan.request)
        and "spec.output.top_logprobs" not in card.unsupported_fields
    )


def without_thought(request: Request) -> Request:
    """Return the request in mode FAST, with what is for a thought only left out."""
    thinking = replace(request.thinking, mode=ThinkingMode.FAST, budget_tokens=None)
    return replace(request, thinking=thinking)


def decided(plan: GenerationPlan, fast: GenerationPlan, reading: AutoReading, least: float) -> GenerationPlan:
    """Return the plan to run after AUTO has asked the engine: the fast one where the answer is certain enough."""
    if reading.probability is None:
        why = "answer without a thought not known"
    else:
        sign = "at least" if reading.probability >= least else "below"
        why = f"answer without a thought {sign} {least:g} certain ({reading.probability:.2f})"
    if reading.probability is None or reading.probability < least:
        chosen = replace(plan, budget=replace(plan.budget, reason=f"{plan.budget.reason}; {why}"))
    else:
        choice = ModeChoice(ThinkingMode.FAST, 0, f"auto: {why}")
        budget = replace(fast.budget, reason=choice.reason)
        chosen = replace(fast, requested_mode=plan.requested_mode, choice=choice, budget=budget)
    return replace(chosen, probe_tokens=reading.tokens, deaths=int(reading.caused_death))


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
    request: Request, defaults: ThinkingDefaults, engine: Engine, prompt: _Prompt, overhead_tokens: int
) -> ContextPlan:
    window = window_tokens(request.context, engine.card)
    overflow = request.context.overflow
    wanted = request.output.max_tokens
    if wanted is None:
        # A policy that drops context makes room for a useful answer; ERROR is raised only where not one token fits.
        wanted = 1 if overflow is Overflow.ERROR else min(defaults.answer_reserve_tokens, max(1, window // 4))
    needed = wanted + overhead_tokens
    if request.messages is None:
        return fit_tokens(prompt.ids, overflow, window, needed)
    thinks = prompt.choice.mode is ThinkingMode.THINKING

    def render(messages: Sequence[Message]) -> list[int]:
        # The prompt shows all tools, also those that this output may not call, so that the prefix cache hits when
        # allowed_names or the mode change.
        return engine.tokenizer.render(
            messages, thinking=thinks, tools=request.tools.tools, history=request.thinking.history
        )

    fitted = fit_messages(request.messages, render, overflow, window, needed)
    shown = engine.tokenizer.shown_images(kept_messages(request.messages, fitted))
    return replace(fitted, images=shown) if shown else fitted


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
    if thinking.mode is ThinkingMode.THINKING or asks_for_thought(thinking):
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
