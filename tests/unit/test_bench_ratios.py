"""Test what bench/ makes of its figures, on figures made by hand; nothing is served here."""

from __future__ import annotations

import pytest

from bench import front_end, gateway, telemetry_calls
from bench.overload import Overload
from bench.report import Round, judged
from bench.served import Served, answered
from bench.work import long_job


def served(cpu_seconds: float, first_token_seconds: float = 1.0) -> Served:
    return Served([answered(0.0, [first_token_seconds, 2.0], 10)], 2.0, cpu_seconds, 0.0)


def test_the_best_peer_is_one_server_and_not_whoever_was_lucky() -> None:
    firsts = {
        "in_process": [1.0, 1.0, 1.0],
        "openai": [9.0, 9.0, 1.0],
        "vllm_grpc": [4.0, 4.0, 4.0],
        "penstock": [2.0, 3.0, 6.0],
    }
    rounds = [Round(turn, 64, name, served(1.0, at)) for name, own in firsts.items() for turn, at in enumerate(own)]
    ratios, lines = judged(rounds)
    assert ratios["throughput to in_process"] == {64: pytest.approx(1.0)}
    assert ratios["median time to first token to the best peer"] == {64: pytest.approx(3 / 4)}
    assert "1.00 at 64" in lines[0]


def test_front_end_costs_are_compared_in_pairs_of_one_round() -> None:
    costs = {
        "in_process": [1.0, 2.0, 3.0],
        "openai": [8.0, 16.0, 24.0],
        "vllm_grpc": [3.0, 6.0, 9.0],
        "penstock": [4.0, 8.0, 12.0],
        "penstock_coalescing": [2.0, 4.0, 9.0],
    }
    rounds = [
        front_end.Round(turn, 5, 64, name, served(cpu)) for name, own in costs.items() for turn, cpu in enumerate(own)
    ]
    found = {row["ratio"].removeprefix("front-end CPU per token, "): row for row in front_end.ratios_of(rounds)}
    assert found["penstock to vllm_grpc"]["median"] == pytest.approx(4 / 3, abs=1e-3)
    assert found["penstock to vllm_grpc"]["median_without_async_llm"] == pytest.approx(6 / 4)
    assert found["penstock to openai"]["median"] == 0.5
    coalescing = found["penstock_coalescing to vllm_grpc"]
    assert [coalescing[name] for name in ("min", "median", "max")] == [0.6667, 0.6667, 1.0]
    lines = front_end.judged(front_end.ratios_of(rounds))
    assert [line.rpartition(" ")[2] for line in lines] == ["missed", "held", "held"]


def test_a_front_end_that_was_not_there_is_not_compared() -> None:
    rounds = [front_end.Round(0, 5, 1, name, served(1.0)) for name in ("penstock", "openai")]
    assert [row["ratio"] for row in front_end.ratios_of(rounds)] == ["front-end CPU per token, penstock to openai"]


def test_what_the_gateway_adds_is_the_difference_of_medians() -> None:
    firsts = {"penstock": [0.010, 0.020, 0.090], "gateway": [0.012, 0.023, 0.024]}
    rounds = [
        front_end.Round(turn, 30, 8, name, served(1.0, at))
        for name, own in firsts.items()
        for turn, at in enumerate(own)
    ]
    (row,) = gateway.added_ms(rounds)
    assert (row["median_ms"], row["added_ms"]) == ({"penstock": 20.0, "gateway": 23.0}, 3.0)
    (line,) = gateway.judged_added([row])
    assert "adds 3.00 ms" in line
    assert line.endswith("held")
    assert gateway.judged_added(gateway.added_ms(rounds[:3])) == []  # nothing to compare with


def test_prompts_have_the_tokens_that_are_asked_for() -> None:
    job = long_job(2, 2, seed=1, tokens=40, count=lambda text: 11 + len(text))
    questions = [question for own in job.questions for question in own]
    assert [len(question) for question in questions] == [29] * 4
    assert len(set(questions)) == 4
    with pytest.raises(ValueError, match="longer than the template"):
        long_job(1, 1, seed=1, tokens=10, count=lambda text: 11 + len(text))


def seen(done: int, *refused_seconds: float, wrong: tuple[str, ...] = ()) -> dict[str, object]:
    """A turn of two seconds; an answer costs the front end a hundredth of a second, a refusal a thousandth."""
    refused = [(0.1, seconds) for seconds in refused_seconds]
    ends = {"sent": done + len(refused), "done": done, "refused": refused, "wrong": list(wrong)}
    return {**ends, "seconds": 2.0, "cpu": done / 100 + len(refused) / 1000}


@pytest.mark.parametrize(
    ("answered_calls", "refused_seconds", "holds"), [(17, 0.1, True), (16, 0.1, False), (17, 0.11, False)]
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
    assert overload.to_dict()["wrong"] == ["14", "13"]


def test_what_telemetry_costs_is_compared_round_by_round() -> None:
    rounds = {("against", 1.0): [100.0, 900.0, 200.0], ("this", 1.0): [300.0, 1800.0, 400.0]}
    left = {key: iter(costs) for key, costs in rounds.items()}

    def measure(side: str, ratio: float) -> telemetry_calls.CallCost:
        cost = next(left[side, ratio]) if ratio == 1.0 else 10.0
        return {telemetry_calls.LOOP: cost, telemetry_calls.EXPORT: 0.0}

    rows = telemetry_calls.compare(3, measure, ["against", "this"])
    told = [(row["side"], row["sampling_ratio"], row[telemetry_calls.LOOP], row["to_first"]) for row in rows]
    assert told == [
        ("against", 1.0, 200, 1.0),
        ("against", 0.05, 10, 1.0),
        ("this", 1.0, 400, 2.0),
        ("this", 0.05, 10, 1.0),
    ]
