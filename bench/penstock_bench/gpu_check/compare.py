"""Run `bench.compare` of a checkout: AsyncLLM and `vllm serve` beside Penstock, on the same arguments."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock_bench.gpu_check.plan import CheckPlan
from penstock_bench.gpu_check.results import Comparison

_ROOT = Path(__file__).resolve().parents[3]
_SECONDS = 3600.0


class NotCompared(Exception):
    """Report in one line why there is no comparison."""


def compare(plan: CheckPlan, model: str) -> Comparison:
    """Return the comparison at the plan's numbers of streams. Raises NotCompared."""
    if model or plan.settings:
        raise NotCompared(
            "bench.compare measures the small model with default settings, and --model or --set was given"
        )
    if not (_ROOT / "bench/compare.py").exists():
        raise NotCompared("bench.compare is part of a checkout, and penstock-bench is installed without one")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "compare.json"
        streams = ",".join(map(str, plan.streams))
        command = [sys.executable, "-m", "bench.compare", f"--streams={streams}", f"--rounds={plan.compare_rounds}"]
        command += ["--no-trace", f"--json={file}"]
        try:
            done = subprocess.run(
                command,
                cwd=_ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise NotCompared(f"bench.compare did not end within {_SECONDS:g} s") from None
        if done.returncode or not file.exists():
            last = (done.stderr.strip() or "no output").splitlines()[-1]
            raise NotCompared(f"bench.compare failed with exit status {done.returncode}: {last}")
        return comparison_of(json.loads(file.read_text(encoding="utf-8")))


def comparison_of(result: dict[str, object]) -> Comparison:
    """Return the part of bench.compare's JSON that is reported."""
    about, results, labels = result["about"], result["results"], result["labels"]
    assert isinstance(about, dict)
    assert isinstance(results, dict)
    assert isinstance(labels, dict)
    rates = {name: {int(n): row["tokens_per_second"] for n, row in by.items()} for name, by in results.items()}
    return Comparison(labels=labels, tokens_per_second=rates, notes=tuple(about["notes"]))
