"""Test what a million tokens cost, from two full stages and a price."""

from __future__ import annotations

import pytest
from penstock_bench.pilot.cost import answer_costs, costs_of, operating_point, share_of
from penstock_bench.pilot.results import Prices

from tests.unit.pilot.made import healthy_stages, result, with_stage


def test_the_operating_point_keeps_the_objectives() -> None:
    assert operating_point(result()) == healthy_stages()["16"]
    point = operating_point(with_stage("16", goodput_share=0.8))
    assert point is not None
    assert point.concurrency == 1
    everything_late = {key: one.model_copy(update={"goodput_share": 0.1}) for key, one in healthy_stages().items()}
    assert operating_point(result(everything_late)) is None


def test_both_stages_fill_the_machine() -> None:
    share = share_of(result())
    assert share is not None
    for prompts, outputs in ((800.0, 300.0), (2500.0, 10.0)):
        assert share.per_prompt_token * prompts + share.per_output_token * outputs == pytest.approx(1.0)


def test_costs_and_break_even() -> None:
    """Two GPUs at 3.60 an hour: 0.002 USD a second."""
    made = result()
    costs, share = costs_of(made), share_of(made)
    assert costs is not None
    assert share is not None
    assert costs.per_hour == 7.2
    assert costs.output == costs.thought == pytest.approx(share.per_output_token * 2000)
    assert costs.input == pytest.approx(share.per_prompt_token * 2000)
    hosted_per_second = (6.0 * 128 * 0.4 + 300 * 2.4) / 1e6
    assert costs.break_even_utilization == pytest.approx(0.002 / hosted_per_second)


def test_without_a_context_sweep_prompts_cost_nothing_and_output_all() -> None:
    stages = {key: one for key, one in healthy_stages().items() if key != "context"}
    share = share_of(result(stages))
    assert share is not None
    assert (share.per_prompt_token, share.per_output_token) == (0.0, pytest.approx(1 / 300))


def test_no_price_no_cost() -> None:
    assert costs_of(result(prices=Prices())) is None
    assert costs_of(result({})) is None
    costs = costs_of(result(prices=Prices(hour=1.0)))
    assert costs is not None
    assert (costs.break_even_utilization, costs.hosted_output) == (None, None)


def test_wrong_answers_are_paid_for() -> None:
    made = result()
    costs = costs_of(made)
    assert costs is not None
    by_name = {one.name: one for one in answer_costs(made, costs)}
    fast = by_name["FAST"]
    assert fast.per_1000_questions == pytest.approx((30 * costs.input + 8 * costs.output) / 1000)
    assert fast.per_1000_right == pytest.approx(fast.per_1000_questions / 0.45)
    assert by_name["AUTO"].hosted_per_1000_questions == pytest.approx((30 * 0.4 + 30 * 2.4) / 1000)
    # Four fifths of what is paid for an answer under a full thought is the thought.
    unlimited = by_name["THINKING unlimited"]
    assert unlimited.per_million_answer_tokens > 4 * costs.output
