"""Compare ways to think less: each is chosen on one half of the questions and reported on the other one.

A threshold that is chosen and reported on the same questions looks better than it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock_bench.evaluation.results import EvaluationSummary, Row, Share, paired_difference, share
from penstock_bench.evaluation.settings import THINKING, UNLIMITED, Setting
from penstock_client import ThinkingMode

MIN_RATIO = 0.99
"""Smallest accuracy of what is chosen, as a share of THINKING's without a limit."""
_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hold one way to think less, as it does on the questions that it was not chosen on. Ratios are to THINKING's.

    Attributes:
        family: Fixed budget, AUTO, or a sign of early exit.
        setting: Name of the setting that was chosen.
        accuracy: Of the reported half.
        accuracy_ratio: Accuracy as a share of THINKING's.
        difference: Accuracy minus THINKING's, on the same questions.
        difference_error: Half of the 95 % interval of `difference`.
        thought_ratio: Thought tokens.
        decoded_ratio: Thought and answer tokens.
        engine_ratio: All tokens that the engine computed.
        time_ratio: Time from the calls' start to their replies, summed.
        probe_tokens: Mean tokens of probes per question.
        by_language: Accuracy of the reported half, by language.
        beaten_by: Settings without early exit that take no more time and are more accurate beyond the 95 % interval of
            the difference, over all questions or in a language, such as `THINKING 16 (zh)`.
    """

    family: str
    setting: str
    accuracy: Share
    accuracy_ratio: float
    difference: float
    difference_error: float
    thought_ratio: float
    decoded_ratio: float
    engine_ratio: float
    time_ratio: float
    probe_tokens: float
    by_language: Mapping[str, Share]
    beaten_by: Sequence[str]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Hold what was chosen of each family, THINKING without a limit first, and the sizes of both halves."""

    chosen: Sequence[Chosen]
    chosen_on: int
    reported_on: int
    min_ratio: float = MIN_RATIO

    @property
    def languages(self) -> list[str]:
        """Return the languages of the questions."""
        return list(dict.fromkeys(language for one in self.chosen for language in one.by_language))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, with intervals."""
        made = asdict(self)
        for plain, one in zip(made["chosen"], self.chosen, strict=True):
            plain["accuracy"] |= {"value": one.accuracy.value, "interval_95": one.accuracy.interval}
            for language, found in one.by_language.items():
                plain["by_language"][language] |= {"value": found.value, "interval_95": found.interval}
        return made


def frontier_of(summaries: Sequence[EvaluationSummary], rows: Sequence[Row]) -> Frontier | None:
    """Return the frontier; None where THINKING without a limit was not measured."""
    by_setting = {s.setting: [row for row in rows if row.setting == s.setting.name] for s in summaries}
    if THINKING not in by_setting:
        return None
    families: dict[str, list[Setting]] = {}
    for setting in by_setting:
        families.setdefault(_family(setting), []).append(setting)
    first = {setting: [row for row in mine if _is_first_half(row.id)] for setting, mine in by_setting.items()}
    second = {setting: [row for row in mine if not _is_first_half(row.id)] for setting, mine in by_setting.items()}
    chosen = {family: _choose(mine, first, first[THINKING]) for family, mine in families.items()}
    return Frontier(
        [_reported(family, setting, second) for family, setting in chosen.items()],
        chosen_on=len(first[THINKING]),
        reported_on=len(second[THINKING]),
    )


def _family(setting: Setting) -> str:
    if setting.early_exit is not None:
        return setting.early_exit.sign
    if setting.mode is ThinkingMode.THINKING:
        return "no limit" if setting.budget_tokens == UNLIMITED else "fixed budget"
    return setting.name


def _is_first_half(question_id: str) -> bool:
    """Return whether a question belongs to the half that is chosen on: by its id, so that it never changes sides."""
    return hashlib.sha256(question_id.encode()).digest()[0] % 2 == 0


def _choose(settings: Sequence[Setting], rows: Mapping[Setting, Sequence[Row]], unlimited: Sequence[Row]) -> Setting:
    """Return the setting with the least time of those that are accurate enough, else the most accurate one."""
    least = MIN_RATIO * share(unlimited).value
    enough = [one for one in settings if share(rows[one]).value >= least]
    if enough:
        return min(enough, key=lambda one: sum(row.latency_seconds for row in rows[one]))
    return max(settings, key=lambda one: share(rows[one]).value)


def _reported(family: str, setting: Setting, half: Mapping[Setting, Sequence[Row]]) -> Chosen:
    rows, unlimited = half[setting], half[THINKING]
    difference, error = paired_difference(unlimited, rows)
    languages = dict.fromkeys(row.language for row in rows if row.language)
    return Chosen(
        family=family,
        setting=setting.name,
        accuracy=share(rows),
        accuracy_ratio=_ratio([row.right for row in rows], [row.right for row in unlimited]),
        difference=difference,
        difference_error=_Z_95 * error,
        thought_ratio=_ratio([row.thought_tokens for row in rows], [row.thought_tokens for row in unlimited]),
        decoded_ratio=_ratio([row.decoded_tokens for row in rows], [row.decoded_tokens for row in unlimited]),
        engine_ratio=_ratio([row.engine_tokens for row in rows], [row.engine_tokens for row in unlimited]),
        time_ratio=_ratio([row.latency_seconds for row in rows], [row.latency_seconds for row in unlimited]),
        probe_tokens=sum(row.probe_tokens for row in rows) / len(rows) if rows else math.nan,
        by_language={language: share(row for row in rows if row.language == language) for language in languages},
        beaten_by=_beaten_by(setting, half, languages),
    )


def _beaten_by(setting: Setting, half: Mapping[Setting, Sequence[Row]], languages: Iterable[str]) -> list[str]:
    mine = half[setting]
    seconds = sum(row.latency_seconds for row in mine)
    found = []
    for other, theirs in half.items():
        if other == setting or other.early_exit is not None or sum(row.latency_seconds for row in theirs) > seconds:
            continue
        for language in ("", *languages):
            growth, error = paired_difference(_of(mine, language), _of(theirs, language))
            if growth > _Z_95 * error:
                found.append(f"{other.name} ({language})" if language else other.name)
    return found


def _of(rows: Iterable[Row], language: str) -> list[Row]:
    """Return the rows in a language; all for an empty one."""
    return [row for row in rows if not language or row.language == language]


def _ratio(part: Iterable[float], whole: Iterable[float]) -> float:
    total = sum(whole)
    return sum(part) / total if total else math.nan
