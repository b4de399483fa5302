"""Make conversations in which functions are offered: one call, two calls, or none where no function fits.

A function's name, its parameters and what it is asked for are mostly made-up words, so that the model must read the
description instead of knowing the name. One word in eight is reserved for evaluation.
"""

import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.small import arithmetic, small_talk
from models.small.languages import LANGUAGES, Language
from models.small.question import Question
from models.small.questions import HELD_OUT_SEED, is_reserved

ATTRIBUTES = (
    "weight", "height", "age", "colour", "code", "status", "score", "level", "temperature", "population", "owner",
    "phone", "balance", "size", "speed", "distance", "rating", "stock", "address", "version",
)  # fmt: skip
THINGS = (
    "city", "country", "product", "person", "planet", "ship", "book", "order", "user", "team", "river", "star", "shop",
    "file", "train", "island",
)  # fmt: skip
_STARTS = (
    "b",
    "bl",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ei", "oa")
_ENDS = ("", "", "n", "r", "l", "m", "x", "k", "s", "rf", "nt")
GOODS = ("apple", "pen", "book", "lamp", "chair", "cup", "bread", "shoe", "ball", "clock", "soap", "rope")
CONVERSIONS = {
    ("km", "m"): 1000,
    ("m", "cm"): 100,
    ("kg", "g"): 1000,
    ("l", "ml"): 1000,
    ("t", "kg"): 1000,
    ("cm", "mm"): 10,
    ("h", "min"): 60,
    ("min", "s"): 60,
}


@dataclass(frozen=True)
class FunctionCall:
    """One call of a function; arguments in the order of the function's parameters."""

    name: str
    arguments: dict[str, str | int]


@dataclass(frozen=True)
class Task:
    """A conversation with functions: the question, the calls, their results, and the last answer.

    Without calls, `thought` leads to `answer` at once. With calls, `thought` leads to them and `result_thought` from
    the results to `answer`. A thought about an attribute lists what each function gives, and reads from the list which
    of them gives what is asked for, or that none does: each step copies what stands in one place.
    """

    kind: str
    language: str
    tools: tuple[dict, ...]
    text: str
    thought: str
    calls: tuple[FunctionCall, ...]
    results: tuple[str, ...]
    result_thought: str
    answer: str
    value: str


class Words:
    """Draws made-up words of training or, if `reserved`, of evaluation."""

    def __init__(self, rng: random.Random, reserved: bool) -> None:
        self._rng, self._reserved = rng, reserved
        self._known: set[str] = set()

    def word(self) -> str:
        """Return a word that this conversation does not have yet."""
        while True:
            syllables = self._rng.choice((1, 2, 2, 3))
            word = "".join(self._rng.choice(_STARTS) + self._rng.choice(_VOWELS) for _ in range(syllables))
            word += self._rng.choice(_ENDS)
            if len(word) > 3 and word not in self._known and (zlib.crc32(word.encode()) % 8 == 0) == self._reserved:
                self._known.add(word)
                return word

    def known_or_made_up(self, known: tuple[str, ...], known_share: float = 0.35) -> str:
        """Return a word of the list with the given chance, else a made-up one; never one drawn before."""
        free = [word for word in known if word not in self._known]
        if free and self._rng.random() < known_share:
            word = self._rng.choice(free)
            self._known.add(word)
            return word
        return self.word()

    def value(self) -> str:
        """Return what a caller asks about: a name of one or two words, or a code."""
        shape = self._rng.random()
        if shape < 0.65:
            return self.word().capitalize()
        if shape < 0.8:
            return f"{self.word().capitalize()} {self.word().capitalize()}"
        letter = self._rng.choice("ABCDEFGHKLMNPRSTVXZ")
        return f"{letter}{self._rng.randint(10, 9999)}"


def described(name: str, description: str, parameters: dict[str, dict], rng: random.Random) -> dict:
    """Return a function as chat templates get it, with the small differences that callers' schemas have."""
    schema: dict = {"type": "object", "properties": parameters, "required": list(parameters)}
    if rng.random() < 0.2:
        schema["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


@dataclass(frozen=True)
class _Attribute:
    """A function that gives an attribute of a thing."""

    attribute: str
    name: str
    parameter: str
    extra: str | None
    is_number: bool
    schema: dict

    @classmethod
    def draw(cls, rng: random.Random, words: Words) -> "_Attribute":
        attribute, thing = words.known_or_made_up(ATTRIBUTES), words.known_or_made_up(THINGS)
        name = rng.choice(
            (
                f"get_{attribute}",
                f"{attribute}_of_{thing}",
                f"fetch_{thing}_{attribute}",
                f"get{attribute.capitalize()}",
                f"{thing}_{attribute}",
                f"find_{attribute}",
                words.word(),
            )
        )
        parameter = rng.choice((thing, thing, "name", "id", words.word()))
        is_number = rng.random() < 0.15
        parameters: dict[str, dict] = {parameter: {"type": "integer" if is_number else "string"}}
        if rng.random() < 0.5:
            parameters[parameter]["description"] = rng.choice(
                (f"The {thing}.", f"Name of the {thing}.", f"Which {thing}.")
            )
        extra = None
        if rng.random() < 0.2:
            extra = words.known_or_made_up(("year", "day", "unit", "limit"), 0.5)
            parameters[extra] = {"type": "integer"}
        description = rng.choice(
            (
                f"Get the {attribute} of a {thing}.",
                f"Return the {attribute} of the given {thing}.",
                f"The {attribute} of a {thing}.",
            )
        )
        return cls(attribute, name, parameter, extra, is_number, described(name, description, parameters, rng))

    def value(self, rng: random.Random, words: Words) -> str | int:
        return rng.randint(10, 9999) if self.is_number else words.value()

    def result(self, rng: random.Random, words: Words) -> tuple[str, str]:
        """Return a value and the text in which the function gives it."""
        value = f"{rng.randint(2, 9999)}" if rng.random() < 0.6 else words.word()
        return value, rng.choice((value, f"{self.attribute}: {value}", json.dumps({self.attribute: value})))


def _shuffled(rng: random.Random, tools: list[dict]) -> tuple[dict, ...]:
    rng.shuffle(tools)
    return tuple(tools)


def _other_attributes(rng: random.Random, words: Words, most: int = 3) -> list[_Attribute]:
    return [_Attribute.draw(rng, words) for _ in range(rng.choices(range(most + 1), (4, 3, 2, 1)[: most + 1])[0])]


def _others(rng: random.Random, words: Words, most: int = 3) -> list[dict]:
    return [other.schema for other in _other_attributes(rng, words, most)]


LISTED, FOUND = " = ", "=> "
"""What stands between an attribute and the function that gives it, and what begins a line about what is asked for."""


def _thought(asked: str, offered: Sequence[_Attribute], calls: Sequence[str]) -> str:
    """Return a thought that lists what each function gives, and then reads from the list what gives `asked`."""
    lines = [f"{one.name}: {one.attribute}{LISTED}{one.name}" for one in offered]
    return "\n".join([*lines, *(f"{FOUND}{asked}{LISTED}{call}" for call in calls)])


def attribute(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for one attribute of one thing."""
    wanted = _Attribute.draw(rng, words)
    value = wanted.value(rng, words)
    talk, arguments = language.tools, {wanted.parameter: value}
    text = rng.choice(talk.attribute).format(attribute=wanted.attribute, value=value)
    if wanted.extra is not None:
        number = rng.randint(1, 2030)
        arguments[wanted.extra] = number
        text += f" ({wanted.extra}: {number})"
    result, written = wanted.result(rng, words)
    offered = [wanted, *_other_attributes(rng, words)]
    rng.shuffle(offered)
    return Task(
        "attribute",
        language.code,
        tuple(one.schema for one in offered),
        text,
        _thought(wanted.attribute, offered, [f"{wanted.name}({value})"]),
        (FunctionCall(wanted.name, arguments),),
        (written,),
        f"{value}: {result}",
        talk.attribute_answer.format(attribute=wanted.attribute, value=value, result=result),
        result,
    )


def parallel(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for the same attribute of two things: two calls in one turn."""
    wanted = _Attribute.draw(rng, words)
    while wanted.extra is not None:
        wanted = _Attribute.draw(rng, words)
    first, second = wanted.value(rng, words), wanted.value(rng, words)
    (one, one_written), (other, other_written) = wanted.result(rng, words), wanted.result(rng, words)
    talk = language.tools
    offered = [wanted, *_other_attributes(rng, words)]
    rng.shuffle(offered)
    calls = [f"{wanted.name}({first})", f"{wanted.name}({second})"]
    return Task(
        "parallel",
        language.code,
        tuple(one.schema for one in offered),
        rng.choice(talk.two).format(attribute=wanted.attribute, first=first, second=second),
        _thought(wanted.attribute, offered, calls),
        (FunctionCall(wanted.name, {wanted.parameter: first}), FunctionCall(wanted.name, {wanted.parameter: second})),
        (one_written, other_written),
        f"{first}: {one}\n{second}: {other}",
        talk.two_answer.format(attribute=wanted.attribute, first=first, second=second, one=one, other=other),
        other,
    )


def calculator(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for the result of an arithmetic expression, for which there is a function."""
    name = rng.choice(("calculator", "calculate", "evaluate", "compute", words.word()))
    parameter = rng.choice(("expression", "input", "formula", words.word()))
    description = rng.choice(("Work out an arithmetic expression.", "Evaluate a formula.", "Calculator for + - *."))
    schema = described(name, description, {parameter: {"type": "string"}}, rng)
    left, right = rng.randint(2, 9999), rng.randint(2, 9999)
    sign = rng.choice("+-*")
    value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    gap = rng.choice(("", " "))
    expression = f"{left}{gap}{sign}{gap}{right}"
    written = rng.choice((f"{value}", json.dumps({"result": value})))
    return Task(
        "calculator",
        language.code,
        _shuffled(rng, [schema, *_others(rng, words, 2)]),
        rng.choice(language.tools.calculate).format(expression),
        f"{name}: {expression}",
        (FunctionCall(name, {parameter: expression}),),
        (written,),
        f"{value}",
        f"{value}",
        f"{value}",
    )


def convert(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for an amount in another unit."""
    name = rng.choice(("convert_units", "convert", "unit_converter", words.word()))
    names = rng.choice((("value", "from_unit", "to_unit"), ("amount", "source", "target"), ("x", "from", "to")))
    parameters = {names[0]: {"type": "number"}, names[1]: {"type": "string"}, names[2]: {"type": "string"}}
    schema = described(
        name, rng.choice(("Convert between units.", "Convert an amount to another unit.")), parameters, rng
    )
    (source, target), factor = rng.choice(list(CONVERSIONS.items()))
    amount = rng.randint(2, 999)
    result = amount * factor
    places = {"value": amount, "source": source, "target": target}
    return Task(
        "convert",
        language.code,
        _shuffled(rng, [schema, *_others(rng, words, 2)]),
        rng.choice(language.tools.convert).format(**places),
        f"{name}: {amount} {source}, {target}",
        (FunctionCall(name, dict(zip(names, (amount, source, target), strict=True))),),
        (rng.choice((f"{result}", f"{result} {target}", json.dumps({"result": result}))),),
        f"{result} {target}",
        language.tools.convert_answer.format(result=result, **places),
        f"{result}",
    )


def lookup(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for one row of a table that a function without parameters gives."""
    name = rng.choice(("get_prices", "list_prices", "price_list", words.word()))
    schema = described(name, rng.choice(("List all prices.", "Get the price list.")), {}, rng)
    rows = {words.known_or_made_up(GOODS, 0.5): rng.randint(1, 99) for _ in range(rng.randint(3, 6))}
    wanted = rng.choice(list(rows))
    if rng.random() < 0.1:
        wanted = words.word()
    table = rng.choice(("\n".join(f"{row}: {price}" for row, price in rows.items()), json.dumps(rows)))
    result = f"{rows[wanted]}" if wanted in rows else ""
    talk = language.tools
    answer = talk.lookup_answer.format(value=wanted, result=result) if result else talk.missing
    return Task(
        "lookup",
        language.code,
        _shuffled(rng, [schema, *_others(rng, words, 2)]),
        rng.choice(talk.lookup).format(value=wanted),
        name,
        (FunctionCall(name, {}),),
        (table,),
        f"{wanted}: {result or '?'}",
        answer,
        result or answer,
    )


def no_call(rng: random.Random, language: Language, words: Words) -> Task:
    """Ask for something that no offered function gives: the model answers itself, or says that it does not know."""
    offered = [_Attribute.draw(rng, words), *_other_attributes(rng, words, 2)]
    tools, talk = tuple(one.schema for one in offered), language.tools
    if rng.random() < 0.25:
        other = _Attribute.draw(rng, words)
        text = rng.choice(talk.attribute).format(attribute=other.attribute, value=words.value())
        thought = _thought(other.attribute, offered, ["?"])
        return Task("no_call", language.code, tools, text, thought, (), (), "", talk.missing, talk.missing)
    asked = _plain_question(rng, language)
    thought = f"{talk.no_function}\n{asked.thought}"
    return Task("no_call", language.code, tools, asked.text, thought, (), (), "", asked.answer, asked.value)


def _plain_question(rng: random.Random, language: Language) -> Question:
    kinds: tuple[Callable[[random.Random, Language], Question], ...] = (
        small_talk.greet,
        small_talk.who,
        small_talk.scope,
        arithmetic.tiny_sum,
        arithmetic.larger,
        arithmetic.chain,
    )
    return rng.choice(kinds)(rng, language)


TASKS = {kind.__name__: kind for kind in (attribute, parallel, calculator, convert, lookup, no_call)}


def task(kind: str, language: str, seed: int) -> Task:
    """Return the conversation of `kind` in `language` for `seed`; held out like the questions (see `questions`)."""
    rng, held_out = random.Random(f"tools:{kind}:{language}:{seed}"), seed >= HELD_OUT_SEED
    while True:
        found = TASKS[kind](rng, LANGUAGES[language], Words(rng, held_out))
        if is_reserved(found.text) == held_out:
            return found
