"""Define a question of the small model's task, and the thought that works it out and checks itself."""

from dataclasses import dataclass, field

from models.demo.question import Working, is_right
from models.small.languages import Language


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
