"""Define a question of the demo task, and the working of which its thought consists."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question with its working.

    A right answer contains `value`: a number for arithmetic kinds, the whole answer for the others.
    """

    kind: str
    text: str
    thought: str
    answer: str
    value: str

    def is_right(self, answer: str) -> bool:
        """Return whether `answer` gives the value."""
        return is_right(self.value, answer)


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
        before = self.value
        self.value = {"+": before + operand, "-": before - operand, "*": before * operand}[sign]
        self.lines.append(f"{before}{sign}{operand}={self.value}")

    def side_product(self, left: int, right: int) -> int:
        """Add a product to the lines without changing the running value."""
        self.lines.append(f"{left}*{right}={left * right}")
        return left * right

    @property
    def thought(self) -> str:
        return "\n".join(self.lines)
