"""Run `bench.compare` of a checkout: AsyncLLM and `vllm serve` beside Penstock, on the same arguments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock_bench.gpu_check.plan import CheckPlan
from penstock_bench.gpu_check.results import Comparison

_ROOT = Path(__file__).resolve().parents[3]
_SECONDS, _STOP_SECONDS = 3600.0, 120.0


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
        log = Path(scratch) / "compare.log"
        status = run_to_its_end(command, log, _SECONDS)
        if status is None:
            raise NotCompared(f"bench.compare did not end within {_SECONDS:g} s")
        if status or not file.exists():
            said = log.read_text(encoding="utf-8", errors="replace").strip() or "no output"
            raise NotCompared(f"bench.compare failed with exit status {status}: {said.splitlines()[-1]}")
        return comparison_of(json.loads(file.read_text(encoding="utf-8")))


def run_to_its_end(command: list[str], log: Path, seconds: float) -> int | None:
    """Return the exit status of a command, and None where it takes longer. Nothing that it started outlives it.

    It has a process group of its own: what holds memory of the GPU are the engines that it starts.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=out, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it stops its servers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def comparison_of(result: dict[str, object]) -> Comparison:
    """Return the part of bench.compare's JSON that is reported."""
    about, results, labels = result["about"], result["results"], result["labels"]
    assert isinstance(about, dict)
    assert isinstance(results, dict)
    assert isinstance(labels, dict)
    rates = {name: {int(n): row["tokens_per_second"] for n, row in by.items()} for name, by in results.items()}
    return Comparison(labels=labels, tokens_per_second=rates, notes=tuple(about["notes"]))
