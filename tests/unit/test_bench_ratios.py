"""What bench/ makes of its figures, on figures made by hand; nothing is served here."""

from __future__ import annotations

import pytest

from bench.overload import Overload
from bench.report import Round, judged
from bench.served import Served, answered


def served(cpu_seconds: float, first_token_seconds: float = 1.0) -> Served:
    return Served([answered(0.0, [first_token_seconds, 2.0], 10)], 2.0, cpu_seconds, 0.0)


def test_the_best_peer_is_one_server_and_not_whoever_was_lucky() -> None:
    costs = {
        "in_process": [1.0, 1.0, 1.0],
        "openai": [9.0, 9.0, 1.0],
        "vllm_grpc": [4.0, 4.0, 4.0],
        "penstock": [2.0, 3.0, 6.0],
        "penstock_gathering": [1.0, 1.0, 1.0],
    }
    rounds = [Round(turn, 64, name, served(cpu)) for name, own in costs.items() for turn, cpu in enumerate(own)]
    ratios, lines = judged(rounds)
    assert ratios["front-end CPU per token to the better peer"] == {64: pytest.approx(0.75)}
    assert ratios["front-end CPU per token to the better peer, gathering"] == {64: pytest.approx(0.25)}
    assert "0.75 at 64" in lines[1]


def seen(done: int, *refused_seconds: float, wrong: tuple[str, ...] = ()) -> dict[str, object]:
    """A turn of two seconds; an answer costs the front end a hundredth of a second, a refusal a thousandth."""
    refused = [(0.1, seconds) for seconds in refused_seconds]
    ends = {"sent": done + len(refused), "done": done, "refused": refused, "wrong": list(wrong)}
    return {**ends, "seconds": 2.0, "cpu": done / 100 + len(refused) / 1000}


@pytest.mark.parametrize(
    ("answered_calls", "refused_seconds", "holds"), [(18, 0.04, True), (17, 0.04, False), (18, 0.05, False)]
)
def test_goodput_is_beside_the_capacity_around_it(answered_calls: int, refused_seconds: float, holds: bool) -> None:
    overload = Overload([seen(10), seen(30), seen(10)], [seen(answered_calls, refused_seconds)] * 2)
    assert overload.capacities == [10.0, 10.0]
    assert overload.goodput == answered_calls / 20
    assert overload.p99_seconds == refused_seconds
    assert overload.cpu_seconds_per_refusal == pytest.approx(0.001)
    assert overload.holds == holds


def test_an_end_that_is_neither_answer_nor_refusal_is_told_whoever_saw_it() -> None:
    overload = Overload([seen(1, wrong=("14",)), seen(1)], [seen(1, 0.01, wrong=("13",))])
    assert overload.told()["wrong"] == ["14", "13"]
