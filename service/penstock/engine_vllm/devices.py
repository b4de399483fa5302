"""Which devices there are, found out without starting any of them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from penstock.engine_vllm.features import Device, Devices

_CPUINFO = Path("/proc/cpuinfo")


def find_devices(kind: Device) -> Devices:
    """GPUs by NVIDIA's management library, which vLLM's CUDA build brings; it starts no CUDA context."""
    if kind == "cpu":
        return Devices("cpu", reads_fp8_cache=_has_avx512(_CPUINFO))
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Devices("gpu")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Devices("gpu")
    try:
        memory = [
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).total
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    finally:
        pynvml.nvmlShutdown()
    visible = _visible(len(memory))
    memory = [memory[index] for index in visible] or memory
    return Devices("gpu", max(1, len(memory)), min(memory, default=None))


def _has_avx512(cpuinfo: Path) -> bool:
    """What vLLM's attention asks for before it reads an FP8 cache. Where nobody says, vLLM will."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = [line for line in lines if line.startswith("flags")]
    return not flags or "avx512f" in flags[0].split()


def _visible(count: int) -> list[int]:
    """The indices that CUDA_VISIBLE_DEVICES leaves; all of them where it is unset or names devices otherwise."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    indices = [int(part) for part in named.split(",") if part.strip().isdigit()]
    return [index for index in indices if index < count] or list(range(count))
