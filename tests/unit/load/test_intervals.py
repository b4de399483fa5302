"""Confidence intervals against queues whose truth is known, on simulated clocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from penstock_bench.load.calls import OK, REFUSED, Record
from penstock_bench.load.intervals import (
    BATCH_MEANS,
    REPETITIONS,
    batched,
    difference,
    differences,
    estimate,
    of_one_run,
    of_runs,
)
from penstock_bench.load.statistics import Objectives, summarize
from penstock_bench.load.workload import Work
from scipy import stats

from tests.unit.load.simulated import Loads, Scripted

RUNS = 1000
Floats = NDArray[np.float64]


def sojourns(load: float, calls: int, seed: int, warm_up: int = 300) -> tuple[Floats, Floats]:
    """Arrivals and times in an M/M/1 queue of service rate 1 after a warm-up: autocorrelated, mean 1 / (1 - load)."""
    rng = np.random.default_rng(seed)
    gaps, service = rng.exponential(1 / load, warm_up + calls), rng.exponential(1.0, warm_up + calls)
    # Lindley's recursion, solved: the wait is the walk less its minimum so far.
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    waits = walk - np.minimum.accumulate(walk)
    at = np.cumsum(gaps)
    return (at - at[warm_up])[warm_up:], (waits + service)[warm_up:]


def records_of(arrivals: Floats, times: Floats) -> list[Record]:
    return [
        Record(Work(1), at, at, OK, first_token=at + time, first_answer=at + time, ended=at + time)
        for at, time in zip(arrivals.tolist(), times.tolist(), strict=True)
    ]


def test_batch_means_of_one_run_cover_the_truth_in_93_to_97_percent_of_1000_runs() -> None:
    load, covered = 0.5, 0
    for seed in range(RUNS):
        _, times = sojourns(load, 4000, seed)
        found = estimate(batched(times, lambda batch: float(np.mean(batch)), 10), BATCH_MEANS)
        assert found is not None
        covered += found.low <= 1 / (1 - load) <= found.high
    assert 0.93 * RUNS <= covered <= 0.97 * RUNS


def test_intervals_over_repetitions_cover_the_truth_in_93_to_97_percent_of_1000_runs() -> None:
    """Heavier load and only five repetitions: single calls are far from independent."""
    load, covered = 0.7, 0
    for seed in range(RUNS):
        means = [float(sojourns(load, 1000, 10 * seed + run)[1].mean()) for run in range(5)]
        found = estimate(means, REPETITIONS)
        assert found is not None
        covered += found.low <= 1 / (1 - load) <= found.high
    assert 0.93 * RUNS <= covered <= 0.97 * RUNS


@pytest.mark.slow
@pytest.mark.parametrize("runs", [200, pytest.param(RUNS, marks=pytest.mark.full)])
def test_two_equal_services_are_told_apart_in_at_most_7_percent_of_comparisons(runs: int) -> None:
    """All compared figures together: each pair of results is judged as `penstock bench compare` judges it."""
    told_apart = 0
    for seed in range(runs):
        sides = []
        for side in (0, 1):
            arrivals, times = sojourns(0.3, 500, 2 * seed + side)
            found = of_one_run(records_of(arrivals, times), float(arrivals[-1]), (), Objectives(end_to_end=2.0))
            sides.append({name: one.samples for name, one in found.items()})
        made = differences(*sides)
        assert {"end_to_end_mean", "end_to_end_p95", "calls_per_second", "goodput_share"} <= made.keys()
        told_apart += any(one.differs for one in made.values())
    assert told_apart <= 0.07 * runs


def test_a_service_that_takes_half_as_long_again_is_told_apart() -> None:
    apart = 0
    for seed in range(100):
        _, before = sojourns(0.5, 4000, 2 * seed)
        _, after = sojourns(0.5, 4000, 2 * seed + 1)
        made = difference(before.reshape(5, -1).mean(1).tolist(), (after * 1.5).reshape(5, -1).mean(1).tolist())
        assert made is not None
        apart += made.low > 0
    assert apart >= 90


def test_the_scripted_engines_rate_has_an_interval_around_its_capacity() -> None:
    service = Scripted(slots=4, steps=20, step_seconds=0.05)
    records = service.serve([n / (2 * service.capacity) for n in range(-80, 800)])
    seconds = 60.0
    found = of_one_run([one for one in records if 0 <= one.intended < seconds], seconds, (), Objectives())
    # Only calls meant for the window are given: those of the warm-up end in its first second.
    assert found["calls_per_second"].high >= service.capacity * 0.99
    assert found["calls_per_second"].low <= service.capacity * 1.01


def test_too_few_or_lost_calls_have_no_interval() -> None:
    arrivals, times = sojourns(0.5, 40, 1)
    assert of_one_run(records_of(arrivals, times), float(arrivals[-1]), (), Objectives()) == {}
    arrivals, times = sojourns(0.5, 500, 1)
    records = records_of(arrivals, times)
    records[3].outcome = REFUSED
    found = of_one_run(records, float(arrivals[-1]), [10] * 30, Objectives(end_to_end=2.0))
    assert set(found) == {"calls_per_second", "output_tokens_per_second", "goodput_share"}
    assert estimate([1.0], REPETITIONS) is None
    assert estimate([1.0, float("inf")], REPETITIONS) is None
    assert difference([1.0], [1.0, 2.0]) is None


def test_equal_samples_without_any_spread_do_not_differ() -> None:
    same = difference([2.0, 2.0], [2.0, 2.0])
    other = difference([2.0, 2.0], [3.0, 3.0])
    assert same is not None
    assert other is not None
    assert (same.differs, other.differs, other.low) == (False, True, 1.0)


def test_the_difference_is_welchs_also_for_samples_that_are_nearly_alike() -> None:
    """SciPy's own test gives the same interval, and warns of the second pair."""
    first, second = [1.0, 1.5, 1.2, 1.4], [2.0, 2.6, 2.2]
    made = difference(first, second)
    assert made is not None
    wanted = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (made.low, made.high) == pytest.approx((wanted.low, wanted.high))
    close = difference([3.0, 3.0, 3.0 + 1e-15], [3.0, 3.0 - 1e-15, 3.0])
    assert close is not None
    assert close.low <= close.high


def test_repetitions_give_one_sample_each() -> None:
    service, loads = Scripted(slots=4, steps=20, step_seconds=0.05), Loads(Scripted(4, 20, 0.05))
    summaries = []
    for offset in (0.0, 0.1, 0.2):
        records = service.serve([n / 2 + offset for n in range(100)])
        summaries.append(summarize(records, 50.0, 0, 2000, loads.objectives))
    found = of_runs(summaries, [1.0, 2.0, None])
    assert len(found["end_to_end_p95"].samples) == 3
    assert "joules_per_output_token" not in found
    assert "goodput_share" not in found
