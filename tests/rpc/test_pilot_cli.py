"""`penstock pilot` against a real service with the scripted engine, in seconds."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from penstock.cli import app
from penstock_bench.pilot.cost import operating_point
from penstock_bench.pilot.results import Result, read
from penstock_bench.pilot.scenario import QUICK
from typer.testing import CliRunner

from bench.machine import free_port
from tests.rpc.scripted_service import scripted_service

pytestmark = pytest.mark.slow
REPLIES = [{"thought": "t" * 12, "answer": "a" * 400, "chunk_tokens": 4, "step_seconds": 0.004}]
SHORT = ("--quick", "--seconds", "0.5", "--soak-seconds", "1", "--concurrency", "1,3", "--context", "300,900",
         "--knee-points", "3")  # fmt: skip
ASKED = ("--budgets", "0,4,-1", "--questions", "6")


@dataclass(frozen=True)
class Served:
    target: str
    metrics: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    settings = {"telemetry.prometheus_listen": f"127.0.0.1:{port}"}
    with scripted_service(tmp_path_factory.mktemp("serve"), REPLIES, settings) as address:
        yield Served(address, f"http://127.0.0.1:{port}/metrics")


def calls_of(served: Served) -> float:
    """Generations that the service has ended."""
    with urllib.request.urlopen(served.metrics, timeout=60) as page:
        found = re.findall(r"^penstock_thoughts_total\S* (\S+)$", page.read().decode(), re.MULTILINE)
    return sum(map(float, found))


def wait_for_calls(served: Served, least: float) -> None:
    end = time.monotonic() + 120
    while calls_of(served) < least:
        assert time.monotonic() < end, calls_of(served)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def folder(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what one pilot wrote."""
    out = tmp_path_factory.mktemp("pilot") / "out"
    prices = ("--gpu-hour-usd", "2", "--hosted-input-usd", "0.4", "--hosted-output-usd", "2.4")
    command = [
        "pilot",
        "--target",
        served.target,
        "--metrics",
        served.metrics,
        "--out",
        str(out),
        *SHORT,
        *ASKED,
        *prices,
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Throughput" in done.stdout
    assert "soak at 60% of the peak rate" in done.stderr
    return out


@pytest.fixture(scope="module")
def made(folder: Path) -> Result:
    return read(folder / "pilot.json")


def test_the_knee_is_searched(made: Result) -> None:
    assert made.knee is not None
    assert 1 <= len(made.knee.points) <= 3
    for point in made.knee.points:
        assert point.calls >= 50
        assert point.calls_per_second > 0
    # The whole machine is seen beside the service's own processes.
    if made.processes_not_seen is None:
        assert all(stage.other_cores is not None and stage.other_cores >= 0 for stage in made.stages)


def test_the_whole_sequence_is_run(made: Result) -> None:
    kinds = [stage.kind for stage in made.stages]
    expected = {"concurrency": 2, "context": 2, "prefix": 2, "rate": 2, "burst": 1, "soak": 1}
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == expected
    assert made.complete
    assert made.answers_complete
    assert all(stage.calls and stage.outcomes == {"ok": stage.calls} for stage in made.stages)
    assert not any(stage.interrupted for stage in made.stages)


def test_callers_are_as_many_as_asked_and_points_say_so(made: Result) -> None:
    one, three = made.of("concurrency")
    assert (one.concurrency, three.concurrency) == (1, 3)
    assert three.mean_running > 2 * one.mean_running > 1
    assert three.mean_output_tokens == 48
    assert [point.concurrency for point in made.points] == [1, 3, 4, 4]
    assert made.points[0].context_tokens == pytest.approx(152, rel=0.05)
    assert made.points[-1].context_tokens == pytest.approx(900, rel=0.05)


def test_budgets_hold_and_are_told_apart(made: Result) -> None:
    thought = {one.name: one.mean_thought_tokens for one in made.answers}
    assert thought["THINKING 0"] == thought["FAST"] == 0
    assert thought["THINKING 4"] == 4
    assert thought["THINKING unlimited"] == 12
    assert all(one.over_budget == 0 for one in made.answers)
    assert {one.deadline_seconds for one in made.answers} == {None, 2.0}


def test_what_can_be_seen_is_seen_and_the_rest_is_said(made: Result) -> None:
    assert made.metrics_not_seen is None
    assert made.capacity_sequences == 1024
    assert all(stage.engine is not None for stage in made.stages)
    assert made.experts is None
    assert made.experts_not_seen
    if made.processes_not_seen is None:
        assert all(stage.memory_gib["front end"] > 0.01 for stage in made.stages)
    assert made.prices.hosted_output == 2.4


def test_bursts_and_soak_keep_what_happened_second_by_second(made: Result) -> None:
    assert made.of("burst")[0].rate is not None
    assert len(made.of("soak")[0].tokens_by_second) >= 1


def test_the_report_says_what_the_result_says(folder: Path, made: Result) -> None:
    page, text = (folder / "pilot.html").read_text(), (folder / "pilot.md").read_text()
    assert page.count("<svg") >= 10
    point = operating_point(made) or made.of("concurrency")[0]
    tokens = f"{point.output_tokens_per_second:,.0f} tok/s"
    assert tokens in page
    assert tokens in text


def test_a_result_is_written_again_at_another_price(folder: Path, tmp_path: Path) -> None:
    result = str(folder / "pilot.json")
    done = CliRunner().invoke(
        app, ["pilot", "--report", result, "--out", str(tmp_path), "--gpu-hour-usd", "4", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["prices"]["hour"] == 4.0
    assert "at $4.00 an hour" in (tmp_path / "pilot.html").read_text()


def test_ctrl_c_writes_what_there_is(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "penstock", "pilot", "--target", served.target, "--out", str(out), "--quick"]
    before = calls_of(served)
    process = subprocess.Popen([*command, "--seconds", "600"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "1 caller ..." in process.stderr.readline()
    wait_for_calls(served, before + 1)
    time.sleep(QUICK.warm_up_seconds)  # which began before the first call
    wait_for_calls(served, calls_of(served) + 10)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    made = read(out / "pilot.json")
    assert not made.complete
    (stage,) = made.stages
    assert stage.interrupted
    assert stage.outcomes == {"ok": stage.calls}
    assert stage.calls > 3
    assert "interrupted: partial results" in (out / "pilot.html").read_text()


def test_questions_that_are_refused_do_not_end_the_pilot(tmp_path: Path) -> None:
    short = ("--quick", "--seconds", "1", "--soak-seconds", "2", "--concurrency", "1", "--context", "300")
    with scripted_service(tmp_path, REPLIES, {"limits.max_output_tokens": "64"}) as target:
        done = CliRunner().invoke(app, ["pilot", "--target", target, "--out", str(tmp_path / "out"), *short])
    assert done.exit_code == 0, done.output
    made = read(tmp_path / "out" / "pilot.json")
    assert made.complete
    assert made.of("soak")
    assert not made.answers
    assert "refuses to answer" in made.questions
    assert "refuses to answer" in (tmp_path / "out" / "pilot.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", "1,x"),
        ("--context", ""),
        ("--budgets", "-2"),
        ("--objective", "speed=1"),
        ("--out", "nowhere/out"),
        ("--report", "pyproject.toml"),
        ("--seconds", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["pilot", "--target", "127.0.0.1:1", *arguments])
    assert done.exit_code == 2, done.output


def test_nobody_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["pilot", "--target", "127.0.0.1:1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr == "penstock: nothing listens at 127.0.0.1:1: start a service with `penstock serve`\n"
    assert not (tmp_path / "out").exists()


def test_metrics_that_are_not_there_are_wrong_usage(served: Served, tmp_path: Path) -> None:
    arguments = ["--metrics", "http://127.0.0.1:1/metrics", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["pilot", "--target", served.target, *arguments])
    assert done.exit_code == 2, done.output
    assert "127.0.0.1:1" in done.output
