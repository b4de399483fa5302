"""The frontier: what is chosen on one half of the questions is reported on the other, against THINKING there."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from penstock_bench.evaluation.frontier import _is_first_half, frontier_of
from penstock_bench.evaluation.questions import Question
from penstock_bench.evaluation.report import show_frontier
from penstock_bench.evaluation.results import Row, summarize
from penstock_bench.evaluation.settings import AUTO, FAST, THINKING, UNLIMITED, Exit, Setting, settings_of
from penstock_client import ThinkingMode
from rich.console import Console

QUESTIONS = [Question(f"q{n}", "sum", "?", None, "1", True, ("en", "zh")[n % 2]) for n in range(400)]
PROBES = [Exit("probe", 0.5), Exit("probe", 0.9)]
SETTINGS = settings_of([-1, 8], ["fast", "thinking", "auto"], [], [*PROBES, Exit("marker")])


def rows_of(setting: Setting, tokens: int, wrong: float, probe: int = 0) -> list[Row]:
    """Rows of all questions, of which a share is wrong: the first ones of each half."""
    made = []
    for half in (True, False):
        mine = [asked for asked in QUESTIONS if _is_first_half(asked.id) is half]
        for number, asked in enumerate(mine):
            one = Row.lost(asked, setting, "natural_end", 0.0, tokens / 100)
            right = number >= wrong * len(mine)
            made.append(replace(one, right=right, thought_tokens=tokens, prompt_tokens=50, probe_tokens=probe))
    return made


def measured() -> list[Row]:
    return [
        *rows_of(FAST, 0, 0.5),
        *rows_of(Setting(ThinkingMode.THINKING, 8), 8, 0.4),
        *rows_of(THINKING, 100, 0.0),
        *rows_of(Setting(ThinkingMode.THINKING, UNLIMITED, None, PROBES[0]), 30, 0.2, 40),
        *rows_of(Setting(ThinkingMode.THINKING, UNLIMITED, None, PROBES[1]), 50, 0.0, 60),
        *rows_of(Setting(ThinkingMode.THINKING, UNLIMITED, None, Exit("marker")), 90, 0.02),
        *rows_of(AUTO, 60, 0.05),
    ]


def test_each_family_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    rows = measured()
    summaries = [found for setting in SETTINGS if (found := summarize(setting, rows)) is not None]
    frontier = frontier_of(summaries, rows)
    assert frontier is not None
    assert frontier.chosen_on + frontier.reported_on == 400
    found = {one.family: one for one in frontier.chosen}
    assert list(found) == ["FAST", "fixed budget", "no limit", "probe", "marker", "AUTO"]
    # The cheaper probe is not accurate enough; of the budgets none is, so the most accurate one stands for them.
    assert found["probe"].setting == "THINKING unlimited probe 0.9"
    assert found["fixed budget"].setting == "THINKING 8"
    assert found["probe"].accuracy.asked == frontier.reported_on
    assert (found["probe"].accuracy_ratio, found["probe"].difference) == (1.0, 0.0)
    assert found["probe"].thought_ratio == found["probe"].decoded_ratio == found["probe"].time_ratio == 0.5
    assert found["probe"].engine_ratio == pytest.approx((50 + 50 + 60) / (50 + 100))
    assert found["AUTO"].difference < 0 < found["AUTO"].difference_error
    assert set(found["probe"].by_language) == {"en", "zh"}
    # Nothing without early exit is more accurate in the same time, except than what guesses.
    assert found["probe"].beaten_by == found["no limit"].beaten_by == []
    assert found["AUTO"].beaten_by == []
    assert "FAST" not in found["fixed budget"].beaten_by
    plain = json.loads(json.dumps(frontier.to_dict()))
    assert plain["chosen"][3]["accuracy"]["value"] == 1.0
    assert len(plain["chosen"][3]["by_language"]["en"]["interval_95"]) == 2
    console = Console(record=True, width=200)
    show_frontier(console, frontier)
    assert "THINKING unlimited probe 0.9" in console.export_text()


def test_what_is_better_in_the_same_time_is_named_by_language() -> None:
    slow = Setting(ThinkingMode.THINKING, UNLIMITED, None, Exit("probe"))
    rows = [*rows_of(THINKING, 100, 0.0), *rows_of(slow, 110, 0.0)]
    rows += [replace(row, right=row.language == "zh") for row in rows_of(AUTO, 90, 0.0)]
    rows = [replace(row, right=False) if row.setting == slow.name and row.language == "zh" else row for row in rows]
    summaries = [found for setting in (THINKING, AUTO, slow) if (found := summarize(setting, rows)) is not None]
    frontier = frontier_of(summaries, rows)
    assert frontier is not None
    beaten = {one.family: one.beaten_by for one in frontier.chosen}
    assert beaten["probe"] == ["THINKING unlimited", "THINKING unlimited (zh)", "AUTO (zh)"]


def test_without_thinking_there_is_nothing_to_compare() -> None:
    rows = rows_of(FAST, 0, 0.5)
    summary = summarize(FAST, rows)
    assert summary is not None
    assert frontier_of([summary], rows) is None


def test_halves_are_about_equal_and_do_not_depend_on_what_else_is_asked() -> None:
    share = sum(_is_first_half(asked.id) for asked in QUESTIONS) / len(QUESTIONS)
    assert math.isclose(share, 0.5, abs_tol=0.1)


def test_names_tell_the_early_exit() -> None:
    assert [one.name for one in SETTINGS[3:6]] == [
        "THINKING unlimited probe 0.5",
        "THINKING unlimited probe 0.9",
        "THINKING unlimited marker",
    ]
