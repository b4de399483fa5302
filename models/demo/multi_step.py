"""Make six kinds of question that need several steps: a model that does not write them down can only guess."""

import random

from models.demo.question import Question, Working

NAMES = ("Ann", "Tom", "Mia", "Ben", "Eva", "Max", "Lea", "Sam", "Ida", "Leo")
THINGS = ("apples", "pens", "books", "coins", "cards", "eggs", "shells", "stamps", "cups", "nuts")
MAX_RUNNING_VALUE = 399


def _sign_for(rng: random.Random, value: int, operand: int) -> str:
    if value < operand:
        return "+"
    return "-" if value + operand > MAX_RUNNING_VALUE else rng.choice("+-")


CHAIN_ASKS = ["What is {}?", "Calculate {}.", "Work out {}.", "{} = ?", "Please compute {}.", "How much is {}?"]


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
    ask = rng.choice(CHAIN_ASKS)
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


UNITS = (
    ("hour", "minute", 60, 4),
    ("minute", "second", 60, 4),
    ("week", "day", 7, 9),
    ("foot", "inch", 12, 8),
    ("day", "hour", 24, 5),
)
PLURALS = {"foot": "feet", "inch": "inches"}


def _amount(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {PLURALS.get(unit, unit + 's')}"


def units(rng: random.Random) -> Question:
    big, small, factor, max_big = rng.choice(UNITS)
    working, parts = Working(0), []
    for index in range(rng.randint(2, 3)):
        bigs, smalls = rng.randint(1, max_big), rng.randint(1, factor - 1)
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
    answer = f"{working.value} {plural}"
    return Question("units", ask.format(plural, listed), working.thought, answer, f"{working.value}")


RANKS = (("largest", -1), ("second largest", -2), ("smallest", 0), ("second smallest", 1), ("third smallest", 2))


RANK_ASKS = (
    ("-", "What is the {} minus the {} of {}?"),
    ("-", "Of {2}, subtract the {1} from the {0}."),
    ("+", "Of {2}, add the {0} and the {1}."),
    ("+", "What is the {} plus the {} of {}?"),
)


def rank(rng: random.Random) -> Question:
    numbers = rng.sample(range(1, 100), rng.randint(5, 6))
    ordered = sorted(numbers)
    (first_name, first_index), (second_name, second_index) = rng.sample(RANKS, 2)
    first, second = ordered[first_index], ordered[second_index]
    if first < second:
        first, second, first_name, second_name = second, first, second_name, first_name
    sign, ask = rng.choice(RANK_ASKS)
    working = Working(first)
    working.lines.append("<".join(map(str, ordered)))
    working.apply(sign, second)
    text = ask.format(first_name, second_name, ", ".join(map(str, numbers)))
    return Question("rank", text, working.thought, f"{working.value}", f"{working.value}")


def _story_event(rng: random.Random, working: Working, name: str) -> str:
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
    events = [_story_event(rng, working, name) for _ in range(rng.randint(3, 4))]
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
