"""The report as one HTML file: no script, no font, nothing from elsewhere; its content security policy says so, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from penstock.pilot.document import Document, Figure, Section, Table, Tile
from penstock.pilot.flag import Flag, State

_STYLE = Path(__file__).with_name("report.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(document: Document) -> str:
    """The whole page."""
    return "\n".join(_page(document)) + "\n"


def _page(document: Document) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{escape(document.title)}</title>"
    yield f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>"
    yield f"<header><h1>{escape(document.title)}</h1><p>{escape(document.subtitle)}</p></header>"
    yield '<section id="summary"><div class="tiles">'
    yield from map(_tile, document.tiles)
    yield "</div>"
    yield from (f'<p class="said">{escape(sentence)}</p>' for sentence in document.summary)
    yield "</section>"
    yield from _flags(document)
    yield (
        '<nav aria-label="Sections">'
        + " ".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in document.sections)
        + "</nav>"
    )
    for section in document.sections:
        yield from _section(section)
    yield "</main>\n</body>\n</html>"


def _words(text: str) -> str:
    """Escaped, with `code` as such."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><div class="name">{escape(tile.label)}</div><div class="value">{escape(tile.value)}</div>'
        f'<div class="note">{escape(tile.note)}</div></div>'
    )


def _flags(document: Document) -> Iterator[str]:
    raised = [flag for flag in document.flags if flag.state is State.RAISED]
    yield f'<section id="flags"><h2>Red flags</h2><div class="flags" data-raised="{len(raised)}">'
    yield from map(_flag, raised)
    yield "</div>"
    if not raised:
        yield '<p class="fine">None was raised.</p>'
    unseen = [flag.title.lower() for flag in document.flags if flag.state is State.UNSEEN]
    if unseen:
        yield f'<p class="note">Not observed, so neither raised nor clear: {escape("; ".join(unseen))}.</p>'
    yield "</section>"


def _flag(flag: Flag) -> str:
    evidence = flag.evidence[:1].upper() + flag.evidence[1:]
    return (
        f'<article class="flag" id="flag-{flag.id}"><h3>{escape(flag.title)}</h3><p>{_words(evidence)}.</p>'
        f'<p class="do"><b>What to do:</b> {_words(flag.advice)}</p></article>'
    )


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.id}"><h2>{escape(section.title)}</h2>'
    yield from (f"<p>{_words(paragraph)}</p>" for paragraph in section.text)
    if section.figures:
        yield '<div class="figures">'
        yield from map(_figure, section.figures)
        yield "</div>"
    yield from map(_table, section.tables)
    yield "</section>"


def _figure(figure: Figure) -> str:
    caption = f"<p>{escape(figure.caption)}</p>" if figure.caption else ""
    return f"<figure><figcaption><b>{escape(figure.title)}</b></figcaption>{figure.svg}{caption}</figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns) if any(table.columns) else ""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    kind = "words" if any(len(cell) > 48 for row in table.rows for cell in row) else "numbers"
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'{title}<div class="scroll"><table class="{kind}">{head}<tbody>{rows}</tbody></table></div>'
