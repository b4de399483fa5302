"""Read files of questions for a load: JSON lines with `prompt` (or `question`) and `kind`. Other keys are ignored."""

from __future__ import annotations

from pathlib import Path

from penstock_bench.load import json_lines
from penstock_bench.load.workload import Question

_MAX_KINDS = 100
"""Largest number of kinds: results are reported by kind."""


def read(path: Path) -> tuple[Question, ...]:
    """Return all questions. Raises ValueError with the wrong line, and OSError."""
    found = json_lines.read(path, _question, "questions", encoding="utf-8-sig")
    kinds = len({question.kind for question in found})
    if kinds > _MAX_KINDS:
        raise ValueError(f"{path} must have at most {_MAX_KINDS} kinds of question, got {kinds}")
    return tuple(found)


def _question(entry: object) -> Question:
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    prompt, kind = entry.get("prompt", entry.get("question")), entry.get("kind", "")
    if not isinstance(prompt, str) or not prompt or not isinstance(kind, str):
        raise ValueError("needs prompt (or question) as text, and may have kind as text")
    return Question(kind, prompt)
