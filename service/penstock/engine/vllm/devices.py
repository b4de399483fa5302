"""Find the devices of this machine without starting any of them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.engine.vllm.features import DeviceKind, Devices

_CPUINFO = Path("/proc/cpuinfo")
_READS_FP8_CACHE = (8, 9)
"""Minimum compute capability: Triton has no e4m3 below, and FlashAttention 3 needs Hopper."""
_CUDA_HOME = "/usr/local/cuda"
_NEARLY = 0.97
"""Share of the earlier free memory that counts as free again."""
_CHECK_SECONDS = 0.1


def find_devices(kind: DeviceKind) -> Devices:
    """Return the CPU, or the GPUs by NVIDIA's management library, which vLLM's CUDA build brings. Start no context."""
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
        handles = _handles(pynvml)
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles]
        capability = min((tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles), default=None)
    finally:
        pynvml.nvmlShutdown()
    reads = capability is None or capability >= _READS_FP8_CACHE
    return Devices("gpu", max(1, len(memory)), min(memory, default=None), reads, capability, _compiles_cuda())


def free_bytes() -> tuple[int, ...]:
    """Return the free memory of each visible GPU; empty where there is no GPU or it cannot be read."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # no such module, or no driver
        return ()
    try:
        return tuple(pynvml.nvmlDeviceGetMemoryInfo(handle).free for handle in _handles(pynvml))
    finally:
        pynvml.nvmlShutdown()


def wait_until_free(before: Sequence[int], wait_seconds: float) -> bool:
    """Wait until each GPU has about as much free memory as `before`. Return False where it has not in time.

    The driver takes memory back some time after a process has ended: an engine that is started earlier finds too little
    memory and does not start.
    """
    until = time.monotonic() + wait_seconds
    while any(now < then * _NEARLY for now, then in zip(free_bytes(), before, strict=False)):
        if time.monotonic() > until:
            return False
        time.sleep(_CHECK_SECONDS)
    return True


def _handles(pynvml: Any) -> list[Any]:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [handles[index] for index in _visible(len(handles))]


def _compiles_cuda() -> bool:
    """Return whether FlashInfer is installed and can compile its kernels.

    It searches for nvcc here (flashinfer.jit.cpp_ext).
    """
    if importlib.util.find_spec("flashinfer") is None:
        return False
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = None if home else shutil.which("nvcc")
    nvcc = on_path or shutil.which("nvcc", path=str(Path(home or _CUDA_HOME) / "bin"))
    return nvcc is not None and shutil.which("ninja") is not None


def _has_avx512(cpuinfo: Path) -> bool:
    """Return whether the CPU has AVX-512, which vLLM needs to read an FP8 cache. True where it is not known."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = [line for line in lines if line.startswith("flags")]
    return not flags or "avx512f" in flags[0].split()


def _visible(count: int) -> list[int]:
    """Return the indices in CUDA_VISIBLE_DEVICES; all where it is unset or does not use indices."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    indices = [int(part) for part in named.split(",") if part.strip().isdigit()]
    return [index for index in indices if index < count] or list(range(count))
