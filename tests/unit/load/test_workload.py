"""Test what a load is drawn from: mixes, arrival times, trace files."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest
from penstock_bench.load import trace
from penstock_bench.load.arrivals import ScheduledCall, bursts, drawn, poisson
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.workload import Lengths, Thinking, Work, Workload


def test_lengths_are_drawn_by_weight_from_ranges_with_both_ends() -> None:
    lengths = Lengths.parse("10-12@3, 100@1")
    rng = random.Random(0)
    drawn_lengths = Counter(lengths.draw(rng) for _ in range(4000))
    assert set(drawn_lengths) == {10, 11, 12, 100}
    assert 900 < drawn_lengths[100] < 1100
    assert lengths.longest == 100


def test_modes_are_drawn_by_weight_with_their_budgets() -> None:
    thinking = Thinking.parse("fast@1,thinking:64@2,thinking:-1@0,auto@1")
    rng = random.Random(0)
    found = Counter(thinking.draw(rng) for _ in range(4000))
    assert set(found) == {("fast", None), ("thinking", 64), ("auto", None)}
    assert 1900 < found["thinking", 64] < 2100


@pytest.mark.parametrize("text", ["", "0", "12-4", "8@x", "8@0", "many", "1e3", "-5"])
def test_a_mix_of_lengths_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a count|weight"):
        Lengths.parse(text)


@pytest.mark.parametrize("text", ["slow", "fast:", "thinking:-2", "thinking:x", ""])
def test_a_mix_of_modes_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"must have a weight|must be one of"):
        Thinking.parse(text)


def test_prefixes_are_named_and_the_rest_is_passed_on() -> None:
    workload = Workload(Lengths.parse("50"), None, Thinking.parse("auto"), 2, 20, deadline_seconds=3.0)
    works = [workload.draw(random.Random(seed)) for seed in range(20)]
    assert {work.prefix for work in works} == {"prefix 0", "prefix 1"}
    assert works[0] == Work(50, None, "auto", None, works[0].prefix, 20, 3.0)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_callers() -> None:
    times = list(itertools.islice(poisson(5.0, -10.0, random.Random(1)), 5000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert -10.0 <= times[0] < -8.0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    # Exponential gaps: the deviation is the mean.
    assert statistics.pstdev(gaps) == pytest.approx(0.2, rel=0.08)


def test_bursts_come_at_multiples_of_their_period() -> None:
    assert list(itertools.islice(bursts(2, 3.0, 0.0), 5)) == [0.0, 0.0, 3.0, 3.0, 6.0]
    assert list(itertools.islice(bursts(1, 4.0, -5.0), 3)) == [-4.0, 0.0, 4.0]


def test_arrivals_of_several_kinds_come_in_order_up_to_the_end() -> None:
    work = Work(1)
    found = list(drawn([iter([0.5, 1.5, 9.0]), bursts(2, 1.0, 0.0)], 2.0, lambda: work))
    assert [arrival.at_seconds for arrival in found] == [0.0, 0.0, 0.5, 1.0, 1.0, 1.5]


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    arrivals = [
        ScheduledCall(0.0, Work(12, 4, "thinking", 8, "p", 6, 2.5)),
        ScheduledCall(0.75, Work(1, prompt="What is 2 + 2?")),
    ]
    trace.write(tmp_path / "trace.jsonl", arrivals)
    assert trace.read(tmp_path / "trace.jsonl") == arrivals


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ([], "object"),
        ({"prompt_tokens": 5}, "at_seconds"),
        ({"at_seconds": -1, "prompt_tokens": 5}, "at_seconds"),
        ({"at_seconds": float("nan"), "prompt_tokens": 5}, "at_seconds"),
        ({"at_seconds": 0}, "prompt"),
        ({"at_seconds": 0, "prompt_tokens": True}, "prompt_tokens"),
        ({"at_seconds": 0, "prompt": 7}, "prompt"),
        ({"at_seconds": 0, "prompt_tokens": 5, "output_tokens": 0}, "output_tokens"),
        ({"at_seconds": 0, "prompt_tokens": 5, "mode": "slow"}, "mode"),
        ({"at_seconds": 0, "prompt_tokens": 5, "deadline_seconds": 0}, "deadline"),
        ({"at_seconds": 0, "prompt_tokens": 5, "colour": "red"}, "colour"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, entry: object, complaint: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(f'{{"at_seconds": 0, "prompt_tokens": 1}}\n{json.dumps(entry)}\n')
    with pytest.raises(ValueError, match=f"line 2: .*{complaint}"):
        trace.read(file)


@pytest.mark.parametrize(("text", "complaint"), [("\n", "no calls"), ("{", "line 1")])
def test_a_trace_without_calls(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        trace.read(tmp_path / "trace.jsonl")


def test_a_trace_does_not_go_back_in_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"at_seconds": 2, "prompt_tokens": 1}\n{"at_seconds": 1, "prompt_tokens": 1}\n')
    with pytest.raises(ValueError, match=r"line 2: .*fall"):
        trace.read(file)


def test_prompts_of_a_prefix_begin_alike_and_no_two_are_the_same() -> None:
    # As long as their letters, for a tokenizer of bytes.
    from penstock_bench.load import prompts as module

    prompts = Prompts({word: len(word) + 1.0 for word in module._WORDS}, 30.0, 10.0)
    rng = random.Random(0)
    one, two = (prompts.messages(Work(300, prefix="a", prefix_tokens=100), rng) for _ in range(2))
    other = prompts.messages(Work(300, prefix="b", prefix_tokens=100), rng)
    assert one[0] == two[0] != other[0]
    assert one[0][0] == "system"
    assert one[1] != two[1]
    length = 30 + 10 + sum(len(text) + 1 for _, text in one)
    assert length == pytest.approx(300, rel=0.05)
    assert prompts.messages(Work(1, prompt="as it stands"), rng) == [("user", "as it stands")]
