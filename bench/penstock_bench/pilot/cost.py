"""Compute the cost of a million tokens here, and compare it with a hosted price.

docs/how-to/pilot.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock_bench.pilot.results import Answers, Prices, Result, Stage

MILLION = 1e6
_HOUR_SECONDS = 3600.0
_GOOD_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of the full machine for one token."""

    per_prompt_token: float
    per_output_token: float
    from_stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """USD per million tokens if the machine is always full. A thought token costs the same as an answer token."""

    input: float
    output: float
    thought: float
    per_hour: float
    share: Share
    hosted_input: float | None
    hosted_output: float | None
    break_even_utilization: float | None
    """Share of the time that the machine must be full to cost the same as the hosted price.

    Above 1, it always costs more.
    """


@dataclass(frozen=True, slots=True)
class AnswerCost:
    """Cost of one thinking setting in USD; None without a price or a right answer."""

    name: str
    per_1000_questions: float
    per_1000_right: float | None
    per_million_answer_tokens: float
    """Cost of a thousand right answers, including their thoughts."""
    hosted_per_1000_questions: float | None


def operating_point(result: Result) -> Stage | None:
    """Return the fastest closed loop in which 95 % of calls keep the objectives; without objectives, the fastest."""
    stages = result.of("concurrency")
    good = [stage for stage in stages if stage.goodput_share is None or stage.goodput_share >= _GOOD_SHARE]
    return max(good, key=lambda stage: stage.output_tokens_per_second, default=None)


def fastest(stages: Iterable[Stage]) -> Stage | None:
    """Return the stage with most output tokens per second, or None."""
    return max(stages, key=lambda stage: stage.output_tokens_per_second, default=None)


def share_of(result: Result) -> Share | None:
    """Return the shares from two stages that fill the machine, one with much output and one with much input.

    Each stage gives one equation: `per_prompt_token * prompt rate + per_output_token * output rate = 1`. Returns None
    if they have no solution.
    """
    output = operating_point(result) or fastest(result.of("concurrency"))
    prompts = max(result.of("context"), key=lambda stage: stage.prompt_tokens_per_second, default=None)
    if output is None or not output.output_tokens_per_second:
        return None
    if prompts is not None:
        p1, o1 = output.prompt_tokens_per_second, output.output_tokens_per_second
        p2, o2 = prompts.prompt_tokens_per_second, prompts.output_tokens_per_second
        determinant = p1 * o2 - p2 * o1
        if determinant:
            per_prompt, per_output = (o2 - o1) / determinant, (p1 - p2) / determinant
            if per_prompt > 0 and per_output > 0:
                return Share(per_prompt, per_output, (output.name, prompts.name))
    # The two cannot be separated: assume that a prompt token costs nothing, which the report says.
    return Share(0.0, 1 / output.output_tokens_per_second, (output.name,))


def costs_of(result: Result) -> Costs | None:
    """Return the costs; None without a price per hour, or without throughput."""
    share, prices = share_of(result), result.prices
    if prices.hour is None or share is None:
        return None
    per_second = prices.hour * prices.gpus / _HOUR_SECONDS
    output = share.per_output_token * per_second * MILLION
    return Costs(
        input=share.per_prompt_token * per_second * MILLION,
        output=output,
        thought=output,
        per_hour=prices.hour * prices.gpus,
        share=share,
        hosted_input=prices.hosted_input,
        hosted_output=prices.hosted_output,
        break_even_utilization=_break_even(result, per_second),
    )


def _break_even(result: Result, usd_per_second: float) -> float | None:
    stage, prices = operating_point(result) or fastest(result.of("concurrency")), result.prices
    if stage is None or prices.hosted_input is None or prices.hosted_output is None:
        return None
    prompt = stage.calls_per_second * (stage.mean_prompt_tokens or 0.0)
    hosted = (prompt * prices.hosted_input + stage.output_tokens_per_second * prices.hosted_output) / MILLION
    return usd_per_second / hosted if hosted else None


def answer_costs(result: Result, costs: Costs) -> list[AnswerCost]:
    """Return the cost of each measured thinking setting."""
    return [_answer_cost(answers, costs, result.prices) for answers in result.answers if answers.asked]


def _answer_cost(answers: Answers, costs: Costs, prices: Prices) -> AnswerCost:
    output = answers.mean_thought_tokens + answers.mean_answer_tokens
    each = (answers.mean_prompt_tokens * costs.input + output * costs.output) / MILLION
    hosted = None
    if prices.hosted_input is not None and prices.hosted_output is not None:
        hosted = (answers.mean_prompt_tokens * prices.hosted_input + output * prices.hosted_output) / MILLION * 1000
    return AnswerCost(
        name=answers.name,
        per_1000_questions=each * 1000,
        per_1000_right=each * 1000 / answers.accuracy if answers.accuracy else None,
        per_million_answer_tokens=each / answers.mean_answer_tokens * MILLION if answers.mean_answer_tokens else 0.0,
        hosted_per_1000_questions=hosted,
    )
