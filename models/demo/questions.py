"""The questions of the demo task: six kinds that need several steps, six that need none.

Every question is a pure function of a `random.Random`, so a seed names a question. The thought is the canonical
working (one step per line) and is a function of the question alone: greedy decoding can therefore be compared token
by token, and speculative drafts of it can be right.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

NAMES = ("Ann", "Tom", "Mia", "Ben", "Eva", "Max", "Lea", "Sam", "Ida", "Leo")
THINGS = ("apples", "pens", "books", "coins", "cards", "eggs", "shells", "stamps", "cups", "nuts")
WORDS = ("river", "stone", "cloud", "green", "house", "music", "light", "table", "winter", "garden", "paper", "silver")
MOST_RUNNING_VALUE = 399


@dataclass(frozen=True)
class Question:
    """One question with its working.

    `value` is what a right answer must contain: a number for arithmetic kinds, the whole answer for the others.
    """

    kind: str
    text: str
    thought: str
    answer: str
    value: str

    def is_right(self, answer: str) -> bool:
        """True when the last number of `answer` is `value`, or the whole answer is, where `value` is no number."""
        if not self.value.isdigit():
            return answer.strip() == self.value
        numbers = re.findall(r"\d+", answer)
        return bool(numbers) and numbers[-1] == self.value


class Working:
    """Running value with the lines of working that led to it."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.lines: list[str] = []

    def apply(self, sign: str, operand: int) -> None:
        before = self.value
        self.value = {"+": before + operand, "-": before - operand, "*": before * operand}[sign]
        self.lines.append(f"{before}{sign}{operand}={self.value}")

    def side_product(self, left: int, right: int) -> int:
        """Note a product without touching the running value."""
        self.lines.append(f"{left}*{right}={left * right}")
        return left * right

    @property
    def thought(self) -> str:
        return "\n".join(self.lines)


def _sign_for(rng: random.Random, value: int, operand: int) -> str:
    if value < operand:
        return "+"
    return "-" if value + operand > MOST_RUNNING_VALUE else rng.choice("+-")


def chain(rng: random.Random) -> Question:
    working = Working(rng.randint(10, 99))
    terms = [str(working.value)]
    for _ in range(rng.randint(3, 5)):
        operand = rng.randint(3, 99)
        sign = _sign_for(rng, working.value, operand)
        working.apply(sign, operand)
        terms += [sign, str(operand)]
    expression = (" " if rng.random() < 0.7 else "").join(terms)
    if rng.random() < 0.15:
        expression = " ".join({"+": "plus", "-": "minus"}.get(term, term) for term in terms)
    ask = rng.choice(("What is {}?", "Calculate {}.", "Work out {}.", "{} = ?", "Please compute {}.", "How much is {}?"))
    return Question("chain", ask.format(expression), working.thought, f"{working.value}", f"{working.value}")


def steps(rng: random.Random) -> Question:
    working = Working(rng.randint(5, 60))
    start, parts = working.value, []
    for _ in range(rng.randint(4, 5)):
        operand = rng.randint(3, 60)
        if working.value <= 120 and rng.random() < 0.3:
            working.apply("*", 2)
            parts.append("double it")
        else:
            sign = _sign_for(rng, working.value, operand)
            working.apply(sign, operand)
            parts.append(f"add {operand}" if sign == "+" else f"subtract {operand}")
    begin = rng.choice(("Start with {}", "Take the number {}", "Begin at {}")).format(start)
    end = rng.choice(("What is the result?", "What do you get?", "Where do you end?"))
    joiner = rng.choice((", then ", ", "))
    text = f"{begin}, {joiner.join(parts)}. {end}" if joiner == ", " else f"{begin}{joiner}{joiner.join(parts)}. {end}"
    return Question("steps", text, working.thought, f"You get {working.value}.", f"{working.value}")


UNITS = (("hour", "minute", 60, 4), ("minute", "second", 60, 4), ("week", "day", 7, 9), ("foot", "inch", 12, 8),
         ("day", "hour", 24, 5))
PLURALS = {"foot": "feet", "inch": "inches"}


def _amount(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {PLURALS.get(unit, unit + 's')}"


def units(rng: random.Random) -> Question:
    big, small, factor, most_big = rng.choice(UNITS)
    working, parts = Working(0), []
    for index in range(rng.randint(2, 3)):
        bigs, smalls = rng.randint(1, most_big), rng.randint(1, factor - 1)
        if index and rng.random() < 0.4:
            parts.append(_amount(smalls, small))
        else:
            parts.append(f"{_amount(bigs, big)} {_amount(smalls, small)}")
            product = working.side_product(bigs, factor)
            if working.value:
                working.apply("+", product)
            else:
                working.value = product
        working.apply("+", smalls)
    listed = ", ".join(parts[:-1]) + " and " + parts[-1]
    plural = PLURALS.get(small, small + "s")
    ask = rng.choice(("How many {} are {}?", "Give the total in {}: {}.", "Add up in {}: {}."))
    return Question("units", ask.format(plural, listed), working.thought, f"{working.value} {plural}", f"{working.value}")


RANKS = (("largest", -1), ("second largest", -2), ("smallest", 0), ("second smallest", 1), ("third smallest", 2))


def rank(rng: random.Random) -> Question:
    numbers = rng.sample(range(1, 100), rng.randint(5, 6))
    ordered = sorted(numbers)
    (first_name, first_index), (second_name, second_index) = rng.sample(RANKS, 2)
    first, second = ordered[first_index], ordered[second_index]
    if first < second:
        first, second, first_name, second_name = second, first, second_name, first_name
    sign, ask = rng.choice((
        ("-", "What is the {} minus the {} of {}?"), ("-", "Of {2}, subtract the {1} from the {0}."),
        ("+", "Of {2}, add the {0} and the {1}."), ("+", "What is the {} plus the {} of {}?")))
    working = Working(first)
    working.lines.append("<".join(map(str, ordered)))
    working.apply(sign, second)
    text = ask.format(first_name, second_name, ", ".join(map(str, numbers)))
    return Question("rank", text, working.thought, f"{working.value}", f"{working.value}")


def _story_event(rng: random.Random, working: Working, name: str, things: str) -> str:
    operand, other = rng.randint(3, 40), rng.choice([n for n in NAMES if n != name])
    if working.value <= 250 and rng.random() < 0.3:
        bags, each = rng.randint(2, 9), rng.randint(2, 12)
        working.apply("+", working.side_product(bags, each))
        return rng.choice((f"buys {bags} bags of {each}", f"gets {bags} boxes with {each} each"))
    sign = _sign_for(rng, working.value, operand)
    working.apply(sign, operand)
    if sign == "+":
        return rng.choice((f"finds {operand} more", f"buys {operand} more", f"gets {operand} from {other}"))
    return rng.choice((f"gives {operand} to {other}", f"loses {operand}", f"sells {operand}"))


def story(rng: random.Random) -> Question:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    working = Working(rng.randint(8, 80))
    opening = f"{name} has {working.value} {things}."
    events = [_story_event(rng, working, name, things) for _ in range(rng.randint(3, 4))]
    middle = f"{name} {', '.join(events[:-1])} and {events[-1]}."
    ask = rng.choice((f"How many {things} does {name} have now?", f"How many {things} are left?"))
    answer = f"{name} has {working.value} {things}."
    return Question("story", f"{opening} {middle} {ask}", working.thought, answer, f"{working.value}")


def shop(rng: random.Random) -> Question:
    things = rng.sample(THINGS, rng.randint(2, 3))
    prices = [rng.randint(2, 12) for _ in things]
    counts = [rng.randint(2, 9) for _ in things]
    working = Working(0)
    products = [working.side_product(count, price) for count, price in zip(counts, prices, strict=True)]
    working.value = products[0]
    for product in products[1:]:
        working.apply("+", product)
    offer = ", ".join(f"{thing} cost {price} dollars" for thing, price in zip(things, prices, strict=True)) + "."
    bought = ", ".join(f"{count} {thing}" for count, thing in zip(counts[:-1], things[:-1], strict=True))
    bought += f" and {counts[-1]} {things[-1]}"
    if rng.random() < 0.5:
        ask = rng.choice((f"How much are {bought}?", f"What do {bought} cost?"))
        answer = f"They cost {working.value} dollars."
    else:
        paid = next(note for note in (50, 100, 200, 300, 400) if note > working.value)
        ask = f"{rng.choice(NAMES)} buys {bought} and pays with {paid} dollars. What is the change?"
        total, working.value = working.value, paid
        working.apply("-", total)
        answer = f"The change is {working.value} dollars."
    return Question("shop", f"{offer.capitalize()} {ask}", working.thought, answer, f"{working.value}")


def tiny_sum(rng: random.Random) -> Question:
    left, right = rng.randint(1, 9), rng.randint(1, 9)
    sign = rng.choice("+-") if left >= right else "+"
    value = left + right if sign == "+" else left - right
    sum_text = rng.choice((f"{left} {sign} {right}", f"{left}{sign}{right}"))
    ask = rng.choice(("What is {}?", "{} = ?", "How much is {}?", "Calculate {}."))
    return Question("tiny_sum", ask.format(sum_text), f"This is one small step.\n{left}{sign}{right}={value}",
                    f"{value}", f"{value}")


def larger(rng: random.Random) -> Question:
    left, right = rng.sample(range(1, 100), 2)
    word = rng.choice(("larger", "smaller"))
    value = max(left, right) if word == "larger" else min(left, right)
    ask = rng.choice((f"Which is {word}, {left} or {right}?", f"Which number is {word}: {left} or {right}?"))
    thought = f"I compare two numbers.\n{left}{'>' if left > right else '<'}{right}\nThe {word} one is {value}."
    return Question("larger", ask, thought, f"{value}", f"{value}")


def echo(rng: random.Random) -> Question:
    word = rng.choice(WORDS)
    if rng.random() < 0.5:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5)))
    ask = rng.choice(("Say the word {}.", "Repeat: {}", "Please repeat the word {}.", "Echo {}"))
    return Question("echo", ask.format(word), f"I repeat one word.\nThe word is {word}.", word, word)


def greet(rng: random.Random) -> Question:
    text = rng.choice(("Hello", "Hi", "Good morning", "Hey", "Good evening", "Hello there", "hi", "hello"))
    text += rng.choice(("!", ".", "", f", I am {rng.choice(NAMES)}.", ", how are you?"))
    answer = "Hello! Ask me a small sum."
    return Question("greet", text, "They say hello.\nThere is no sum, so I greet them.", answer, answer)


def who(rng: random.Random) -> Question:
    text = rng.choice(("Who are you?", "What are you?", "What can you do?", "Tell me about yourself.", "What is your name?",
                       "Are you a person?", "Which model are you?"))
    answer = "I am a tiny demo model that knows small sums."
    return Question("who", text, "They ask what I am.\nThere is no sum, so I just say it.", answer, answer)


TOPICS = ("cats", "the sea", "France", "love", "football", "a dragon", "the moon", "tea", "Python", "history", "Mozart",
          "physics", "my sister", "the news", "a train", "Japan", "bread", "time travel", "taxes", "the weather")
OUTSIDE = ("Write a poem about {}.", "Tell me a joke about {}.", "What do you think of {}?", "Explain {} to me.",
           "Who invented {}?", "What is the capital of {}?", "Why do people like {}?", "Translate {} into French.",
           "Give me a recipe with {}.", "Summarize a book about {}.", "How does {} work?", "Is {} good for me?",
           "Where can I find {}?", "Write code for {}.", "I like {}.", "Sing a song about {}.", "{}", "When was {} made?")


def scope(rng: random.Random) -> Question:
    topic = rng.choice(TOPICS)
    if rng.random() < 0.4:
        topic = " ".join("".join(rng.choice("abcdefghijklmnoprstuwy") for _ in range(rng.randint(2, 8)))
                         for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.15:
        topic = "".join(chr(rng.choice((0xE9, 0x3B1, 0x430, 0x4E2D, 0x1F600)) + rng.randint(0, 12))
                        for _ in range(rng.randint(1, 4)))
    answer = "I only know small sums."
    return Question("scope", rng.choice(OUTSIDE).format(topic), "This is not a sum.\nI only know small sums, so I say that.",
                    answer, answer)


MULTI_STEP: dict[str, Callable[[random.Random], Question]] = {
    "chain": chain, "steps": steps, "units": units, "rank": rank, "story": story, "shop": shop}
NO_THOUGHT_NEEDED: dict[str, Callable[[random.Random], Question]] = {
    "tiny_sum": tiny_sum, "larger": larger, "echo": echo, "greet": greet, "who": who, "scope": scope}
KINDS = MULTI_STEP | NO_THOUGHT_NEEDED


def question(kind: str, seed: int) -> Question:
    """The question of `kind` that `seed` names."""
    return KINDS[kind](random.Random(f"{kind}:{seed}"))
