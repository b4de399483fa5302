"""Load the table of devices: memory, bandwidth, arithmetic, price per hour, and the sources."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from penstock.errors import ConfigError

SHIPPED = Path(__file__).parent / "devices.toml"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device at its peak.

    `fp8_tflops` is None for a device without FP8 units, which converts FP8 weights; `fp4_tflops` likewise. The
    engine runs on `software`, which chooses the speed model's constants; a CPU has no such choice.
    """

    key: str
    name: str
    memory_gb: float
    bandwidth_gb_per_second: float
    bf16_tflops: float
    source: str
    read: str
    link_gb_per_second: float
    kind: Literal["gpu", "cpu"] = "gpu"
    software: Literal["cuda", "rocm"] = "cuda"
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    watts: float | None = None
    usd_per_hour: float | None = None
    reads_fp8_cache: bool = True
    price_source: str = ""
    memory_source: str = ""

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the device in bytes."""
        return int(self.memory_gb * 1e9)

    def flops(self, fp8: bool, fp4: bool = False) -> float:
        """Return the operations per second."""
        if fp4 and self.fp4_tflops:
            return 1e12 * self.fp4_tflops
        return 1e12 * (self.fp8_tflops if (fp8 or fp4) and self.fp8_tflops else self.bf16_tflops)


def load_devices(own: Path | None = None) -> dict[str, DeviceSpec]:
    """Return the devices by key. Those of `own` replace or join the shipped ones.

    Raises `ConfigError` with the file and the entry.
    """
    found = _read(SHIPPED)
    return found | _read(own) if own else found


def find_device(devices: dict[str, DeviceSpec], key: str) -> DeviceSpec:
    """Return the device. Raises `ConfigError` with the known devices."""
    if device := devices.get(key.lower()):
        return device
    raise ConfigError(f"no device {key!r}; there are {', '.join(devices)} (--devices FILE adds your own)")


def _read(path: Path) -> dict[str, DeviceSpec]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the devices in {path}: {error}") from None
    return {key.lower(): _device(path, key.lower(), entry) for key, entry in content.items()}


def _device(path: Path, key: str, entry: Any) -> DeviceSpec:
    known = {one.name: one for one in fields(DeviceSpec) if one.name != "key"}
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: [{key}] is no table")
    if unknown := sorted(set(entry) - set(known)):
        raise ConfigError(f"{path}: [{key}] has {unknown[0]}, which is none of {', '.join(known)}")
    if missing := sorted(name for name, one in known.items() if one.default is MISSING and name not in entry):
        raise ConfigError(f"{path}: [{key}] lacks {', '.join(missing)}")
    if entry.get("kind", "gpu") not in ("gpu", "cpu"):
        raise ConfigError(f"{path}: [{key}] kind is neither gpu nor cpu")
    if entry.get("software", "cuda") not in ("cuda", "rocm"):
        raise ConfigError(f"{path}: [{key}] software is neither cuda nor rocm")
    for name, value in entry.items():
        if wrong := _wrong(name, value):
            raise ConfigError(f"{path}: [{key}] {name} {wrong}")
    return DeviceSpec(key, **entry)


def _wrong(name: str, value: Any) -> str:
    """Return what is wrong with a value; empty where nothing is."""
    if name == "reads_fp8_cache":
        return "" if isinstance(value, bool) else "is neither true nor false"
    text = name in ("name", "source", "read", "kind", "software", "price_source", "memory_source")
    if isinstance(value, bool) or not isinstance(value, str if text else int | float):
        return f"is not a {'text' if text else 'number'}"
    return "must be above 0" if not isinstance(value, str) and value <= 0 else ""
