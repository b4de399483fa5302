"""Load questions with known answers from the shipped file or a user's, and decide whether an answer is right.

A question file has one JSON object per line: id, kind, question, system (or null), answer, needs_thought.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from penstock_bench.load import json_lines

SHIPPED = Path(__file__).parent / "questions.jsonl"
"""The shipped file: twelve kinds in equal parts, half of which need no thought.

`python -m models.demo.question_file` writes it.
"""

_TYPES = {"id": str, "kind": str, "question": str, "system": str | None, "answer": str, "needs_thought": bool}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `needs_thought` is for the report only and never sent."""

    id: str
    kind: str
    question: str
    system: str | None
    answer: str
    needs_thought: bool

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Return the conversation as (role, content)."""
        turns = [] if self.system is None else [("system", self.system)]
        return [*turns, ("user", self.question)]


def is_right(expected: str, reply: str) -> bool:
    """Return whether `reply` gives the answer.

    Its last number counts if a number is expected; else the whole reply without blanks at its ends.

    A whole number is compared with the last run of digits, any other number with sign and fraction.
    """
    if re.fullmatch(r"\d+", expected, re.ASCII):
        numbers = re.findall(r"\d+", reply)
    elif re.fullmatch(r"-?\d+(\.\d+)?", expected, re.ASCII):
        numbers = re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", reply)
    else:
        return reply.strip() == expected.strip()
    return bool(numbers) and numbers[-1] == expected


def load(path: Path) -> list[Question]:
    """Return all questions of a file. Raises ValueError with the wrong line, and OSError if it cannot be read."""
    found = json_lines.read(path, _question, "questions")
    if len({one.id for one in found}) < len(found):
        raise ValueError(f"{path}: two questions have the same id")
    return found


def _question(entry: object) -> Question:
    names = [field.name for field in fields(Question)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ValueError(f"must be an object with the keys {', '.join(names)}")
    for name in names:
        if not isinstance(entry[name], _TYPES[name]):
            raise ValueError(f"{name} has the wrong type")
    return Question(**entry)


def pick(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Return at most `count` questions, each kind in proportion and spread evenly, chosen by `seed`."""
    rng = random.Random(seed)
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    placed: list[tuple[float, int, Question]] = []
    for order, group in enumerate(by_kind.values()):
        rng.shuffle(group)
        placed += [((index + 0.5) / len(group), order, question) for index, question in enumerate(group)]
    placed.sort(key=lambda place: place[:2])
    return [question for _, _, question in placed[:count]]
