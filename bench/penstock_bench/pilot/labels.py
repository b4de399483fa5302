"""Place the labels of a plot so that none overlaps another. No I/O."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LINE = 13.0
"""Height of a line at the plots' font size."""
_SMALL, _CAPITAL = 6.4, 8.4
"""Approximate widths of letters."""
_GAP = 7.0
_RADIUS = 4.0
_SAMPLE = 3.0
"""Distance between two places of a line that a label keeps off."""
_FARTHEST = 4
"""Number of lines by which a label may move up or down from its point."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether two rectangles overlap; touching edges do not."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """Return whether no part of it is outside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Anchor of a text: its baseline, and `start` or `end`."""

    x: float
    y: float
    anchor: str


def width_of(text: str) -> float:
    """Return the approximate width of a text."""
    return sum(_CAPITAL if letter.isupper() else _SMALL for letter in text)


def box_of(text: str, place: Place) -> Box:
    """Return the rectangle that a text covers."""
    width = width_of(text)
    left = place.x if place.anchor == "start" else place.x - width
    return Box(left, place.y - LINE + 3, left + width, place.y + 3)


@dataclass(slots=True)
class Labels:
    """Finds places inside `plot`. `taken` are the covered rectangles: labels so far, points, and other texts.

    A label covers one of `lines` only if no other place is free.
    """

    plot: Box
    taken: list[Box] = field(default_factory=list)
    lines: list[Box] = field(default_factory=list)

    def cover_points(self, points: Iterable[tuple[float, float]]) -> None:
        """Keep labels off the points."""
        self.taken += [Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points]

    def avoid_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep labels off a line through the points, where there is another free place."""
        for (x, y), (to_x, to_y) in itertools.pairwise(points):
            count = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / _SAMPLE))
            along = ((x + (to_x - x) * n / count, y + (to_y - y) * n / count) for n in range(count + 1))
            self.lines += [Box(at_x - 1, at_y - 1, at_x + 1, at_y + 1) for at_x, at_y in along]

    def place(self, text: str, x: float, y: float, below: bool) -> Place | None:
        """Return a free place near a point, on the wanted side if there is one. None: there is no room."""
        for avoided in ([*self.taken, *self.lines], self.taken):
            for place in _candidates(x, y, below):
                box = box_of(text, place)
                if box.inside(self.plot) and not any(box.overlaps(other) for other in avoided):
                    self.taken.append(box)
                    return place
        return None


def _candidates(x: float, y: float, below: bool) -> Iterable[Place]:
    for lines in range(_FARTHEST):
        above, under = y - _GAP - lines * LINE, y + _GAP + 8 + lines * LINE
        for at in (under, above) if below else (above, under):
            yield Place(x + _GAP, at, "start")
            yield Place(x - _GAP, at, "end")
