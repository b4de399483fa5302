"""Define what a language needs: sentences for each kind of question, and how it counts things."""

from collections.abc import Callable
from dataclasses import dataclass

Forms = tuple[str, ...]
"""The forms of a noun beside a number, in the order of the language's plural rule."""


def one_or_many(count: int) -> int:
    """Return 0 beside 1, else 1 (English, German, Spanish)."""
    return int(count != 1)


def up_to_one_or_many(count: int) -> int:
    """Return 0 beside 0 and 1, else 1 (French)."""
    return int(count > 1)


def slavic(count: int) -> int:
    """Return 0 beside 1, 21, ...; 1 beside 2 to 4, 22, ...; 2 beside the others (Russian)."""
    if count % 10 == 1 and count % 100 != 11:
        return 0
    return 1 if 2 <= count % 10 <= 4 and not 12 <= count % 100 <= 14 else 2


def never_changes(count: int) -> int:
    """Return 0 (Chinese)."""
    del count
    return 0


@dataclass(frozen=True)
class Arithmetic:
    """Sentences around numbers. Places are named; a tuple holds alternatives."""

    plus: str
    minus: str
    chain: tuple[str, ...]
    begin: tuple[str, ...]
    add: str
    subtract: str
    double: str
    then: tuple[str, ...]
    end: tuple[str, ...]
    result: str
    larger: tuple[str, ...]
    smaller: tuple[str, ...]
    ranks: tuple[str, str, str, str, str]
    """Names of the largest, second largest, smallest, second and third smallest number."""
    rank_minus: tuple[str, ...]
    rank_plus: tuple[str, ...]
    total_units: tuple[str, ...]
    more: tuple[str, ...]
    less: tuple[str, ...]
    doubled: tuple[str, ...]
    """Follow-ups: so many more, so many less, twice as many."""


@dataclass(frozen=True)
class Stories:
    """Sentences about people and things. `{name}` is who acts, `{of}` the name's form of possession."""

    names: tuple[tuple[str, str], ...]
    things: tuple[Forms, ...]
    has: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    bags: tuple[tuple[str, Forms], ...]
    """Sentences with `{count}`, `{bags}` and `{each}`, and the forms of the bag."""
    tells: str
    """A person's events after one another; places `{name}` and `{events}`."""
    asks: tuple[str, ...]
    money: Forms
    price: str
    amount: str
    costs: tuple[str, ...]
    cost_answer: str
    change: str
    change_answer: str
    units: tuple[tuple[Forms, Forms, int, int], ...]
    """(larger unit, smaller unit, smaller ones in a larger one, most larger ones)."""


@dataclass(frozen=True)
class SmallTalk:
    """Questions without arithmetic, and their answers."""

    greetings: tuple[str, ...]
    greeting_answer: str
    who: tuple[str, ...]
    who_answer: str
    topics: tuple[str, ...]
    outside: tuple[str, ...]
    outside_answer: str
    echo: tuple[str, ...]
    words: tuple[str, ...]
    greeting_thought: str
    who_thought: str
    outside_thought: str


@dataclass(frozen=True)
class ToolTalk:
    """Questions that a function answers, and the sentences that give its result."""

    attribute: tuple[str, ...]
    """Places `{attribute}` and `{value}`."""
    two: tuple[str, ...]
    """The same of `{first}` and `{second}`."""
    attribute_answer: str
    two_answer: str
    calculate: tuple[str, ...]
    convert: tuple[str, ...]
    convert_answer: str
    lookup: tuple[str, ...]
    lookup_answer: str
    no_function: str
    """The thought where no function fits."""
    missing: str
    """The answer where a table does not have what was asked for."""


@dataclass(frozen=True)
class PictureTalk:
    """Questions about a picture."""

    sums: tuple[str, ...]
    larger: tuple[str, ...]
    smaller: tuple[str, ...]
    counts: tuple[str, ...]
    """Place `{shapes}`."""
    more: tuple[str, ...]
    """Add `{}` to the number in the picture."""
    colours: dict[str, str]
    shapes: dict[str, str]
    coloured: str
    """A shape of a colour in the form of the counting question; places `{colour}` and `{shape}`."""


@dataclass(frozen=True)
class Language:
    """One language of the small model."""

    code: str
    plural: Callable[[int], int]
    conjunction: str
    comma: str
    check: str
    """Starts a line of the thought that goes over the working again."""
    arithmetic: Arithmetic
    stories: Stories
    small_talk: SmallTalk
    tools: ToolTalk
    pictures: PictureTalk

    def count(self, number: int, forms: Forms) -> str:
        """Return a number with the noun's form beside it. Chinese has its measure word in the noun's form."""
        form = forms[self.plural(number)]
        return f"{number}{form}" if self.code == "zh" else f"{number} {form}"

    def listed(self, parts: list[str]) -> str:
        """Return the parts as a sentence lists them, the last one behind the conjunction."""
        if len(parts) == 1:
            return parts[0]
        return self.comma.join(parts[:-1]) + self.conjunction + parts[-1]
