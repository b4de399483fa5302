"""Find the build of vLLM that this environment has, and on a GPU let several engines share its memory."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Literal

from penstock_bench.gpu_check.cards import NoGpu, find

ENGINES = 4
"""Engines that the tests run at the same time, at most: that of a package's fixture, and those that a test starts."""
USABLE = 0.9
"""Share of a GPU that all engines may use together: vLLM's own default for one."""
MIN_GIB = 4.0
"""GPU memory in GiB that an engine with the small model needs: weights, caches, CUDA graphs and the context."""
SHARE_VARIABLE = "PENSTOCK_ENGINE_GPU_MEMORY_UTILIZATION"


def worker_title() -> str:
    """Return a part of the title of the process that computes: on one GPU, vLLM has no process apart for its worker."""
    return "Worker" if installed() == "cpu" else "EngineCore"


def installed() -> Literal["cpu", "gpu"]:
    """Return the build that is installed, by the name of its distribution."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "cpu"
    return "gpu"


def share_of(memory_gib: float) -> float:
    """Return the share of a GPU for each engine. Raises NoGpu where the memory is too small for all of them."""
    share = USABLE / ENGINES
    if share * memory_gib < MIN_GIB:
        needed = f"{ENGINES * MIN_GIB / USABLE:.0f} GiB of GPU memory, for {ENGINES} engines at once"
        raise NoGpu(f"needed: {needed}; found: {memory_gib:g} GiB")
    return share


def share_the_gpu() -> None:
    """Make the share the default of `engine.gpu_memory_utilization`: here, and in services that tests start.

    Without it the first engine would take 90 % of the memory. Does nothing on the CPU build. Raises NoGpu.
    """
    if installed() == "cpu":
        return
    share = share_of(min(card.memory_gib for card in find()))
    os.environ.setdefault(SHARE_VARIABLE, f"{share:g}")
    set_default_share(float(os.environ[SHARE_VARIABLE]))


def set_default_share(share: float) -> None:
    """Change the default of the setting in this process."""
    from penstock.config.schema import Config, EngineSettings

    EngineSettings.model_fields["gpu_memory_utilization"].default = share
    EngineSettings.model_rebuild(force=True)
    Config.model_fields["engine"].default = EngineSettings()
    Config.model_rebuild(force=True)
