"""Percentiles, rates and goodput from calls."""

from __future__ import annotations

from typing import Any

import pytest
from penstock_bench.load.calls import DEADLINE, FAILED, OK, REFUSED, UNFINISHED, Record
from penstock_bench.load.statistics import Objectives, Spread, summarize
from penstock_bench.load.workload import Work


def record(intended: float, seconds: float, **change: Any) -> Record:
    """A call of ten tokens: the first after a tenth of its time."""
    made = Record(Work(100), intended, intended + 0.01, OK)
    made.first_token = made.first_answer = intended + seconds / 10
    made.last_token = made.ended = intended + seconds
    made.prompt_tokens, made.cached_tokens, made.answer_tokens = 100, 20, 10
    for name, value in change.items():
        setattr(made, name, value)
    return made


def test_lost_calls_are_slower_than_all_others() -> None:
    spread = Spread.of([1.0] * 96 + [float("inf")] * 4)
    assert (spread.count, spread.lost, spread.p50, spread.p95) == (100, 4, 1.0, 1.0)
    assert (spread.p99, spread.most, spread.mean) == (None, None, None)
    assert Spread.of([]).p50 is None


def test_latency_counts_from_the_intended_time() -> None:
    found = summarize([record(1.0, 2.0, sent=2.5)], 10.0, 0, 10, Objectives())
    assert found.end_to_end.p50 == pytest.approx(2.0)
    assert found.first_token.p50 == pytest.approx(0.2)
    assert found.per_token.p50 == pytest.approx(1.8 / 9)
    assert found.send_lag.p50 == pytest.approx(1.5)


def test_refused_and_failed_calls_have_no_latency_but_spoil_goodput() -> None:
    gone = {"first_token": None, "first_answer": None, "last_token": None, "ended": 1.1, "prompt_tokens": 0}
    records = [
        record(0.0, 1.0),
        record(1.0, 9.0),
        record(1.0, 0.1, outcome=REFUSED, **gone),
        record(1.0, 0.1, outcome=FAILED, error="INTERNAL", **gone),
        record(1.0, 5.0, outcome=DEADLINE),
        record(1.0, 5.0, outcome=UNFINISHED),
    ]
    found = summarize(records, 10.0, 3, 57, Objectives(end_to_end=2.0))
    assert found.outcomes == {OK: 2, REFUSED: 1, FAILED: 1, DEADLINE: 1, UNFINISHED: 1}
    assert found.errors == {"INTERNAL": 1}
    assert (found.end_to_end.count, found.end_to_end.lost, found.end_to_end.p50) == (4, 2, 9.0)
    assert found.goodput_share == pytest.approx(1 / 6)
    assert found.goodput_calls_per_second == pytest.approx(0.1)
    assert found.calls_per_second == pytest.approx(0.1)  # the other one ended after the window
    assert found.output_tokens_per_second == pytest.approx(6.0)
    assert found.thought_tokens_per_second == pytest.approx(0.3)
    # Four were computed in the window, 80 of 100 prompt tokens each.
    assert found.prompt_tokens_per_second == pytest.approx(32.0)
    assert found.cached_share == pytest.approx(0.2)


def test_budgets_and_drafts_are_counted() -> None:
    records = [
        record(0.0, 1.0, budget_tokens=8, thought_tokens=8, drafted_tokens=10, accepted_tokens=7),
        record(0.0, 1.0, budget_tokens=8, thought_tokens=9, drafted_tokens=10, accepted_tokens=2),
    ]
    found = summarize(records, 1.0, 17, 20, Objectives())
    assert (found.over_budget, found.drafted_tokens, found.accepted_tokens) == (1, 20, 9)
    assert (found.goodput_share, found.usd) == (None, None)
    records[0].drafted_tokens = None
    assert summarize(records, 1.0, 17, 20, Objectives()).drafted_tokens is None


def test_nothing_measured_is_no_figure() -> None:
    found = summarize([], 5.0, 0, 0, Objectives(first_token=1.0))
    assert (found.calls, found.goodput_share, found.cached_share, found.mean_prompt_tokens) == (0, None, None, None)


def test_objectives_are_read_and_kept() -> None:
    objectives = Objectives.parse(["first-token=0.5", "per-token=0.1"])
    assert objectives.stated == {"first_token": 0.5, "per_token": 0.1}
    assert objectives.kept_by(record(0.0, 0.9))
    assert not objectives.kept_by(record(0.0, 6.0))
    assert not objectives.kept_by(record(0.0, 0.9, outcome=REFUSED))
    # A reply of one token has no time between tokens to keep to.
    assert objectives.kept_by(record(0.0, 3.0, answer_tokens=1))


@pytest.mark.parametrize("text", ["first-token", "ttft=1", "first-token=x", "first-token=0", "first-token=nan"])
def test_an_objective_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=SECONDS"):
        Objectives.parse([text])
