"""Test the load of experts: balance, ranks, windows over sparse samples, engines that follow each other."""

from __future__ import annotations

import math
from array import array

import pytest
from penstock.engine.expert_load.statistics import Continued, ExpertCounts, History, busiest_rank_share, measure


def counts(*layers: list[int], ranks: int = 1) -> ExpertCounts:
    return ExpertCounts(2, ranks, {index: array("q", layer) for index, layer in enumerate(layers)})


def test_an_even_layer_is_even() -> None:
    load = measure(counts([5, 5, 5, 5]), 3.0)
    [layer] = load.layers
    assert (load.window_seconds, load.token_count) == (3.0, 10)
    assert (layer.imbalance, layer.hot_experts) == (1.0, ())
    assert layer.normalized_entropy == pytest.approx(1.0)


def test_one_expert_for_all_is_as_uneven_as_can_be() -> None:
    [layer] = measure(counts([0, 8, 0, 0]), 1.0).layers
    assert (layer.imbalance, layer.normalized_entropy, layer.hot_experts) == (4.0, 0.0, (1,))


def test_hot_experts_are_over_twice_the_mean_and_the_busiest_comes_first() -> None:
    [layer] = measure(counts([1, 9, 1, 1, 1, 1, 1, 11]), 1.0).layers
    assert layer.hot_experts == (7, 1)
    shares = [count / 26 for count in layer.counts]
    assert layer.normalized_entropy == pytest.approx(-sum(s * math.log(s) for s in shares) / math.log(8))


def test_without_tokens_all_is_even() -> None:
    load = measure(counts([0, 0], [0, 0]), 0.0)
    assert load.token_count == 0
    assert [(layer.imbalance, layer.normalized_entropy) for layer in load.layers] == [(1.0, 1.0)] * 2
    assert busiest_rank_share(load.layers[0].counts, 2) == 0.5


@pytest.mark.parametrize(("ranks", "busiest"), [(1, 20), (2, 14), (3, 9), (5, 8)])
def test_ranks_have_consecutive_experts_and_the_first_ones_one_more(ranks: int, busiest: int) -> None:
    assert busiest_rank_share(array("q", [1, 4, 1, 8, 6]), ranks) == busiest / 20


def test_a_window_begins_at_the_moment_nearest_to_it() -> None:
    history = History()
    assert history.load(10.0) is None
    for second in range(100):
        history.add(float(second), counts([second, second]))
    load = history.load(10.0)
    assert load is not None
    assert load.window_seconds == pytest.approx(10.0, abs=1.0)
    assert load.layers[0].counts[0] == load.window_seconds
    whole = history.load(3600.0)
    assert whole is not None
    assert (whole.window_seconds, whole.layers[0].counts[0]) == (99.0, 99)


def test_the_shortest_window_is_between_the_last_two_moments() -> None:
    history = History()
    for at in (0.0, 1.0, 2.0):
        history.add(at, counts([int(at)]))
    load = history.load(0.001)
    assert load is not None
    assert load.window_seconds == 1.0


def test_an_hour_of_moments_stays_small_and_every_window_is_about_right() -> None:
    history = History()
    for second in range(3 * 3600):
        history.add(float(second), counts([second]))
    assert len(history._moments) < 300
    for window in (1, 5, 30, 60, 300, 1000, 3600):
        load = history.load(float(window))
        assert load is not None
        assert load.window_seconds == pytest.approx(window, rel=0.02, abs=0.5)
        assert load.layers[0].counts[0] == load.window_seconds


def test_who_asks_the_same_gets_the_same_object() -> None:
    history = History()
    history.add(0.0, counts([0]))
    history.add(10.0, counts([5]))
    assert history.load(60.0) is history.load(61.0)
    before = history.load(60.0)
    history.add(11.0, counts([6]))
    assert history.load(60.0) is not before


def test_counts_go_on_when_another_engine_starts_at_nothing() -> None:
    continued, first, second = Continued(), object(), object()
    assert continued.total(first, counts([3, 1])).layers[0] == array("q", [3, 1])
    assert continued.total(first, counts([5, 1])).layers[0] == array("q", [5, 1])
    assert continued.total(second, counts([0, 0])).layers[0] == array("q", [5, 1])
    assert continued.total(second, counts([2, 2])).layers[0] == array("q", [7, 3])
    assert continued.total(first, counts([1, 0])).layers[0] == array("q", [8, 3])
