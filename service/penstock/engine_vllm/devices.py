"""Which devices there are, found out without starting any of them."""

from __future__ import annotations

import importlib
import os
from typing import Any

from penstock.engine_vllm.features import Device, Devices


def find_devices(kind: Device) -> Devices:
    """GPUs by NVIDIA's management library, which vLLM's CUDA build brings; it starts no CUDA context."""
    if kind == "cpu":
        return Devices("cpu")
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


def _visible(count: int) -> list[int]:
    """The indices that CUDA_VISIBLE_DEVICES leaves; all of them where it is unset or names devices otherwise."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    indices = [int(part) for part in named.split(",") if part.strip().isdigit()]
    return [index for index in indices if index < count] or list(range(count))
