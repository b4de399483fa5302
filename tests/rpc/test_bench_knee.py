"""`penstock bench knee` and `penstock bench compare` as users run them, on a service with the scripted engine."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from penstock_bench.load import intervals
from typer.testing import CliRunner, Result

from tests.rpc.scripted_service import scripted_service

STEP_SECONDS, TOKENS, SLOTS = 0.002, 20, 2
REPLIES = [{"answer": "a" * (TOKENS - 1), "step_seconds": STEP_SECONDS}]
ROOM = {"admission.max_running_sequences": f"{SLOTS}", "admission.max_queued_calls": "10000"}
CAPACITY = SLOTS / (TOKENS * STEP_SECONDS)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted_service(tmp_path_factory.mktemp("serve"), REPLIES, ROOM) as address:
        yield address


def bench(target: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], env={"PENSTOCK_TARGET": target})


@pytest.fixture(scope="module")
def found(target: str) -> dict[str, Any]:
    """Two searches."""
    given = ("--calls", "50", "--until-end", "--tolerance", "0.3", "--max-points", "6", "--runs", "2")
    start = f"{CAPACITY / 2}"
    result = bench(target, "knee", *given, "--start", start, "--objective", "end-to-end=60", "--json", "-")
    assert result.exit_code == 0, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.mark.slow
def test_the_knee_of_a_service_is_found_below_what_its_steps_allow(found: dict[str, Any]) -> None:
    """The machine may be slower than the engine's steps, never faster."""
    search = found["searches"][0]
    assert 2 <= len(search["points"]) <= 6
    assert all(point["calls"] >= 50 for point in search["points"])
    # The steps go on while a window of some 50 calls ends: one round of calls more or less.
    assert 0 < search["knee_calls_per_second"] <= CAPACITY * (1 + 2 * SLOTS / 50)
    assert search["knee_calls_per_second"] == max(point["served_calls_per_second"] for point in search["points"])
    assert search["knee_bracket"]["holds"] < search["knee_bracket"]["fails"]
    assert found["model"]["name"] == "scripted"
    assert found["idle_call_seconds"] >= (TOKENS - 1) * STEP_SECONDS


@pytest.mark.slow
def test_repeated_searches_have_an_interval_that_compare_reads(found: dict[str, Any], tmp_path: Path) -> None:
    interval = found["intervals"]["knee_calls_per_second"]
    assert interval["low"] <= found["knee_calls_per_second"] <= interval["high"]
    assert len(interval["samples"]) == len(found["searches"]) == 2
    file = tmp_path / "knee.json"
    file.write_text(json.dumps(found))
    result = CliRunner().invoke(app, ["bench", "compare", str(file), str(file), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["differences"]["knee_calls_per_second"]["verdict"] == "no difference shown"


@pytest.mark.slow
def test_ctrl_c_shows_the_points_so_far(target: str, tmp_path: Path) -> None:
    file = tmp_path / "knee.json"
    command = [sys.executable, "-m", "penstock", "bench", "knee", "--target", target, "--until-end", "--calls", "50"]
    process = subprocess.Popen(
        [*command, "--runs", "1000", "--json", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "point 2" not in (line := process.stderr.readline()):
        assert line, "ended by itself"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "knee: " in out
    assert len(json.loads(file.read_text())["searches"][0]["points"]) >= 1


@pytest.mark.slow
def test_a_workload_that_never_ends_well_is_told(target: str) -> None:
    result = bench(target, "knee", "--until-end", "--deadline", "0.001", "--json", "-")
    assert result.exit_code == 1
    told = json.loads(result.stdout)["error"]["message"]
    assert told.startswith("no call of this workload ends well on the idle service: deadline ")


@pytest.mark.slow
def test_runs_are_repeated_and_compared(target: str, tmp_path: Path) -> None:
    slow = [{"answer": "a" * (TOKENS - 1), "step_seconds": 10 * STEP_SECONDS}]
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    load = ("--concurrency", "2", "--seconds", "1", "--warm-up", "0", "--until-end", "--runs", "3")
    (tmp_path / "serve").mkdir()
    with scripted_service(tmp_path / "serve", slow, ROOM) as other:
        for address, file in zip((target, other), files, strict=True):
            result = bench(address, *load, "--json", str(file))
            assert result.exit_code == 0, result.output
            assert "3 repetitions" in result.output
    made = json.loads(files[0].read_text())
    assert len(made["runs"]) == 3
    assert made["intervals"]["end_to_end_mean"]["method"] == "repetitions"
    assert {one["calls"] > 0 for one in made["runs"]} == {True}
    given = [str(file) for file in files]
    told = CliRunner().invoke(app, ["bench", "compare", *given])
    assert told.exit_code == 0, told.output
    assert "no difference shown" in told.output or "worse" in told.output
    machine = CliRunner().invoke(app, ["bench", "compare", *given, "--fail-if-worse", "--json"])
    differences = json.loads(machine.stdout)
    assert machine.exit_code == (1 if differences["worse"] else 0)
    for one in differences["differences"].values():
        assert one["low"] <= one["second"] - one["first"] <= one["high"]


@pytest.mark.slow
def test_narrow_ends_at_the_most_runs_and_says_what_is_missing(target: str) -> None:
    load = ("--concurrency", "1", "--seconds", "0.5", "--warm-up", "0", "--until-end")
    result = bench(target, *load, "--narrow", "goodput-share=1", "--max-runs", "2")
    assert result.exit_code == 0, result.output
    assert "2 runs" in result.output
    assert "goodput share is still wider than wanted after 2 runs" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "4", "knee"), "give it behind `knee`"),
        (("--narrow", "speed=4"), "must be FIGURE=PERCENT"),
        (("--narrow", "goodput-share=0"), "must be FIGURE=PERCENT"),
        (("--runs", "2", "--save-trace", "x.jsonl"), "writes one run"),
        (("knee", "--calls", "1"), "50"),
        (("knee", "--objective", "speed=1"), "NAME=SECONDS"),
        (("knee", "--json", "nowhere/x.json"), "nowhere"),
        (("compare", "pyproject.toml", "pyproject.toml"), "must be a result of"),
        (("compare", "nowhere", "pyproject.toml"), "nowhere"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments], env={"PENSTOCK_TARGET": "127.0.0.1:1"})
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", " ").replace("│ ", "")


def test_what_scipy_is_needed_for_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(intervals, "available", lambda: False)
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"intervals": {}}))
    compared = CliRunner().invoke(app, ["bench", "compare", str(file), str(file)])
    assert (compared.exit_code, compared.stderr) == (1, f"penstock: {intervals.MISSING}\n")
    narrow = CliRunner().invoke(app, ["bench", "knee", "--target", "127.0.0.1:1", "--narrow", "5"])
    assert narrow.exit_code == 2


def test_an_infinite_or_endless_sample_is_refused(tmp_path: Path) -> None:
    for number, samples in enumerate(([math.inf, 1.0], [1.0] * 20_000)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps({"intervals": {"end_to_end_mean": {"method": "m", "samples": samples}}}))
        result = CliRunner().invoke(app, ["bench", "compare", str(file), str(file)])
        assert result.exit_code == 2, result.output
