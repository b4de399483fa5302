"""Find the line of each key in a TOML text."""

from __future__ import annotations

import tomlkit
from tomlkit.container import Container
from tomlkit.items import AoT, Key, Table

KeyPath = tuple[str | int, ...]


def toml_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of each table and key, except for those inside arrays and inline tables.

    tomlkit keeps the text of every element in the order of the file, but no positions, so lines are counted here.
    Nothing is returned where tomlkit moves an element, as it does with tables of one array that have others between
    them.

    Raises:
        tomlkit.exceptions.TOMLKitError: `text` is not TOML.
    """
    document = tomlkit.parse(text)
    if document.as_string() != text:
        return {}
    counter = _Counter()
    counter.container(document, ())
    return counter.lines


class _Counter:
    """Walk a document in the order of its text. `at` is the line on which the next element starts."""

    def __init__(self) -> None:
        self.at = 1
        self.lines: dict[KeyPath, int] = {}

    def container(self, container: Container, path: KeyPath) -> None:
        for key, item in container.body:
            if key is None:  # white space or a comment
                self._pass(item.as_string())
            elif isinstance(item, AoT):
                self._array_of_tables(item, (*path, key.key))
            elif isinstance(item, Table):
                self._table(item, key, (*path, key.key))
            else:
                self._pass(item.trivia.indent)
                self.lines[*path, key.key] = self.at
                self._pass(item.as_string() + item.trivia.comment_ws + item.trivia.trail)

    def _array_of_tables(self, tables: AoT, path: KeyPath) -> None:
        self.lines.setdefault(path, self.at)
        for number, table in enumerate(tables.body):
            self._table(table, None, (*path, number))

    def _table(self, table: Table, key: Key | None, path: KeyPath) -> None:
        has_header = not table.is_super_table() and not (key is not None and key.is_dotted())
        if not has_header:
            self.lines.setdefault(path, self.at)
        else:
            self._pass(table.trivia.indent)
            self.lines[path] = self.at
            self._pass(table.trivia.trail)
        self.container(table.value, path)

    def _pass(self, text: str) -> None:
        self.at += text.count("\n")
