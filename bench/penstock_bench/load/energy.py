"""Measure the energy of this machine over a window with NVML (GPUs) and RAPL (CPU packages and memory).

Both count the whole device, including its other work. nvidia-ml-py, which the extra `energy` installs, reads NVML.
RAPL is read from Linux' powercap files, which only root may read on many systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_DOMAINS = ("package", "dram", "psys")
_JOULES_PER_MICROJOULE, _JOULES_PER_MILLIJOULE = 1e-6, 1e-3


@dataclass(frozen=True, slots=True)
class Counter:
    """A device's energy counter in joules. `wraps_at` is the value at which it starts again from 0; None: never."""

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None


@dataclass(slots=True)
class EnergyMeter:
    """Sums of the counters' growth. `missing` has the reason for each source that cannot be read."""

    counters: list[Counter]
    missing: dict[str, str]
    joules: dict[str, float] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Start a window and reset the sums."""
        self.joules, self._last = {}, {}
        self.sample()

    def sample(self) -> None:
        """Add the energy since the last sample. Call it more often than a counter wraps, which takes minutes."""
        for counter in list(self.counters):
            try:
                now = counter.read()
            except Exception as error:
                self.counters.remove(counter)
                self.joules.pop(counter.name, None)
                self.missing[counter.name] = f"{type(error).__name__} while it was read"
                continue
            before = self._last.get(counter.name, now)
            used = now - before
            if used < 0:  # a counter without a known range starts again at 0 when its driver does
                used += counter.wraps_at if counter.wraps_at is not None else before
            self.joules[counter.name] = self.joules.get(counter.name, 0.0) + used
            self._last[counter.name] = now

    @property
    def total_joules(self) -> float | None:
        """Return the energy of the GPUs and of the CPU packages with their memory; None where nothing reports it."""
        counted = [joules for name, joules in self.joules.items() if not name.startswith("psys")]
        return sum(counted) if counted else None


def find(powercap: Path = _POWERCAP) -> EnergyMeter:
    """Look for every counter that this process may read."""
    counters, missing = list[Counter](), dict[str, str]()
    for source, look in (("NVML", _gpus), ("RAPL", lambda: _rapl(powercap))):
        try:
            found = list(look())
        except Exception as error:
            missing[source] = _why(error)
            continue
        counters += found
        if not found:
            missing[source] = "there is no device with an energy counter"
    return EnergyMeter(counters, missing)


def _why(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "nvidia-ml-py is not installed; run `pip install 'penstock-bench[energy]'`"
    if isinstance(error, PermissionError):
        return f"only root may read {error.filename}"
    return str(error) or type(error).__name__


def _gpus() -> Iterable[Counter]:
    nvml = import_module("pynvml")
    nvml.nvmlInit()
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        read = _gpu_reader(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        read()  # older GPUs have no counter, and say so here
        yield Counter(f"GPU {index}", read)


def _gpu_reader(energy: Callable[[object], int], handle: object) -> Callable[[], float]:
    return lambda: energy(handle) * _JOULES_PER_MILLIJOULE


def _rapl(powercap: Path) -> Iterable[Counter]:
    for zone in sorted(powercap.glob("*rapl:*")):
        name = (zone / "name").read_text(encoding="ascii").strip()
        if not name.startswith(_DOMAINS):
            continue
        wraps = float((zone / "max_energy_range_uj").read_text(encoding="ascii")) * _JOULES_PER_MICROJOULE
        read = _rapl_reader(zone / "energy_uj")
        read()
        yield Counter(f"{name} ({zone.name})", read, wraps)


def _rapl_reader(file: Path) -> Callable[[], float]:
    return lambda: float(file.read_text(encoding="ascii")) * _JOULES_PER_MICROJOULE
