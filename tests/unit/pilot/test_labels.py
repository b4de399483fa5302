"""Labels of plots: none over another, none outside, and none at all rather than that."""

from __future__ import annotations

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree

import pytest
from penstock_bench.pilot.labels import Box, Labels, Place, box_of
from penstock_bench.pilot.svg import Mark, Series, lines

PLOT = Box(0, 0, 500, 250)


@pytest.mark.parametrize("seed", range(20))
def test_labels_cover_neither_each_other_nor_points_nor_the_edge(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.uniform(0, 500), rng.uniform(0, 250)) for _ in range(30)]
    labels = Labels(PLOT)
    labels.cover_points(points)
    covered = list(labels.taken)
    placed = [
        box_of(text, place)
        for (x, y), text in zip(points, map(str, range(0, 3000, 100)), strict=True)
        if (place := labels.place(text, x, y, below=rng.random() < 0.5)) is not None
    ]
    assert placed
    assert all(box.inside(PLOT) for box in placed)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(placed, 2))
    assert not any(box.overlaps(point) for box in placed for point in covered)


def test_a_label_without_room_is_left_out() -> None:
    labels = Labels(Box(0, 0, 30, 30))
    assert labels.place("much too long for this", 15, 15, below=False) is None
    assert labels.taken == []


def test_a_label_stands_on_the_wanted_side_where_that_is_free() -> None:
    assert Labels(PLOT).place("1", 100, 100, below=False) == Place(107, 93, "start")
    below = Labels(PLOT).place("1", 100, 100, below=True)
    assert below is not None
    assert below.y > 100


@pytest.mark.parametrize("slope", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_a_label_keeps_off_the_lines(slope: float) -> None:
    line = [(x, 125 + slope * (x - 250)) for x in (150.0, 250.0, 350.0)]
    labels = Labels(PLOT)
    labels.cover_points(line)
    labels.avoid_line(line)
    for text, (x, y) in zip(("16", "48", "128"), line, strict=True):
        place = labels.place(text, x, y, below=False)
        assert place is not None
        box = box_of(text, place)
        assert not any(
            box.left < at < box.right and box.top < 125 + slope * (at - 250) < box.bottom for at in range(150, 351)
        )


def test_a_label_covers_a_line_rather_than_to_be_left_out() -> None:
    labels = Labels(Box(0, 0, 60, 40))
    for height in range(0, 41, 2):
        labels.avoid_line([(0, height), (60, height)])
    assert labels.place("16", 20, 20, below=False) is not None


def test_points_that_lie_together_have_labels_apart() -> None:
    points = [(300.0 + n, 0.05 + n / 10_000) for n in range(5)]
    labels = ["16", "32", "48", "64", "128"]
    drawn = lines("plot", [Series("p50", points, 1, "line", labels)], "x", "y", marks=[Mark(0.05, "objective 0.05 s")])
    texts = ElementTree.fromstring(drawn).iter("text")
    boxes = [
        box_of(one.text or "", Place(float(one.attrib["x"]), float(one.attrib["y"]), one.attrib["text-anchor"]))
        for one in texts
        if re.fullmatch(r"16|32|48|64|128|objective .*", one.text or "")
    ]
    assert len(boxes) >= 4
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
