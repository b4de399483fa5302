"""Draw plots as SVG text. Colours are the page's CSS variables, so that a plot is readable in light and dark mode.

Each mark has its figures in a `<title>`, which browsers show under the mouse pointer. No script is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from penstock_bench.pilot.axis import Axis, short
from penstock_bench.pilot.labels import Box, Labels, Place, box_of, width_of

_WIDTH, _HEIGHT = 540.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 34.0, 44.0
_ROW, _LABELS = 26.0, 178.0
_TICK_GAP = 38.0


@dataclass(frozen=True, slots=True)
class Series:
    """Named points with labels beside them. `style` is line, dash, or dots (no line)."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    style: str = "line"
    labels: Sequence[str] = ()
    below: bool = False
    """Preferred side of the labels."""
    spans: Sequence[tuple[float, float]] = ()
    """Vertical interval of each point."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A horizontal line across the plot, with its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `text` is at its end."""

    label: str
    value: float
    text: str
    colour: int


# Optional parts of a plot are keyword arguments, as in plotting libraries.
def lines(
    name: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    y_log: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """Return a plot of values over values."""
    points = [point for one in series for point in one.points]
    heights = [y for _, y in points] + [mark.at for mark in marks] + [high for one in series for _, high in one.spans]
    x = Axis.around([at for at, _ in points], _LEFT, _WIDTH - _RIGHT, log=x_log)
    y = Axis.around(heights, _HEIGHT - _BOTTOM, _TOP, log=y_log)
    parts = [_grid(x, y), _axis_titles(x_label, y_label), _legend(series)]
    labels = Labels(Box(_LEFT, _TOP - 14, _WIDTH - 2, _HEIGHT - _BOTTOM))
    # The title of the axis; the legend is above the area for labels.
    labels.taken.append(box_of(y_label, Place(8, 14, "start")))
    for one in series:
        labels.cover_points((x.at(px), y.at(py)) for px, py in one.points)
        if one.style != "dots":
            labels.avoid_line([(x.at(px), y.at(py)) for px, py in one.points])
    for mark in marks:
        labels.avoid_line([(x.begin, y.at(mark.at)), (x.end, y.at(mark.at))])
    parts += [_mark(mark, y.at(mark.at), labels) for mark in marks]
    parts += [_series(one, x, y, x_label, y_label) for one in series]
    parts += [_point_labels(one, x, y, labels) for one in series]
    return _svg(name, _HEIGHT, parts)


def _mark(mark: Mark, at: float, labels: Labels) -> str:
    """Return the line, and its text at an end that is free."""
    line = f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    right, left = _WIDTH - _RIGHT - 4, _LEFT + 4
    places = [Place(x, at + dy, anchor) for dy in (-5, 14) for x, anchor in ((right, "end"), (left, "start"))]
    boxes = [(one, box_of(mark.text, one)) for one in places]
    free = [one for one, box in boxes if not any(box.overlaps(taken) for taken in labels.taken)]
    place = (free or places)[0]
    labels.taken.append(box_of(mark.text, place))
    return line + _text(place.x, place.y, mark.text, "note", place.anchor)


def bars(name: str, groups: Sequence[Sequence[Bar]], *, log: bool = False) -> str:
    """Return horizontal bars in groups."""
    every = [bar for group in groups for bar in group]
    count = len(every)
    begin = max(_LABELS, max((width_of(bar.label) for bar in every), default=0.0) + 16)
    end = _WIDTH - max(96.0, max((width_of(bar.text) for bar in every), default=0.0) + 12)
    height = count * _ROW + (len(groups) - 1) * 10 + 16
    x = Axis.around([bar.value for bar in every], begin, end, log=log)
    parts, top = [], 8.0
    for number, group in enumerate(groups):
        top += 10 if number else 0
        for bar in group:
            width = max(1.5, x.at(bar.value) - begin) if bar.value > 0 else 0.0
            parts.append(_text(begin - 8, top + 16, bar.label, "label", "end"))
            parts.append(
                f'<rect class="c{bar.colour}" x="{begin:.1f}" y="{top + 4:.1f}" width="{width:.1f}"'
                f' height="{_ROW - 8}" rx="2">'
                f"<title>{escape(bar.label)}: {escape(bar.text)}</title></rect>"
            )
            parts.append(_text(begin + width + 6, top + 16, bar.text, "label"))
            top += _ROW
    return _svg(name, height, parts)


def heat(name: str, rows: Sequence[tuple[str, Sequence[float]]], most: float) -> str:
    """Return cells by row, each a multiple of its row's mean; `most` has the full colour."""
    cells = max(len(values) for _, values in rows)
    width = (_WIDTH - _LABELS / 2 - _RIGHT) / cells
    side = min(28.0, max(9.0, 360 / len(rows)))
    parts = []
    for number, (label, values) in enumerate(rows):
        top = 8 + number * side
        if side >= 11 or number % 4 == 0:
            parts.append(_text(_LABELS / 2 - 8, top + side / 2 + 4, label, "label", "end"))
        for place, value in enumerate(values):
            strength = min(1.0, value / most)
            parts.append(
                f'<rect class="heat" style="fill-opacity:{strength:.3f}" x="{_LABELS / 2 + place * width:.1f}"'
                f' y="{top:.1f}" width="{max(1.0, width - 1):.1f}" height="{side - 1:.1f}">'
                f"<title>{escape(label)}: {value:.2f} times the mean</title></rect>"
            )
            if width > 34 and side > 18:
                side_class = "heat-text strong" if strength > 0.55 else "heat-text"
                parts.append(
                    _text(_LABELS / 2 + (place + 0.5) * width, top + side / 2 + 4, f"{value:.2f}", side_class, "middle")
                )
    return _svg(name, 16 + len(rows) * side, parts)


def _svg(name: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{x.begin}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(x.begin - 8, at + 4, short(tick), "tick", "end"))
    last = -1e9
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.end}" y2="{y.begin}"/>')
        if at - last > _TICK_GAP:
            parts.append(_text(at, y.begin + 16, short(tick), "tick", "middle"))
            last = at
    return "".join(parts)


def _axis_titles(x_label: str, y_label: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return _text(middle, _HEIGHT - 8, x_label, "axis", "middle") + _text(8, 14, y_label, "axis")


def _legend(series: Sequence[Series]) -> str:
    """Return the legend above the plot, which a single series does not need."""
    named = [one for one in series if one.name]
    if len(named) < 2:
        return ""
    parts, right = [], _WIDTH - _RIGHT
    for one in reversed(named):
        right -= width_of(one.name)
        parts.append(_text(right, 14, one.name, "label"))
        dash = ' stroke-dasharray="4 3"' if one.style == "dash" else ""
        if one.style == "dots":
            parts.append(f'<circle class="c{one.colour}" cx="{right - 12:.1f}" cy="10" r="4"/>')
        else:
            parts.append(
                f'<line class="l{one.colour}"{dash} x1="{right - 22:.1f}" x2="{right - 4:.1f}" y1="10" y2="10"/>'
            )
        right -= 32
    return "".join(parts)


def _series(one: Series, x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    places = [(x.at(px), y.at(py)) for px, py in one.points]
    parts = []
    if one.style != "dots" and len(places) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dash = ' stroke-dasharray="5 4"' if one.style == "dash" else ""
        parts.append(f'<polyline class="l{one.colour}"{dash} points="{path}"/>')
    for (low, high), (px, _) in zip(one.spans, places, strict=False):
        parts.append(
            f'<line class="span l{one.colour}" x1="{px:.1f}" x2="{px:.1f}" y1="{y.at(low):.1f}" y2="{y.at(high):.1f}"/>'
        )
    radius = 3.6 if len(places) <= 40 else 0.0
    labels = [*one.labels, *[""] * (len(places) - len(one.labels))]
    for (px, py), (vx, vy), label in zip(places, one.points, labels, strict=True):
        if radius:
            told = f"{one.name} {label}: {x_label} {short(vx)}, {y_label} {short(vy)}"
            parts.append(
                f'<circle class="c{one.colour}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">'
                f"<title>{escape(told)}</title></circle>"
            )
    return "".join(parts)


def _point_labels(one: Series, x: Axis, y: Axis, labels: Labels) -> str:
    """Return the labels beside their points where they cover nothing. A label without space is left out."""
    parts = []
    for (px, py), label in zip(one.points, one.labels, strict=False):
        place = labels.place(label, x.at(px), y.at(py), one.below) if label else None
        if place is not None:
            parts.append(_text(place.x, place.y, label, "label", place.anchor))
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
