"""Define the parts of a report, before it is rendered as HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock_bench.pilot.flag import Flag, State

_LONG_CELL = 48
"""Characters of the longest cell in a table of numbers; with a longer cell it is a table of words."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the summary."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot with its title."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The first column is text; `columns` and each row have the same length."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def has_long_cells(self) -> bool:
        """Return whether a cell is too long for a narrow table."""
        return any(len(cell) > _LONG_CELL for row in self.rows for cell in row)


@dataclass(frozen=True, slots=True)
class Section:
    """One section; `text` has its paragraphs."""

    id: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    summary: Sequence[str]
    flags: Sequence[Flag]
    sections: Sequence[Section] = field(default=())

    @property
    def raised(self) -> Sequence[Flag]:
        """Return the raised flags."""
        return [flag for flag in self.flags if flag.state is State.RAISED]

    @property
    def not_observed(self) -> Sequence[Flag]:
        """Return the flags that could not be checked."""
        return [flag for flag in self.flags if flag.state is State.UNSEEN]
