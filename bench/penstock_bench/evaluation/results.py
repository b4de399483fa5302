"""Compute results: a row per reply, a summary per setting, and statistics between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from penstock.generation.percentiles import percentile
from penstock_bench.evaluation.questions import Question
from penstock_bench.evaluation.settings import Setting

DEADLINE_EXCEEDED = "deadline_exceeded"
_USD_PER_TICK = 1e-10
_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Row:
    """One question and its reply, or its two replies where tools were called. None: the service does not report it.

    `expected_calls` is the number of tool calls that are right, None where no tools were offered; `called_right` says
    whether the reply has these calls. `right` is that, and whether the last answer is right. Times are in seconds.
    `started` counts from the start of the evaluation, `latency` is measured by the caller, the rest by the server.
    """

    setting: str
    id: str
    kind: str
    language: str
    form: str
    needs_thought: bool
    right: bool
    expected_calls: int | None
    called_right: bool | None
    answer: str
    outcome: str
    finish_reason: str
    thought_tokens: int
    answer_tokens: int
    prompt_tokens: int
    cached_tokens: int
    budget_tokens: int
    reason: str
    drafted_tokens: int | None
    accepted_tokens: int | None
    usd_ticks: int | None
    started_seconds: float
    latency_seconds: float
    first_token_seconds: float | None
    queue_seconds: float
    recomputed_tokens: int = 0
    probe_tokens: int = 0
    probes: int = 0

    @property
    def decoded_tokens(self) -> int:
        """Return the tokens of thought and answer."""
        return self.thought_tokens + self.answer_tokens

    @property
    def engine_tokens(self) -> int:
        """Return all tokens that the engine computed: uncached prompt, output, probes, and what was computed again."""
        uncached = self.prompt_tokens - self.cached_tokens
        return uncached + self.decoded_tokens + self.recomputed_tokens + self.probe_tokens

    @classmethod
    def lost(cls, question: Question, setting: Setting, outcome: str, started: float, latency: float) -> Self:
        """Return the row of a question without a reply: it is wrong, and its usage is unknown."""
        return cls(
            setting=setting.name,
            id=question.id,
            kind=question.kind,
            language=question.language,
            form=question.form,
            needs_thought=question.needs_thought,
            right=False,
            expected_calls=len(question.calls) if question.tools else None,
            called_right=False if question.tools else None,
            answer="",
            outcome=outcome,
            finish_reason=outcome,
            thought_tokens=0,
            answer_tokens=0,
            prompt_tokens=0,
            cached_tokens=0,
            budget_tokens=0,
            reason="",
            drafted_tokens=None,
            accepted_tokens=None,
            usd_ticks=None,
            started_seconds=started,
            latency_seconds=latency,
            first_token_seconds=None,
            queue_seconds=0.0,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """A share: `right` of `asked`."""

    right: int
    asked: int

    @property
    def value(self) -> float:
        """Return `right` divided by `asked`; NaN without questions."""
        return self.right / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval."""
        if not self.asked:
            return math.nan, math.nan
        n, p, z = self.asked, self.value, _Z_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return middle - half, middle + half


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """Results of one setting. Means and costs are over the replies received; None: the service did not report it."""

    setting: Setting
    accuracy: Share
    accuracy_with_thought_needed: Share
    accuracy_without_thought_needed: Share
    by_kind: Mapping[str, Share]
    by_language: Mapping[str, Share]
    """Empty where the questions name no language."""
    by_form: Mapping[str, Share]
    calls: Share
    """Replies with the right tool calls, of the questions that need some."""
    no_calls: Share
    """Replies without a tool call, of the questions that offer tools and need none."""
    mean_thought_tokens: float
    mean_answer_tokens: float
    mean_thought_tokens_where_needed: float
    outcomes: Mapping[str, int]
    latency_p50_seconds: float
    latency_p95_seconds: float
    output_tokens_per_second: float
    usd_per_1000_questions: float | None
    drafted_tokens: int | None
    accepted_tokens: int | None
    mean_engine_tokens: float
    mean_probe_tokens: float
    mean_probes: float
    wall_seconds: float
    """From the first question to the last answer of this setting."""
    over_budget: int
    """Number of replies with a thought longer than the budget; 0 if budgets hold."""


def summarize(setting: Setting, rows: Iterable[Row]) -> EvaluationSummary | None:
    """Return the summary of a setting; None if nothing was measured."""
    mine = [row for row in rows if row.setting == setting.name]
    if not mine:
        return None
    came = [row for row in mine if row.outcome != DEADLINE_EXCEEDED]
    needed = [row for row in mine if row.needs_thought]
    latencies = [row.latency_seconds for row in mine]
    wall = max(row.started_seconds + row.latency_seconds for row in mine) - min(row.started_seconds for row in mine)
    output_tokens = sum(row.thought_tokens + row.answer_tokens for row in came)
    ticks = total(row.usd_ticks for row in came)
    return EvaluationSummary(
        setting=setting,
        accuracy=share(mine),
        accuracy_with_thought_needed=share(needed),
        accuracy_without_thought_needed=share(row for row in mine if not row.needs_thought),
        by_kind=_shares(mine, lambda row: row.kind),
        by_language=_shares([row for row in mine if row.language], lambda row: row.language),
        by_form=_shares(mine, lambda row: row.form),
        calls=_called_right(row for row in mine if row.expected_calls),
        no_calls=_called_right(row for row in mine if row.expected_calls == 0),
        mean_thought_tokens=_mean([row.thought_tokens for row in came]),
        mean_answer_tokens=_mean([row.answer_tokens for row in came]),
        mean_thought_tokens_where_needed=_mean([row.thought_tokens for row in came if row.needs_thought]),
        outcomes=dict(Counter(row.outcome for row in mine).most_common()),
        latency_p50_seconds=percentile(latencies, 50),
        latency_p95_seconds=percentile(latencies, 95),
        output_tokens_per_second=output_tokens / wall if wall else math.nan,
        usd_per_1000_questions=None if ticks is None else ticks * _USD_PER_TICK * 1000 / len(came),
        drafted_tokens=total(row.drafted_tokens for row in came),
        accepted_tokens=total(row.accepted_tokens for row in came),
        mean_engine_tokens=_mean([row.engine_tokens for row in came]),
        mean_probe_tokens=_mean([row.probe_tokens for row in came]),
        mean_probes=_mean([row.probes for row in came]),
        wall_seconds=wall,
        over_budget=sum(row.thought_tokens > row.budget_tokens for row in came),
    )


def share(rows: Iterable[Row]) -> Share:
    """Return the share of rows that are right."""
    verdicts = [row.right for row in rows]
    return Share(sum(verdicts), len(verdicts))


def _shares(rows: Sequence[Row], group: Callable[[Row], str]) -> dict[str, Share]:
    groups = dict.fromkeys(map(group, rows))
    return {name: share(row for row in rows if group(row) == name) for name in groups}


def _called_right(rows: Iterable[Row]) -> Share:
    verdicts = [bool(row.called_right) for row in rows]
    return Share(sum(verdicts), len(verdicts))


def paired_difference(before: Iterable[Row], after: Iterable[Row]) -> tuple[float, float]:
    """Return the growth of accuracy on the questions that both have, and its standard error."""
    known = {row.id: row.right for row in before}
    changes = [row.right - known[row.id] for row in after if row.id in known]
    if not changes:
        return math.nan, math.nan
    mean = _mean(changes)
    return mean, math.sqrt(_mean([(change - mean) ** 2 for change in changes]) / len(changes))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum, or None if there is no count or one of them is unknown."""
    found = list(counts)
    known = [one for one in found if one is not None]
    return sum(known) if known and len(known) == len(found) else None
