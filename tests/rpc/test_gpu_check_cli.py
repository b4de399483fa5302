"""`penstock gpu-check` end to end with the scripted engine: what cannot be had is said, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from penstock.cli import app
from penstock_bench.gpu_check.results import read
from penstock_bench.pilot.flag import State
from typer.testing import CliRunner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
REPLIES = [{"thought": "t" * 40, "answer": "a" * 400, "chunk_tokens": 4, "step_seconds": 0.002}]


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    (folder / "replies.json").write_text(json.dumps(REPLIES))
    model = ["--model", str(folder / "replies.json"), "--set", "engine.kind=scripted"]
    quick = ["--engine", "cpu", "--quick", "--streams", "1,2", "--seconds", "0.5", "--out", str(folder / "out")]
    done = CliRunner().invoke(app, ["gpu-check", *quick, *model, *arguments])
    return done.exit_code, done.output


def test_a_check_of_an_engine_that_cannot_be_killed(tmp_path: Path) -> None:
    """The scripted engine has no process of its own, and no expert load."""
    code, output = check(tmp_path)
    assert code == 1, output
    found = read(tmp_path / "out/gpu-check.json")
    assert found.complete
    assert [one.name for one in found.variants] == ["plain", "all features"]
    assert (found.engine, found.device) == ("other", "scripted")
    states = {one.id: one.state for one in found.checks}
    assert states["starts"] is State.RAISED  # it says why the kill failed
    assert "no process with the title of vLLM's engine core" in found.variants[1].error
    assert states["greedy"] is states["sampled"] is states["speed"] is State.CLEAR
    assert states["experts"] is states["beside"] is states["killed"] is State.UNSEEN
    assert [stage.concurrency for stage in found.variants[1].stages] == [1, 2]
    cut = [case for case in found.variants[0].budgets if case.outcome == "budget_reached"]
    assert cut
    assert all(case.thought_tokens == case.budget_tokens for case in cut)
    for name in ("gpu-check.html", "gpu-check.md", "plain.log", "all-features.log"):
        assert (tmp_path / "out" / name).stat().st_size > 0, name


def test_a_configuration_that_does_not_start_is_named_with_its_cause(tmp_path: Path) -> None:
    code, output = check(tmp_path, "--set", "engine.max_context_tokens=-1")
    assert code == 1, output
    found = read(tmp_path / "out/gpu-check.json")
    assert [bool(one.error) for one in found.variants] == [True, True]
    assert "max_context_tokens" in found.variants[0].error
    assert {one.state for one in found.checks if one.id != "starts"} == {State.UNSEEN}
