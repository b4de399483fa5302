"""A report before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.pilot.flag import Flag


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the summary."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Figure:
    title: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text; `columns` and each row are of the same length."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """`text`: paragraphs."""

    id: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    subtitle: str
    tiles: Sequence[Tile]
    summary: Sequence[str]
    flags: Sequence[Flag]
    sections: Sequence[Section] = field(default=())
