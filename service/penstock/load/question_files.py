"""Files of questions for a load: JSON lines with `prompt` (or `question`) and `kind`; other keys are left alone."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.load.workload import Question

_MAX_KINDS = 100
"""Results are told by kind: more would be one for each question."""


def read(path: Path) -> tuple[Question, ...]:
    """Return all questions. Raises ValueError with the line that is wrong, OSError."""
    found = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    found.append(_question(json.loads(line)))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no questions")
    kinds = len({question.kind for question in found})
    if kinds > _MAX_KINDS:
        raise ValueError(f"{path}: {kinds} kinds of question, at most {_MAX_KINDS} are allowed")
    return tuple(found)


def _question(entry: object) -> Question:
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    prompt, kind = entry.get("prompt", entry.get("question")), entry.get("kind", "")
    if not isinstance(prompt, str) or not prompt or not isinstance(kind, str):
        raise ValueError("needs prompt (or question) as text, and may have kind as text")
    return Question(kind, prompt)
