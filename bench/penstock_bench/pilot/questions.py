"""Measure accuracy by thinking budget with the shipped questions of `penstock eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from penstock_bench.evaluation.measure import EvaluationOptions, measure
from penstock_bench.evaluation.questions import SHIPPED, load, pick
from penstock_bench.evaluation.results import DEADLINE_EXCEEDED, Row, summarize
from penstock_bench.evaluation.settings import Setting, settings_of
from penstock_bench.pilot.results import Answers
from penstock_bench.pilot.scenario import Scenario
from penstock_client import AsyncClient, ThinkingMode


@dataclass(slots=True)
class Asked:
    """The answers so far."""

    about: str = ""
    planned: int = 0
    settings: list[Setting] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Return whether all planned questions were asked."""
        return len(self.rows) == self.planned

    def answers(self) -> tuple[Answers, ...]:
        """Return the answers of each setting that has any."""
        found = (
            _answers(setting, [row for row in self.rows if row.setting == setting.name]) for setting in self.settings
        )
        return tuple(one for one in found if one is not None)


async def ask(
    client: AsyncClient, scenario: Scenario, modes: Iterable[ThinkingMode], asked: Asked, show: Callable[[str], None]
) -> None:
    """Ask the questions greedily, in the modes that the model has, and fill `asked`. Raises PenstockError."""
    picked = pick(load(SHIPPED), scenario.questions, seed=0)
    asked.settings = settings_of(scenario.budgets, [mode.value for mode in modes], scenario.deadlines_seconds)
    asked.planned = len(picked) * len(asked.settings)
    asked.about = (
        f"{len(picked)} of the questions of `penstock eval` ({SHIPPED.name}), half of which need thought; greedy"
    )

    def keep(row: Row) -> None:
        """Store a row and show the progress."""
        asked.rows.append(row)
        show(f"questions, {row.setting}: {len(asked.rows)} of {asked.planned}")

    options = EvaluationOptions(scenario.question_callers, scenario.max_question_output_tokens)
    await measure(client, picked, asked.settings, options, keep)


def _answers(setting: Setting, rows: list[Row]) -> Answers | None:
    summary = summarize(setting, rows)
    if summary is None:
        return None
    came = [row for row in rows if row.outcome != DEADLINE_EXCEEDED]
    return Answers(
        name=setting.name,
        mode=setting.mode.value,
        budget_tokens=setting.budget_tokens,
        deadline_seconds=setting.deadline_seconds,
        asked=summary.accuracy.asked,
        right=summary.accuracy.right,
        accuracy=summary.accuracy.value,
        accuracy_interval_95=summary.accuracy.interval,
        mean_prompt_tokens=_mean([row.prompt_tokens for row in came]),
        mean_thought_tokens=_mean([row.thought_tokens for row in came]),
        mean_answer_tokens=_mean([row.answer_tokens for row in came]),
        outcomes=dict(summary.outcomes),
        deadline_missed=len(rows) - len(came),
        over_budget=summary.over_budget,
        latency_p50_seconds=summary.latency_p50_seconds,
        latency_p95_seconds=summary.latency_p95_seconds,
        drafted_tokens=summary.drafted_tokens,
        accepted_tokens=summary.accepted_tokens,
    )


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0
