"""Every red flag: what raises it, what does not, and that what was not looked at is said to be so."""

from __future__ import annotations

import pytest
from penstock_bench.pilot.flag import Flag, State
from penstock_bench.pilot.flags import check_all
from penstock_bench.pilot.results import EngineSeen, Result

from tests.unit.pilot.made import (
    experts,
    healthy_answers,
    healthy_stages,
    result,
    seconds,
    stage,
    with_answers,
    with_stage,
)


def flag(of: Result, name: str) -> Flag:
    return next(found for found in check_all(of) if found.id == name)


def engine(usage: float, preemptions: int) -> EngineSeen:
    return EngineSeen(
        kv_usage_most=usage,
        preemptions=preemptions,
        prefix_queried_tokens=None,
        prefix_hit_tokens=None,
        drafts=None,
        accepted_by_position=(),
    )


RAISED = {
    "budget_overshoot": (with_answers("24", over_budget=1), "1 in THINKING 24"),
    "calls_lost": (with_stage("16", outcomes={"ok": 190, "failed": 10}, errors={"INTERNAL": 10}), "INTERNAL"),
    "no_answer": (with_answers("unlimited", outcomes={"max_output_tokens": 2, "natural_end": 98}), "2 of 500"),
    "deadline_misses": (with_answers("deadline", deadline_missed=5), "5 of 100"),
    "deadline_starves_thought": (
        with_answers("deadline", accuracy=0.5, mean_thought_tokens=2.0),
        "accuracy 0.50 for 2.0",
    ),
    "burst_p99": (with_stage("burst", first_token=seconds(2.0, 6.0)), "6.00 s"),
    "kv_pressure": (with_stage("16", engine=engine(0.97, 3)), "97% full (16 callers); 3 preemptions"),
    "expert_imbalance": (result(experts=experts(((25, 25, 25, 25), 0.25), ((70, 10, 10, 10), 0.7))), "expert 0"),
    "drafts_rejected": (
        result(asked={"fast": healthy_answers()["fast"].model_copy(update={"accepted_tokens": 300})}),
        "30% of 1,000",
    ),
    "thoughts_cut": (with_answers("24", outcomes={"budget_reached": 60, "natural_end": 40}), "60%"),
    "thoughts_unpaid": (with_answers("auto", mean_thought_tokens=10.0), "ratio 2.9"),
    "prefix_cache_idle": (with_stage("shared", cached_share=0.1), "whole blocks of 384"),
    "latency_drift": (with_stage("soak", end_to_end_p50_by_half=(1.0, 2.0)), "2.00 s in the second"),
    "memory_growth": (
        with_stage("soak", memory_over_time_gib=tuple((float(n), 2.0 + n / 100) for n in range(100))),
        "GiB in the last",
    ),
    "front_end_bound": (with_stage("16", front_end_cores=0.95), "0.95 of one core"),
    "drafts_lose_at_load": (
        with_stage("16", concurrency=64, name="64 callers", drafted_tokens=14_400, accepted_tokens=4_800),
        "50% of the positions",  # 4,800 steps, 9,600 tokens; each step computes four positions
    ),
    "drafts_lose_at_length": (
        result(
            {
                **healthy_stages(),
                "long": stage(
                    "context", "prompts of 8,192 tokens", concurrency=4, mean_prompt_tokens=8192.0, accepted_tokens=400
                ),
            }
        ),
        "70% of drafts accepted after prompts of 2,048 tokens, 40% after 8,192",
    ),
    "prefix_never_hits": (with_stage("shared", cached_share=0.0), "whole blocks only (384 tokens)"),
    "knee_reached": (with_stage("16", output_tokens_per_second=61.0), "changes by +2%"),
    "machine_busy": (with_stage("rate", other_cores=0.7), "at most 0.70 cores (50% of the peak rate)"),
    "generator_late": (with_stage("rate", send_lag=seconds(0.01, 0.2)), "0.200 s late"),
}


@pytest.mark.parametrize("name", RAISED)
def test_it_is_raised_with_its_evidence(name: str) -> None:
    bad, evidence = RAISED[name]
    found = flag(bad, name)
    assert found.state is State.RAISED
    assert evidence in found.evidence
    assert len(found.advice) > 20


WELL = {
    "drafts_lose_at_load": with_stage("16", concurrency=64),
    "drafts_lose_at_length": result(
        {**healthy_stages(), "long": stage("context", "long", concurrency=4, mean_prompt_tokens=8192.0)}
    ),
}
"""Where the healthy pilot does not look."""


@pytest.mark.parametrize("name", RAISED)
def test_it_is_not_raised_where_all_is_well(name: str) -> None:
    assert flag(WELL.get(name, result()), name).state is State.CLEAR


def test_there_is_no_other_flag_and_the_raised_ones_come_first() -> None:
    assert {found.id for found in check_all(result())} == set(RAISED)
    assert check_all(RAISED["kv_pressure"][0])[0].id == "kv_pressure"


NOTHING = result({}, {}, experts=None, experts_not_seen="UNIMPLEMENTED", metrics_not_seen="no endpoint", points=())


@pytest.mark.parametrize("name", RAISED)
def test_what_was_not_looked_at_is_neither(name: str) -> None:
    found = flag(NOTHING, name)
    assert found.state is State.UNSEEN
    assert found.evidence


@pytest.mark.parametrize(
    ("name", "near"),
    [
        # A preemption is pressure whatever the usage; usage alone below the limit is none.
        ("kv_pressure", with_stage("16", engine=engine(0.85, 0))),
        # Slower in a burst, but still within what was wanted.
        ("burst_p99", with_stage("burst", first_token=seconds(0.5, 0.95))),
        # Beyond what was wanted, but no worse than the steady load.
        ("burst_p99", result({**healthy_stages(), "burst": stage("burst", "b", first_token=seconds(1.0, 1.4)),
                              "rate": stage("rate", "r", first_token=seconds(1.0, 1.3))})),
        # One expert is busy, but no rank and none by twice the mean.
        ("expert_imbalance", result(experts=experts(((45, 25, 20, 10), 0.3)))),
        # A cheaper budget that is less right, beyond noise.
        ("thoughts_unpaid", with_answers("auto", mean_thought_tokens=10.0, accuracy=0.8)),
        ("deadline_misses", with_answers("deadline", deadline_missed=1)),
        # Less right, but the time was needed.
        ("deadline_starves_thought", with_answers("deadline", accuracy=0.5, latency_p95_seconds=1.6)),
        ("memory_growth", with_stage("soak", memory_over_time_gib=tuple((float(n), 2 + n / 2000) for n in range(99)))),
    ],
)  # fmt: skip
def test_near_misses_are_clear(name: str, near: Result) -> None:
    assert flag(near, name).state is State.CLEAR


def test_a_burst_that_loses_calls_is_raised() -> None:
    found = flag(with_stage("burst", first_token=seconds(0.1, None, lost=7)), "burst_p99")
    assert found.state is State.RAISED
    assert "7 of 200" in found.evidence


def test_preemption_alone_is_pressure() -> None:
    assert flag(with_stage("16", engine=engine(0.5, 1)), "kv_pressure").state is State.RAISED


def test_a_short_soak_says_nothing_about_memory() -> None:
    found = flag(with_stage("soak", seconds=30.0), "memory_growth")
    assert found.state is State.UNSEEN
    assert "too short" in found.evidence


def test_drafts_are_judged_by_real_questions_where_there_are_some() -> None:
    made_up = {key: one.model_copy(update={"accepted_tokens": 100}) for key, one in healthy_stages().items()}
    assert flag(result(made_up), "drafts_rejected").state is State.CLEAR
    assert flag(result(made_up, {}), "drafts_rejected").state is State.RAISED
