"""The report as Markdown: the same words and tables; plots are in the HTML."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.pilot.document import Document, Section, Table
from penstock.pilot.flag import State


def render(document: Document, html_name: str) -> str:
    """`html_name`: the file with the plots, beside this one."""
    return "\n".join(_lines(document, html_name)) + "\n"


def _lines(document: Document, html_name: str) -> Iterator[str]:
    yield from (f"# {document.title}", "", document.subtitle, "", f"The plots are in [{html_name}]({html_name}).", "")
    yield from _table(
        Table("", ("", "", ""), [(tile.label, f"**{tile.value}**", tile.note) for tile in document.tiles])
    )
    for sentence in document.summary:
        yield from (sentence, "")
    yield from ("## Red flags", "")
    raised = [flag for flag in document.flags if flag.state is State.RAISED]
    for flag in raised:
        evidence = flag.evidence[:1].upper() + flag.evidence[1:]
        yield f"- **{flag.title}.** {evidence}. *{flag.advice}*"
    if not raised:
        yield "None was raised."
    yield ""
    for section in document.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    for paragraph in section.text:
        yield from (paragraph, "")
    for table in section.tables:
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"{table.title}:", "")
    yield "| " + " | ".join(map(_cell, table.columns)) + " |"
    yield "|" + "---|" * len(table.columns)
    for row in table.rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
