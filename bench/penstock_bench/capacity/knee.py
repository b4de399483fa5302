"""Find the knee of a load curve, and the expected error of a figure below it and past it. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable

BELOW_FACTOR, PAST_FACTOR = 1.3, math.sqrt(2)
"""Factor by which a figure may be too high or too low. Past the knee, the ends of a range differ by a factor of 2."""


def knee(curve: Iterable[tuple[int, float]]) -> int | None:
    """Return the concurrency at which throughput over response time is greatest (Kleinrock's power).

    `curve` has (concurrency, throughput) in any unit. In a closed loop response time is concurrency over throughput, so
    that power is throughput squared over concurrency. None for an empty curve.
    """
    return max(curve, key=lambda one: one[1] ** 2 / one[0], default=(None, 0.0))[0]


def bounds(value: float, past: bool) -> tuple[float, float]:
    """Return the range in which the true figure is expected."""
    factor = PAST_FACTOR if past else BELOW_FACTOR
    return value / factor, value * factor
