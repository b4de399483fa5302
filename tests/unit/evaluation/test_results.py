"""Statistics, checks and picture, from rows made up for it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from penstock_bench.evaluation.checks import Thresholds, check
from penstock_bench.evaluation.plot import Label, draw, merged
from penstock_bench.evaluation.questions import Question
from penstock_bench.evaluation.report import Facts, as_json
from penstock_bench.evaluation.results import (
    DEADLINE_EXCEEDED,
    EvaluationSummary,
    Row,
    Share,
    paired_difference,
    summarize,
)
from penstock_bench.evaluation.settings import AUTO, FAST, THINKING, Setting, settings_of
from penstock_client import ThinkingMode

QUESTIONS = [Question(f"q{n}", "hard" if n % 2 else "easy", "?", None, "1", bool(n % 2)) for n in range(100)]
SETTINGS = settings_of([-1, 8, 0], ["fast", "thinking", "auto"], [])
LIMITS = Thresholds(min_questions=100)
LOST = Row.lost(QUESTIONS[0], AUTO, DEADLINE_EXCEEDED, 0.0, 2.0)


def row(question: Question, setting: Setting, thought: int, right: bool, **change: object) -> Row:
    made = replace(
        Row.lost(question, setting, "natural_end", 0.0, 1.0),
        right=right,
        thought_tokens=thought,
        answer_tokens=2,
        budget_tokens=100,
        usd_ticks=1000,
    )
    return replace(made, **change)  # type: ignore[arg-type]


def rows_of(setting: Setting, auto_thinks_always: bool = False, unlimited_right: bool = True) -> list[Row]:
    """Easy ones are always right; hard ones with 40 tokens of thought, and every fourth of them with 8."""
    made = []
    for number, asked in enumerate(QUESTIONS):
        full = 40 if asked.needs_thought else 20
        auto = full if asked.needs_thought or auto_thinks_always else 0
        spent = auto if setting == AUTO else {FAST: 0, THINKING: full}.get(setting, setting.budget_tokens or 0)
        right = not asked.needs_thought or (spent == 40 and unlimited_right) or (spent == 8 and number % 4 == 1)
        made.append(row(asked, setting, spent, right))
    return made


def measured(**change: bool) -> tuple[list[EvaluationSummary], list[Row]]:
    rows = [one for setting in SETTINGS for one in rows_of(setting, **change)]
    found = [summarize(setting, rows) for setting in SETTINGS]
    return [one for one in found if one is not None], rows


def failed(summaries: list[EvaluationSummary], rows: list[Row], planned: int = 100) -> list[str]:
    return [line.what for line in check(summaries, rows, planned, LIMITS) if not line.ok]


def test_settings_have_an_order_and_names() -> None:
    made = settings_of([8, -1, 0, 8], ["auto", "fast", "thinking"], [2.0, 0.5])
    names = ["FAST", "THINKING 0", "THINKING 8", "THINKING unlimited", "AUTO", "AUTO 0.5 s", "AUTO 2 s"]
    assert [setting.name for setting in made] == names
    assert settings_of([1], ["fast"], [1.0]) == [FAST]


def test_a_summary_counts() -> None:
    asked = QUESTIONS[1]
    one = row(asked, AUTO, 10, True, drafted_tokens=8, accepted_tokens=6)
    two = row(QUESTIONS[0], AUTO, 30, False, started_seconds=1.0, drafted_tokens=2, accepted_tokens=2, budget_tokens=9)
    found = summarize(AUTO, [one, two])
    assert found is not None
    assert (found.accuracy, found.accuracy_with_thought_needed) == (Share(1, 2), Share(1, 1))
    assert (found.mean_thought_tokens, found.mean_answer_tokens, found.mean_thought_tokens_where_needed) == (20, 2, 10)
    assert found.output_tokens_per_second == 44 / 2.0
    assert found.usd_per_1000_questions == pytest.approx(1e-4)
    assert (found.drafted_tokens, found.accepted_tokens, found.over_budget) == (10, 8, 1)
    assert summarize(FAST, [one]) is None


def test_what_missed_its_deadline_is_wrong_and_its_spending_is_unknown() -> None:
    found = summarize(AUTO, [LOST, row(QUESTIONS[1], AUTO, 10, True)])
    assert found is not None
    assert found.accuracy == Share(1, 2)
    assert found.mean_thought_tokens == 10
    assert found.usd_per_1000_questions == pytest.approx(1e-4)
    assert found.outcomes == {DEADLINE_EXCEEDED: 1, "natural_end": 1}
    alone = summarize(AUTO, [LOST])
    assert alone is not None
    assert math.isnan(alone.mean_thought_tokens)
    facts = Facts("c", "d", {}, {}, {}, 1, 1)
    assert "NaN" not in json.dumps(as_json(facts, [alone], [], [LOST]))


def test_statistics() -> None:
    low, high = Share(95, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert math.isnan(Share(0, 0).value)
    before = [row(asked, FAST, 0, number < 50) for number, asked in enumerate(QUESTIONS)]
    after = [row(asked, AUTO, 0, number < 60) for number, asked in enumerate(QUESTIONS)]
    growth, error = paired_difference(before, after)
    assert growth == pytest.approx(0.1)
    assert error == pytest.approx(0.03)


def test_a_model_whose_thought_matters_passes() -> None:
    assert failed(*measured()) == []


def test_each_check_can_fail() -> None:
    assert failed(*measured(auto_thinks_always=True)) == ["AUTO, mean thought tokens"]
    summaries, rows = measured(unlimited_right=False)
    assert "unlimited, all questions" in failed(summaries, rows)
    assert "THINKING 8 to THINKING unlimited" in failed(summaries, rows)
    assert failed(*measured(), planned=101) == ["questions in every setting"]
    summaries, rows = measured()
    assert failed(summaries[1:], rows) == ["measured"]
    rows = [replace(one, right=True) for one in rows]
    found = [one for setting in SETTINGS if (one := summarize(setting, rows)) is not None]
    assert failed(found, rows) == ["FAST, where thought is needed", "smallest budget to largest"]
    over = [replace(one, over_budget=1) for one in measured()[0]]
    assert failed(over, measured()[1]) == ["thoughts longer than their budget"]


@pytest.mark.parametrize("validated", [False, True])
def test_tools_images_languages_and_follow_ups_have_limits_of_their_own(validated: bool) -> None:
    """Where a question has more than a text, only THINKING without a limit is needed."""
    rows = []
    for number in range(100):
        asked = replace(QUESTIONS[number], needs_thought=False, language="de" if number % 2 else "en")
        made = row(asked, THINKING, 10, right=True)
        rows.append(
            replace(made, form="image" if number < 50 else "tools", expected_calls=number % 2, called_right=True)
        )
    rows[:50] = [replace(one, expected_calls=None, called_right=None) for one in rows[:50]]
    summary = summarize(THINKING, rows)
    assert summary is not None
    lines = check([summary], rows, 100, LIMITS, are_calls_validated=validated)
    assert [(line.what, line.ok) for line in lines] == [
        ("language en", True),
        ("language de", True),
        ("questions with an image", True),
        ("questions with tools", True),
        ("right tool calls", True),
        ("no tool call where none is needed", True),
        ("thoughts longer than their budget", True),
    ]
    rows[51] = replace(rows[51], called_right=False)  # 24 of 25 calls: 0.96
    found = summarize(THINKING, rows)
    assert found is not None
    lines = check([found], rows, 100, LIMITS, are_calls_validated=validated)
    assert [line.what for line in lines if not line.ok] == (["right tool calls"] if validated else [])


def test_noise_is_allowed_for() -> None:
    summaries, rows = measured()
    unlucky = next(one for one in rows if one.setting == "THINKING 8" and one.needs_thought and one.right)
    fewer = [replace(one, right=True) if one.setting == "THINKING 0" and one.id == unlucky.id else one for one in rows]
    fewer = [replace(one, right=False) if one is unlucky else one for one in fewer]
    assert failed(summaries, fewer) == []


def test_labels_that_would_overlap_are_one() -> None:
    labels = [Label(0, 0.5, "0"), Label(31, 0.98, "64"), Label(31.5, 0.99, "no limit")]
    assert merged(labels, 40, 1) == [labels[0], Label(31, 0.98, "64, no limit")]


@pytest.mark.parametrize("priced", [True, False])
def test_the_picture_is_drawn(tmp_path: Path, priced: bool) -> None:
    summaries, _ = measured()
    if not priced:
        # Nothing but AUTO, without a price list: still a picture.
        summaries = [replace(one, usd_per_1000_questions=None) for one in summaries]
        summaries = [one for one in summaries if one.setting.mode is ThinkingMode.AUTO]
    draw(summaries, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
