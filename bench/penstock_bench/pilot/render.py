"""Render a report as HTML or as Markdown, by the templates in `templates/`."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from penstock_bench.pilot.document import Document

_ENTITY = re.compile(r"&(?=#?\w+;)")


def to_html(document: Document) -> str:
    """Return the whole page. Each text of the document is escaped; only the plots are used as markup."""
    return _environment().get_template("report.html.jinja").render(document=document)


def to_markdown(document: Document, html_name: str) -> str:
    """Return the same words and tables as Markdown.

    Args:
        document: The report.
        html_name: Name of the file with the plots, which lies beside this one.
    """
    return _environment().get_template("report.md.jinja").render(document=document, html_name=html_name)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("penstock_bench.pilot"),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"with_code": _with_code, "markdown": _markdown, "markdown_cell": _markdown_cell}
    return made


def _with_code(text: str) -> Markup:
    """Escape `text`, then mark up the parts between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _markdown(text: str) -> str:
    """Keep `text` on one line and free of HTML, links and pictures: names of models and machines come from outside."""
    return _ENTITY.sub("&amp;", " ".join(text.splitlines())).replace("<", "&lt;").replace("[", "\\[")


def _markdown_cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")
