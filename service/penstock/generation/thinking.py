"""Decide how much a request may think, from its settings and from what is known of deadline and load.

Whatever is asked for, the resulting budget is finite, leaves the answer reserve free and has a reason.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Literal

from penstock.config.schema import ThinkingSettings
from penstock.errors import BadRequest, FeatureOff, FieldReason, FieldViolation
from penstock.generation.percentiles import percentile
from penstock.types import (
    Budget,
    EarlyExit,
    EarlyExitAdvice,
    EarlyExitPlan,
    Effort,
    Message,
    ModeChoice,
    ModelCard,
    Output,
    Role,
    ThinkingConfig,
    ThinkingMode,
)

# A smaller budget is not worth a thought: it would be cut before its first step is written.
_SMALLEST_AUTO_BUDGET_TOKENS = 4
# Factor on the measured seconds per token: under load the next tokens may be slower than the last ones.
_PACE_MARGIN = 1.25
# Number of recent answers that the length of the next one is estimated from, and the fewest that are needed.
_ANSWERS_KEPT, _MIN_ANSWERS = 256, 16
# Factor on the 95th percentile of their lengths.
_LENGTH_MARGIN = 1.5
# Probability of the closing marker that ends a thought where neither the server nor the checkpoint names one.
_MARKER_PROBABILITY = 0.3


class AnswerLengths:
    """Estimate the length of the next answer from recent ones, to keep time for it where the caller sets no reserve.

    The reserve is a bound that few answers need; time for all of it would leave no time to think.
    """

    def __init__(self) -> None:
        self._tokens: deque[int] = deque(maxlen=_ANSWERS_KEPT)

    def saw(self, answer_tokens: int) -> None:
        """Add the length of an answer that ended by itself."""
        self._tokens.append(answer_tokens)

    def likely_tokens(self) -> int | None:
        """Return a length that more than 95 of 100 recent answers did not exceed; None while too few are known."""
        if len(self._tokens) < _MIN_ANSWERS:
            return None
        return math.ceil(percentile(list(self._tokens), 95) * _LENGTH_MARGIN)


class ThinkingDefaults(ThinkingSettings):
    """Hold the thinking settings of one served model; unset values follow its window and checkpoint."""

    auto_budget_tokens: int
    answer_reserve_tokens: int
    early_exit: Literal["off", "marker", "probe"]
    early_exit_marker_probability: float


def defaults_for(settings: ThinkingSettings, card: ModelCard) -> ThinkingDefaults:
    """Return the settings that apply where the caller sets none.

    The reserve is a 256th of the window, between 128 and 4,096 tokens. AUTO's maximum budget is an eighth of the
    window, between 4,096 and 81,920 tokens: 32,768 for a window of 262,144; 81,920 is the longest thought that Qwen
    advises for hard problems. A checkpoint that advises fewer new tokens (`max_new_tokens`) bounds it. Early exit of
    AUTO is as the checkpoint advises.
    """
    reserve, auto = settings.answer_reserve_tokens, settings.auto_budget_tokens
    if reserve is None:
        reserve = min(max(card.context_window_tokens // 256, 128), 4096)
    if auto is None:
        auto = min(max(card.context_window_tokens // 8, 4096), 81_920)
        if card.advised_output_tokens is not None:
            auto = max(0, min(auto, card.advised_output_tokens - reserve))
    advice = card.advised_early_exit or EarlyExitAdvice(EarlyExit.OFF)
    marker = settings.early_exit_marker_probability or advice.marker_probability or _MARKER_PROBABILITY
    return ThinkingDefaults.model_validate(
        settings.model_dump()
        | {
            "auto_budget_tokens": auto,
            "answer_reserve_tokens": reserve,
            "early_exit": settings.early_exit or advice.sign.value,
            "early_exit_marker_probability": marker,
        }
    )


@dataclass(frozen=True, slots=True)
class Situation:
    """Hold what is known when a call is planned, in seconds; None without a deadline or measurement."""

    seconds_to_deadline: float | None = None
    seconds_per_token: float | None = None
    first_token_seconds: float | None = None
    likely_answer_tokens: int | None = None


def choose_mode(
    config: ThinkingConfig, defaults: ThinkingDefaults, card: ModelCard, question: str, now: Situation
) -> ModeChoice:
    """Return FAST or THINKING, before the prompt is rendered (the two render differently).

    THINKING is for now where the choice asks the engine (`asks_engine`): FAST follows where the answer is certain.

    Raise FeatureOff where a model without thoughts is asked to think, BadRequest for FAST with a budget.
    """
    if config.mode is ThinkingMode.FAST:
        if config.budget_tokens not in (None, 0):
            why = f"must be absent or 0 with THINKING_MODE_FAST, got {config.budget_tokens}"
            raise _violation("thinking_budget", why, "CONFLICTING_FIELDS")
        return ModeChoice(ThinkingMode.FAST, None, "fast: asked for")
    if card.markers is None:
        if config.mode is ThinkingMode.THINKING:
            raise FeatureOff("this model has no think section", field="spec.thinking.mode", feature="thinking")
        return ModeChoice(ThinkingMode.FAST, None, "auto: this model has no think section")
    if config.budget_tokens == 0:
        return ModeChoice(ThinkingMode.FAST, None, "thinking_budget 0: no thought")
    if effort_of(config) is Effort.NONE:
        return ModeChoice(ThinkingMode.FAST, None, "effort none: no thought")
    if config.mode is ThinkingMode.THINKING:
        return ModeChoice(ThinkingMode.THINKING, None, "thinking: asked for")
    return _choose_auto(config, defaults, question, now)


def effort_of(config: ThinkingConfig) -> Effort | None:
    """Return the effort that decides the budget; None where there is none or a number wins."""
    return config.effort if config.budget_tokens is None else None


def asks_for_thought(config: ThinkingConfig) -> bool:
    """Return whether budget or effort ask for a thought."""
    return config.budget_tokens not in (None, 0) or effort_of(config) not in (None, Effort.NONE)


def effort_tokens(effort: Effort, settings: ThinkingSettings) -> tuple[int, float]:
    """Return an effort's maximum budget in tokens and as a share of the output, in [0, 1]."""
    match effort:
        case Effort.NONE:
            return 0, 0.0
        case Effort.LOW:
            return settings.effort_low_tokens, settings.effort_low_share
        case Effort.MEDIUM:
            return settings.effort_medium_tokens, settings.effort_medium_share
        case Effort.HIGH:
            return settings.effort_high_tokens, settings.effort_high_share


def plan_early_exit(
    config: ThinkingConfig, settings: ThinkingDefaults, card: ModelCard, *, beside: bool
) -> EarlyExitPlan | None:
    """Return when a thought ends early; None where nothing ends it early.

    `beside`: the answer has a form or may have tool calls, so that its beginning says nothing, and no probe runs.

    Raise FeatureOff where the request asks for what this server or its engine does not do.
    """
    mode = config.early_exit
    if mode is None:
        mode = EarlyExit(settings.early_exit) if config.mode is ThinkingMode.AUTO else EarlyExit.OFF
        mode = min(mode, EarlyExit(settings.early_exit_allowed), key=_COSTS.index)
    why = card.unsupported_fields.get("spec.output.top_logprobs", "")
    if mode is EarlyExit.OFF or card.markers is None or (config.early_exit is None and why):
        return None
    if _COSTS.index(mode) > _COSTS.index(EarlyExit(settings.early_exit_allowed)):
        why = f"this server allows early exit up to {settings.early_exit_allowed!r}, got {mode.value!r}"
    if why:
        raise FeatureOff(why, field="spec.thinking.early_exit", feature="early_exit")
    if beside:
        mode = EarlyExit.MARKER
    own = config.early_exit_probability
    return EarlyExitPlan(
        mode=mode,
        marker_probability=own
        if own is not None and mode is EarlyExit.MARKER
        else settings.early_exit_marker_probability,
        answer_probability=settings.early_exit_probability if own is None else own,
        agreements=settings.early_exit_agreements,
        interval_tokens=settings.early_exit_interval_tokens,
        answer_tokens=settings.early_exit_answer_tokens,
        share=settings.early_exit_share,
    )


_COSTS = list(EarlyExit)


def _choose_auto(config: ThinkingConfig, defaults: ThinkingDefaults, question: str, now: Situation) -> ModeChoice:
    budget, reason = defaults.auto_budget_tokens, f"at most {defaults.auto_budget_tokens} tokens by default"
    if (effort := effort_of(config)) is not None:
        # The caller says how hard to think, so the question is not classified.
        budget, reason = effort_tokens(effort, defaults)[0], f"effort {effort.value}"
    elif defaults.auto_decision == "words" and not needs_thought(question):
        return ModeChoice(ThinkingMode.FAST, 0, "auto: prompt classified as simple")
    affordable = affordable_tokens(now, defaults)
    if affordable is not None:
        affordable -= timed_answer_tokens(config, defaults.answer_reserve_tokens, now)
        if affordable < budget:
            assert now.seconds_to_deadline is not None
            assert now.seconds_per_token is not None
            pace_ms = now.seconds_per_token * 1000
            budget, reason = (
                affordable,
                f"{now.seconds_to_deadline:.1f} s to the deadline at {pace_ms:.1f} ms per token",
            )
    if config.budget_tokens is not None and 0 <= config.budget_tokens < budget:
        budget, reason = config.budget_tokens, f"thinking_budget {config.budget_tokens} as upper bound"
    if budget < _SMALLEST_AUTO_BUDGET_TOKENS:
        return ModeChoice(ThinkingMode.FAST, 0, f"auto: budget too small for a thought: {reason}")
    asks = effort is None and defaults.auto_decision == "probe"
    return ModeChoice(ThinkingMode.THINKING, budget, f"auto: {reason}", asks_engine=asks)


def timed_answer_tokens(config: ThinkingConfig, reserve_tokens: int, now: Situation) -> int:
    """Return the answer tokens that time is kept for: as the caller set, else as recent answers needed."""
    if config.answer_reserve_tokens is not None or now.likely_answer_tokens is None:
        return config.answer_reserve_tokens or reserve_tokens
    return min(reserve_tokens, now.likely_answer_tokens)


def affordable_tokens(now: Situation, defaults: ThinkingDefaults) -> int | None:
    """Return the output tokens that fit before the deadline; None without deadline or measured pace."""
    if now.seconds_to_deadline is None or now.seconds_per_token is None:
        return None
    spare = now.seconds_to_deadline - defaults.deadline_margin_seconds - (now.first_token_seconds or 0.0)
    return max(0, int(spare / (now.seconds_per_token * _PACE_MARGIN)))


# Signs of work, whatever the topic. Amounts, in digits (1,000 and 2.5 are one each) or in words:
_AMOUNT = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|dozen|half|double|twice|triple)\b",
    re.IGNORECASE,
)
# Words for things that depend on each other or happen one after another:
_LINK = re.compile(r"\b(?:then|after|before|until|if|unless|each|every|per|left|remaining|total)\b", re.IGNORECASE)
# Words that ask for reasoning:
_REASONING = re.compile(r"\b(?:prove|proof|derive|deduce|solve|debug|puzzle|step by step)\b", re.IGNORECASE)
# User turns that a follow-up may refer to, itself included.
_TURNS_IN_QUESTION = 3
_MAX_IDLE_SIGNS, _MAX_IDLE_WORDS, _MAX_IDLE_CHARACTERS = 2, 24, 300


def needs_thought(question: str) -> bool:
    """Return whether a question looks like work: three signs of it, many words, several lines, or a call for reasoning.

    It is cheap and does not depend on the topic. The signs are English; in other languages length and digits decide.
    """
    if len(question) > _MAX_IDLE_CHARACTERS:
        # This also bounds the searches below.
        return True
    return (
        len(_AMOUNT.findall(question)) + len(_LINK.findall(question)) > _MAX_IDLE_SIGNS
        or len(question.split()) > _MAX_IDLE_WORDS
        or "\n" in question.strip()
        or "```" in question
        or _REASONING.search(question) is not None
    )


def question_of(messages: tuple[Message, ...] | None, text: str | None) -> str:
    """Return the text that AUTO classifies: the last user turns, or the raw text.

    A follow-up ("And 5 more?") needs as much thought as what it refers to, so the turns before it count, too.
    """
    if messages is not None:
        return " ".join([m.content for m in messages if m.role is Role.USER][-_TURNS_IN_QUESTION:])
    return text or ""


def plan_budget(
    config: ThinkingConfig,
    output: Output,
    defaults: ThinkingDefaults,
    choice: ModeChoice,
    max_output_tokens: int,
) -> Budget:
    """Return the budget that holds.

    `max_output_tokens`, at least 1, is what prompt and closing markers leave of the window, or the server's limit
    where that is less.

    Raise BadRequest (BUDGET_DOES_NOT_FIT) where the caller's own numbers contradict each other.
    """
    max_output = min(output.max_tokens or max_output_tokens, max_output_tokens)
    # Numbers that contradict each other are refused whatever mode was chosen: AUTO must not hide a caller's mistake.
    _refuse_contradictions(config, output)
    if choice.mode is ThinkingMode.FAST:
        return Budget(0, 0, max_output, choice.reason)
    asked = choice.auto_budget_tokens if choice.auto_budget_tokens is not None else config.budget_tokens
    effort, reason = effort_of(config), choice.reason
    if effort is not None:
        tokens, share = effort_tokens(effort, defaults)
        most_by_effort = min(tokens, int(max_output * share))
        asked = most_by_effort if asked is None else min(asked, most_by_effort)
        if f"effort {effort.value}" not in reason:
            reason = f"{choice.reason}; effort {effort.value}"
    if asked is None:
        asked = defaults.default_budget_tokens
    reserve = config.answer_reserve_tokens
    if reserve is None:
        # The server's reserve yields where the caller set both numbers; otherwise it takes at most half.
        both = output.max_tokens is not None and config.budget_tokens not in (None, -1)
        thought = (config.budget_tokens or 0) if both else max_output // 2
        reserve = max(1, min(defaults.answer_reserve_tokens, max_output - thought))
    reserve = min(reserve, max_output)
    most = max_output - reserve
    if asked == -1:
        return Budget(most, reserve, max_output, f"{choice.reason}; limited by the answer reserve of {reserve} only")
    if asked > most:
        return Budget(most, reserve, max_output, f"{reason}; clamped from {asked} to leave {reserve} for the answer")
    return Budget(asked, reserve, max_output, reason)


def _refuse_contradictions(config: ThinkingConfig, output: Output) -> None:
    if output.max_tokens is None:
        return
    reserve = config.answer_reserve_tokens or 1
    if config.budget_tokens is not None and config.budget_tokens + reserve > output.max_tokens:
        raise _violation(
            "thinking_budget",
            f"must be at most {output.max_tokens - reserve} (max_output_tokens {output.max_tokens} minus an answer "
            f"reserve of {reserve}), got {config.budget_tokens}",
            "BUDGET_DOES_NOT_FIT",
            **_numbers(config, output),
        )
    if config.answer_reserve_tokens is not None and config.answer_reserve_tokens > output.max_tokens:
        raise _violation(
            "answer_reserve",
            f"must be at most max_output_tokens {output.max_tokens}, got {config.answer_reserve_tokens}",
            "BUDGET_DOES_NOT_FIT",
            **_numbers(config, output),
        )


def _numbers(config: ThinkingConfig, output: Output) -> dict[str, object]:
    """Return the numbers as the caller set them; 0 for those that are not set, and 1 for the reserve."""
    return {
        "thinking_budget": config.budget_tokens or 0,
        "max_output_tokens": output.max_tokens,
        "answer_reserve": config.answer_reserve_tokens or 1,
    }


def _violation(name: str, description: str, reason: FieldReason, **metadata: object) -> BadRequest:
    return BadRequest(FieldViolation(f"spec.thinking.{name}", description, reason), **metadata)
