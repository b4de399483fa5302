"""Make questions about numbers: several steps, or none, in any of the languages."""

import random

from models.small.languages import Language
from models.small.question import Question, Working, checked

MAX_RUNNING_VALUE = 1999


def sign_for(rng: random.Random, value: int, operand: int) -> str:
    if value < operand:
        return "+"
    return "-" if value + operand > MAX_RUNNING_VALUE else rng.choice("+-")


def _operand(rng: random.Random) -> int:
    """Return a number of one, two or three digits; two are the most frequent."""
    low, high = rng.choices(((1, 9), (10, 99), (100, 999)), (1, 3, 2))[0]
    return rng.randint(low, high)


def chain(rng: random.Random, language: Language) -> Question:
    """Ask for a sum of two to five terms."""
    words = language.arithmetic
    working = Working(_operand(rng))
    terms = [str(working.value)]
    for _ in range(rng.choices((1, 2, 3, 4), (1, 2, 3, 2))[0]):
        operand = _operand(rng)
        sign = sign_for(rng, working.value, operand)
        working.apply(sign, operand)
        terms += [sign, str(operand)]
    expression = (" " if rng.random() < 0.7 else "").join(terms)
    if rng.random() < 0.15:
        gap = "" if language.code == "zh" else " "
        expression = gap.join({"+": words.plus, "-": words.minus}.get(term, term) for term in terms)
    checks = min(2, len(working.lines) - 1)
    return Question(
        "chain",
        language.code,
        rng.choice(words.chain).format(expression),
        checked(working, language, checks),
        f"{working.value}",
        f"{working.value}",
        len(working.lines),
    )


def steps(rng: random.Random, language: Language) -> Question:
    """Ask for the result of four or five steps told one after another."""
    words = language.arithmetic
    working = Working(rng.randint(5, 60))
    start, parts = working.value, []
    for _ in range(rng.randint(4, 5)):
        operand = rng.randint(3, 60)
        if working.value <= 120 and rng.random() < 0.3:
            working.apply("*", 2)
            parts.append(words.double)
        else:
            sign = sign_for(rng, working.value, operand)
            working.apply(sign, operand)
            parts.append((words.add if sign == "+" else words.subtract).format(operand))
    begin, joiner = rng.choice(words.begin).format(start), rng.choice(words.then)
    stop, gap = ("。", "") if language.code == "zh" else (".", " ")
    text = f"{begin}{joiner}{joiner.join(parts)}{stop}{gap}{rng.choice(words.end)}"
    return Question(
        "steps",
        language.code,
        text,
        checked(working, language, 2),
        words.result.format(working.value),
        f"{working.value}",
        len(working.lines),
    )


def rank(rng: random.Random, language: Language) -> Question:
    """Ask for the sum or difference of two numbers named by their order among five or six."""
    words = language.arithmetic
    numbers = rng.sample(range(1, 100), rng.randint(5, 6))
    ordered = sorted(numbers)
    places = (-1, -2, 0, 1, 2)
    (first_name, first_index), (second_name, second_index) = rng.sample(list(zip(words.ranks, places, strict=True)), 2)
    first, second = ordered[first_index], ordered[second_index]
    if first < second:
        first, second, first_name, second_name = second, first, second_name, first_name
    sign = rng.choice("-+")
    ask = rng.choice(words.rank_minus if sign == "-" else words.rank_plus)
    working = Working(first)
    working.lines.append("<".join(map(str, ordered)))
    working.apply(sign, second)
    text = ask.format(first_name, second_name, language.comma.join(map(str, numbers)))
    thought = "\n".join([*working.lines, f"{language.check} {working.lines[-1]}"])
    return Question("rank", language.code, text, thought, f"{working.value}", f"{working.value}", 2)


def tiny_sum(rng: random.Random, language: Language) -> Question:
    """Ask for the sum of two digits."""
    left, right = rng.randint(1, 9), rng.randint(1, 9)
    sign = rng.choice("+-") if left >= right else "+"
    value = left + right if sign == "+" else left - right
    sum_text = rng.choice((f"{left} {sign} {right}", f"{left}{sign}{right}"))
    text = rng.choice(language.arithmetic.chain).format(sum_text)
    return Question("tiny_sum", language.code, text, f"{left}{sign}{right}={value}", f"{value}", f"{value}")


def larger(rng: random.Random, language: Language) -> Question:
    """Ask for the larger or the smaller of two numbers."""
    left, right = rng.sample(range(1, 100), 2)
    wants_larger = rng.random() < 0.5
    asks = language.arithmetic.larger if wants_larger else language.arithmetic.smaller
    value = max(left, right) if wants_larger else min(left, right)
    thought = f"{left}{'>' if left > right else '<'}{right}\n{value}"
    return Question("larger", language.code, rng.choice(asks).format(left, right), thought, f"{value}", f"{value}", 2)


def follow_up(rng: random.Random, language: Language) -> Question:
    """Ask for a change of an earlier answer, in the second or third turn of a conversation."""
    first = rng.choice((chain, tiny_sum, steps))(rng, language)
    earlier, working = [(first.text, first.answer)], Working(int(first.value))
    if rng.random() < 0.5:
        text = _change(rng, language, working)
        earlier.append((text, f"{working.value}"))
        working = Working(working.value)
    text = _change(rng, language, working)
    thought, answer = checked(working, language, 0), f"{working.value}"
    return Question("follow_up", language.code, text, thought, answer, answer, 1, tuple(earlier))


def _change(rng: random.Random, language: Language, working: Working) -> str:
    """Change the working's value, and return how a caller asks for that."""
    words, operand = language.arithmetic, rng.randint(1, 99)
    if working.value <= 400 and rng.random() < 0.2:
        working.apply("*", 2)
        return rng.choice(words.doubled)
    sign = sign_for(rng, working.value, operand)
    working.apply(sign, operand)
    return rng.choice(words.more if sign == "+" else words.less).format(operand)
