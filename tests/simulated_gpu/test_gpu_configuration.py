"""vLLM's own checks accept what we ask of it for every preset on every card, and choose the runner that we name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.simulated_gpu.configure import CARDS
from tests.tooling import ROOT, TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.needs("triton"), pytest.mark.timeout(900)]

PRESETS = sorted(path for path in (ROOT / "helm/penstock/presets").glob("*.yaml") if path.stem != "demo-cpu")

ALL_OFF = {"fp8_weights": "off", "fp8_kv_cache": "off", "mtp": "off", "images": "off"}


@cache
def cases() -> str:
    """All presets, and one start with everything on that a GPU can have, as `configure` takes them."""
    found = [
        {"name": "routing", "count": 2, "settings": {"routing": "on"}},
        {"name": "all-off", "count": 1, "settings": ALL_OFF},
        {"name": "qwen-made-fp8", "count": 1, "settings": {"model": "Qwen/Qwen3.5-35B-A3B", "images": "required"}},
    ]
    for path in PRESETS:
        values = yaml.safe_load(path.read_text())
        settings = values["config"]["engine"]
        nodes = {"leader_address": "127.0.0.1"} if settings.get("nodes", 1) > 1 else {}
        found.append({"name": path.stem, "count": values["gpu"]["perNode"], "settings": settings | nodes})
    return json.dumps(found)


_ALWAYS = ("H100", "A100")


@pytest.mark.parametrize(
    "card", [pytest.param(card, marks=() if card in _ALWAYS else pytest.mark.full) for card in CARDS]
)
def test_vllm_accepts_every_preset(card: str, tmp_path: Path) -> None:
    """Each as it is planned for this card. FP8 caches are off where attention cannot read them; the runner is V2."""
    other = os.environ.get("PENSTOCK_TEST_VLLM", "")  # a folder with another version (DEVELOPMENT.md)
    folders = os.pathsep.join(filter(None, [str(TOOLS / "triton"), other]))
    paths = {"PYTHONPATH": folders, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulated_gpu.configure", card, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | paths,
        input=cases(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"routing", "all-off", "qwen-made-fp8"} | {path.stem for path in PRESETS}
    places = {case["vllm"] for case in found.values() if "vllm" in case}
    assert {Path(place).parent == (Path(other) / "vllm").resolve() for place in places} == {bool(other)}
    reads_fp8 = CARDS[card][1] >= (8, 9)
    for name, case in found.items():
        if "does not fit" in case.get("refused_by_us", ""):
            assert card == "L40S", (name, case)
            continue
        assert "refused_by_us" not in case, (name, case)
        assert "refused_by_vllm" not in case, (name, case["refused_by_vllm"])
        assert case["runner"] == "V2", name
        assert case["profile"]["model_runner"][1] == "V2", name
        cache_on = reads_fp8 and name != "all-off"
        assert case["cache_dtype"] == ("fp8" if cache_on else "auto"), name
        assert case["profile"]["fp8_kv_cache"][0] is cache_on, name
        assert case["mamba_cache_mode"] == "align", name
        assert case["images"] is case["profile"]["images"][0] is (name != "all-off"), name
    assert found["qwen3.5-397b-a17b-fp8-1m"]["window"] == 1_010_000
    assert found["qwen3.5-397b-a17b-fp8-two-nodes"]["tensor"] == 8
