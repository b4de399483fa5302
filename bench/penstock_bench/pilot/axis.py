"""Compute scales and ticks of a plot. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale that maps [low, high] to [begin, end] in the plot's units."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], begin: float, end: float, *, log: bool = False, zero: bool = True) -> Axis:
        """Return an axis for the values, with round ends. A log axis ignores values that are not above 0."""
        given = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        if not given:
            given = [1.0]
        low, high = min(given), max(given)
        if log:
            return cls(_round_down(low), _round_up(high if high > low else low * 2), begin, end, log=True)
        low = min(0.0, low) if zero else low
        if high <= low:
            high = low + 1.0
        step = _step(high - low)
        return cls(math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step, begin, end)

    def at(self, value: float) -> float:
        """Return the position of a value; values outside are on the edge."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return the values at which the axis has ticks."""
        if not self.log:
            step = _step(self.high - self.low)
            count = round((self.high - self.low) / step)
            return [self.low + n * step for n in range(count + 1)]
        decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
        wide = math.log10(self.high / self.low) > 3
        found = [unit * 10.0**decade for decade in decades for unit in ((1,) if wide else (1, 2, 5))]
        return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def _step(span: float) -> float:
    """Return a round step, so that about four ticks fit."""
    rough = span / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(step * unit for step in _STEPS if step * unit >= rough * (1 - 1e-9))


def _round_down(value: float) -> float:
    unit = 10.0 ** math.floor(math.log10(value))
    return max(step * unit for step in (1, 2, 5) if step * unit <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    unit = 10.0 ** math.floor(math.log10(value))
    return min(step * unit for step in (1, 2, 5, 10) if step * unit >= value * (1 - 1e-9))


def short(value: float) -> str:
    """Return a short text of a number, such as 1.2k, 35 or 0.004."""
    if value == 0:
        return "0"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            unit = 1e3 if letter == "k" else limit
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
