"""Configuration of the documentation's site (Sphinx). Built by `make docs` into build/docs."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/penstock/penstock/blob/main"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")

project = "Penstock"
author = "The Penstock authors"
extensions = ["myst_parser"]
exclude_patterns = ["results"]
nitpicky = True
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Penstock"
html_favicon = "icon.svg"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
linkcheck_ignore = [re.escape(REPOSITORY)]  # scripts/docs checks these against the files
linkcheck_timeout = 20


def link_to_repository(app: Sphinx, document: str, source: list[str]) -> None:
    """Turn links to files of the repository outside docs/, and to folders, into addresses of the repository.

    Warns where there is no such file; the build makes warnings errors.
    """
    folder = posixpath.dirname(f"docs/{document}")

    def address(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / path).exists():
            logging.getLogger(__name__).warning("%s links to %s, which does not exist", document, path)
        if path.startswith("docs/") and (ROOT / path).is_file():
            return link[0]
        return f"{REPOSITORY}/{path}{link[2] or ''}"

    source[0] = LINK.sub(address, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", link_to_repository)
    return {"parallel_read_safe": True}
