"""Test what a GPU runs in place of the CPU build's code: Model Runner V2's kernels, interpreted and compiled.

Run by Triton's interpreter they do what our rules say; for Hopper, Blackwell and Ampere they compile. No kernel has run
on a card: decision 21 says what is proven how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tooling import ROOT, TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.needs("triton"), pytest.mark.timeout(600)]

CASES = int(os.environ.get("KERNEL_CASES", "60"))


def program(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    paths = {"PYTHONPATH": str(TOOLS / "triton"), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", f"tests.simulated_gpu.{module}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | paths | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_interpreted_they_do_what_our_rules_say() -> None:
    """Budgets hold at each row of drafts, banned words are banned in drafts, and no draft is taken that the model would
    not have said."""
    found = program("kernels", "7", str(CASES), TRITON_INTERPRET="1")
    assert {name: check["wrong"] for name, check in found.items()} == {name: [] for name in found}
    assert found["budget"]["rows"] > 20 * CASES
    assert found["bad_words"]["rows"] > 2 * CASES
    assert found["rejection"]["rows"] > 2 * CASES
    assert found["spread"]["rows"] == 400


def test_they_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    found = program("compile", "80", "90", "100", TRITON_CACHE_DIR=str(tmp_path))
    assert set(found) == {
        "_update_committed_marker_cache_kernel",
        "_thinking_budget_kernel",
        "_bad_words_kernel",
        "_compute_local_logits_stats_kernel",
        "_rejection_kernel",
        "_resample_kernel",
        "_insert_resampled_kernel",
    }
    for name, sizes in found.items():
        assert sorted(sizes) == ["100", "80", "90"], name
        assert all(size > 1000 for size in sizes.values()), name
