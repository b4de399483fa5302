"""`scripts/vllm-compare` tells what of another vLLM differs in what we use, without importing either."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.script_modules import ROOT

pytestmark = pytest.mark.slow
TRITON = "utils/cpu_triton_utils.py"
SHM = "distributed/device_communicators/shm_broadcast.py"
TOPK = "v1/sample/ops/topk_topp_sampler.py"
SCHEDULER = "v1/core/sched/scheduler.py"
OLD = {
    TRITON: 'def _expand_kernel_impl(a):\n    """Old words."""\n    return a\n',
    SHM: "from vllm.distributed.utils import sched_yield\nclass SpinCondition:\n    def wait(self): sched_yield()\n",
    TOPK: "def apply_top_k_only(logits, k):\n    return k.max()\n",
    SCHEDULER: "class Scheduler:\n    def schedule(self):\n        pad_spec_decode = True\n",
    "distributed/utils.py": "def sched_yield(): ...\n",
}
NEW = OLD | {
    TRITON: 'def _expand_kernel_impl(a):\n    """New words."""  # a comment\n    return a\n',
    SHM: "class SpinCondition:\n    pass\n",
    TOPK: "def apply_top_k_only(logits, k):\n    return k.amax()\nraise SystemExit('it was imported')\n",
}


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for above in path.relative_to(folder).parents:
            if above != Path():
                (folder / above / "__init__.py").touch()
    return folder


def compare(installed: Path, other: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/vllm-compare"), str(other), f"--installed={installed}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_what_is_gone_changed_and_the_same(tmp_path: Path) -> None:
    old, new = package(tmp_path / "old", OLD), package(tmp_path / "new", NEW)
    done = compare(old, new, "--diff")
    assert done.returncode == 1, done.stderr
    states = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert ("gone", "distributed.device_communicators.shm_broadcast.SpinCondition.wait") in states
    assert ("gone", "distributed.device_communicators.shm_broadcast.sched_yield") in states
    assert ("changed", "v1.sample.ops.topk_topp_sampler.apply_top_k_only") in states
    assert "+    return k.amax()" in done.stdout
    assert not any("_expand_kernel_impl" in name for _, name in states), "words of documentation are no change"
    assert not any("pad_spec_decode" in name for _, name in states), "a local name is looked for in the text"
    assert "service/penstock/engine/vllm/compat/waiting.py" in done.stdout
    assert "it was imported" not in done.stdout + done.stderr


def test_a_version_is_like_itself(tmp_path: Path) -> None:
    old = package(tmp_path / "old", OLD)
    done = compare(old, old)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("0 gone, 0 changed, ")


def test_a_folder_without_vllm_is_refused(tmp_path: Path) -> None:
    done = compare(tmp_path, tmp_path)
    assert done.returncode == 2
    assert "must have a package vllm, found none" in done.stderr
