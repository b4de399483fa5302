"""Decide how often a load is repeated: a fixed number of times, or until the intervals of given figures are narrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from penstock_bench.load.intervals import HIGHER_IS_BETTER, Estimate

MIN_TO_STOP = 5
"""Smallest number of runs with an interval: after fewer, an interval is too often narrow by chance."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The rule: `runs` of the same load and, with `narrow`, more of them, up to `most`, until each interval is narrow.

    `narrow` is the largest half width of a figure's 95 % interval, as a share of the figure.
    """

    runs: int = 1
    most: int = 20
    narrow: Mapping[str, float] = field(default_factory=dict)

    def enough(self, done: int, found: Mapping[str, Estimate]) -> bool:
        """Return whether `runs` runs with these intervals are enough."""
        if not self.narrow:
            return done >= self.runs
        if done >= max(self.most, self.runs):
            return True
        widths = [found[name].relative_half_width if name in found else math.inf for name in self.narrow]
        return done >= max(self.runs, MIN_TO_STOP) and all(
            width <= limit for width, limit in zip(widths, self.narrow.values(), strict=True)
        )

    def missed(self, found: Mapping[str, Estimate]) -> list[str]:
        """Return the figures whose intervals are still wider than wanted."""
        return [
            name for name, limit in self.narrow.items() if name not in found or found[name].relative_half_width > limit
        ]


def parse_narrow(texts: Iterable[str]) -> dict[str, float]:
    """Return shares from options such as `end-to-end-p95=5` (percent). Raises ValueError."""
    given = {}
    for text in texts:
        name, _, value = text.partition("=")
        known = {figure.replace("_", "-"): figure for figure in HIGHER_IS_BETTER}
        try:
            percent = float(value)
        except ValueError:
            percent = math.nan
        if name not in known or not 0 < percent <= 100:
            raise ValueError(
                f"must be FIGURE=PERCENT with a percentage in (0, 100] and one of {', '.join(known)}, got {text!r}"
            )
        given[known[name]] = percent / 100
    return given
