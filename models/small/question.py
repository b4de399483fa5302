"""Define a question of the small model's task, and the thought that works it out and checks itself."""

import re
from dataclasses import dataclass, field

from models.small.languages import Language


def is_right(value: str, answer: str) -> bool:
    """Return whether the last number of `answer` is `value`; the whole answer, if `value` is no number."""
    if not value.isdigit():
        return answer.strip() == value
    numbers = re.findall(r"\d+", answer)
    return bool(numbers) and numbers[-1] == value


class Working:
    """A running value with the lines of working that led to it."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.lines: list[str] = []

    def apply(self, sign: str, operand: int) -> None:
        """Add a step to the lines, and change the running value by it."""
        before = self.value
        self.value = {"+": before + operand, "-": before - operand, "*": before * operand}[sign]
        self.lines.append(f"{before}{sign}{operand}={self.value}")

    def side_product(self, left: int, right: int) -> int:
        """Add a product to the lines without changing the running value."""
        self.lines.append(f"{left}*{right}={left * right}")
        return left * right


@dataclass(frozen=True)
class Question:
    """One question with its working, in one language.

    A right answer contains `value`: a number for arithmetic kinds, the whole answer for the others. `earlier` are the
    turns before it, as (question, answer).
    """

    kind: str
    language: str
    text: str
    thought: str
    """The working, then the lines that check it again."""
    answer: str
    value: str
    working_lines: int = 1
    """Lines of the thought before it checks itself."""
    earlier: tuple[tuple[str, str], ...] = field(default=())

    def is_right(self, answer: str) -> bool:
        """Return whether `answer` gives the value."""
        return is_right(self.value, answer)


def checked(working: Working, language: Language, checks: int) -> str:
    """Return the lines, then `checks` lines that go over them again, as long reasoning models do.

    The number of checks follows from the kind of question, so that the thought depends on the question alone.
    """
    check = f"{language.check} {' '.join(working.lines)}"
    return "\n".join([*working.lines, *[check] * checks])
