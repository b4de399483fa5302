"""Find the knee of a load curve, and the expected error of a figure below it and past it. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable

from penstock_bench.capacity.devices import DeviceSpec

FITTED_DEVICES = ("b200", "b300", "h100", "h200", "mi355x")
"""Devices with published runs in the half to which the speed model is fitted."""
_BELOW_FACTOR, _PAST_FACTOR = 1.3, math.sqrt(2)
"""Factor by which a figure may be too high or too low. Past the knee, the ends of a range differ by a factor of 2."""
_OTHER_ROCM_FACTOR = 1.6
"""The same below the knee, for a device on ROCm of which no run is fitted: what MI355X and MI300X show when each is
left out of the fit. Below the knee fixed times weigh most, which differ most between such devices."""


def knee(curve: Iterable[tuple[int, float]]) -> int | None:
    """Return the concurrency at which throughput over response time is greatest (Kleinrock's power).

    `curve` has (concurrency, throughput) in any unit. In a closed loop response time is concurrency over throughput, so
    that power is throughput squared over concurrency. None for an empty curve.
    """
    return max(curve, key=lambda one: one[1] ** 2 / one[0], default=(None, 0.0))[0]


def bounds(value: float, past: bool, device: DeviceSpec) -> tuple[float, float]:
    """Return the range in which the true figure of a device is expected."""
    factor = _PAST_FACTOR if past else _BELOW_FACTOR
    if not past and device.software == "rocm" and device.key not in FITTED_DEVICES:
        factor = _OTHER_ROCM_FACTOR
    return value / factor, value * factor
