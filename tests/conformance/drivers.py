"""Runs another language's driver over all cases at once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_SECONDS = 300


def run_driver(
    command: list[str], cwd: Path, targets: dict[str, str], cases: list[Any], scratch: Path
) -> dict[str, Any]:
    """Return what user code saw, by the case's name."""
    plan = scratch / "plan.json"
    plan.write_text(json.dumps({"targets": targets, "cases": cases}), encoding="utf-8")
    done = subprocess.run(
        [*command, str(plan)], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: one for one in seen}
