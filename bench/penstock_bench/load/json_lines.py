"""Read files of one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def read(path: Path, entry: Callable[[object], T], of_what: str, *, encoding: str = "utf-8") -> list[T]:
    """Return `entry` of each line that is not blank.

    Raises ValueError with the first line that is not JSON or that `entry` refuses with ValueError, and for a file
    without such lines (the message names `of_what`). Raises OSError if the file cannot be read.
    """
    found = []
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    found.append(entry(json.loads(line)))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no {of_what}")
    return found
