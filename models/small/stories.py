"""Make questions about amounts, people and prices, in any of the languages."""

import random

from models.small.arithmetic import sign_for
from models.small.languages import Language
from models.small.question import Question, Working, checked


def units(rng: random.Random, language: Language) -> Question:
    """Ask for two or three amounts in their smaller unit."""
    big, small, factor, max_big = rng.choice(language.stories.units)
    working, parts = Working(0), []
    for index in range(rng.randint(2, 3)):
        bigs, smalls = rng.randint(1, max_big), rng.randint(1, factor - 1)
        if index and rng.random() < 0.4:
            parts.append(language.count(smalls, small))
        else:
            gap = "" if language.code == "zh" else " "
            parts.append(f"{language.count(bigs, big)}{gap}{language.count(smalls, small)}")
            product = working.side_product(bigs, factor)
            if working.value:
                working.apply("+", product)
            else:
                working.value = product
        working.apply("+", smalls)
    text = rng.choice(language.arithmetic.total_units).format(unit=small[-1], amounts=language.listed(parts))
    answer = language.count(working.value, small)
    thought = checked(working, language, 1)
    return Question("units", language.code, text, thought, answer, f"{working.value}", len(working.lines))


def _event(rng: random.Random, language: Language, working: Working) -> str:
    words, operand = language.stories, rng.randint(3, 40)
    if working.value <= 250 and rng.random() < 0.3:
        bags, each = rng.randint(2, 9), rng.randint(2, 12)
        working.apply("+", working.side_product(bags, each))
        sentence, forms = rng.choice(words.bags)
        return sentence.format(count=bags, bags=forms[language.plural(bags)], each=each)
    sign = sign_for(rng, working.value, operand) if working.value + operand <= 399 else "-"
    working.apply(sign, operand)
    return rng.choice(words.gains if sign == "+" else words.losses).format(operand)


def story(rng: random.Random, language: Language) -> Question:
    """Ask how many things a person has after three or four events."""
    words = language.stories
    (name, possessive), things = rng.choice(words.names), rng.choice(words.things)
    working = Working(rng.randint(8, 80))
    people = {"name": name, "of": possessive}
    opening = words.has.format(amount=language.count(working.value, things), **people)
    events = [_event(rng, language, working) for _ in range(rng.randint(3, 4))]
    joined = "，".join(events) if language.code == "zh" else language.listed(events)
    told = words.tells.format(events=joined, **people)
    ask = rng.choice(words.asks).format(things=things[-1], **people)
    gap = "" if language.code == "zh" else " "
    answer = words.has.format(amount=language.count(working.value, things), **people)
    text = gap.join((opening, told, ask))
    thought = checked(working, language, 2)
    return Question("story", language.code, text, thought, answer, f"{working.value}", len(working.lines))


def shop(rng: random.Random, language: Language) -> Question:
    """Ask for the price of several things, or for the change."""
    words = language.stories
    things = rng.sample(words.things, rng.randint(2, 3))
    prices = [rng.randint(2, 12) for _ in things]
    counts = [rng.randint(2, 9) for _ in things]
    working = Working(0)
    products = [working.side_product(count, price) for count, price in zip(counts, prices, strict=True)]
    working.value = products[0]
    for product in products[1:]:
        working.apply("+", product)
    offers = [
        words.price.format(things=thing[min(1, len(thing) - 1)], price=language.count(price, words.money))
        for thing, price in zip(things, prices, strict=True)
    ]
    amounts = language.listed([language.count(count, thing) for count, thing in zip(counts, things, strict=True)])
    if rng.random() < 0.5:
        ask = rng.choice(words.costs).format(amounts=amounts)
        answer = words.cost_answer.format(language.count(working.value, words.money))
    else:
        paid = next(note for note in (50, 100, 200, 300, 400) if note > working.value)
        name = rng.choice(words.names)[0]
        ask = words.change.format(name=name, amounts=amounts, paid=language.count(paid, words.money))
        total, working.value = working.value, paid
        working.apply("-", total)
        answer = words.change_answer.format(language.count(working.value, words.money))
    stop, gap = ("。", "") if language.code == "zh" else (".", " ")
    offer = ("，" if language.code == "zh" else ", ").join(offers)
    text = f"{offer[0].upper()}{offer[1:]}{stop}{gap}{ask}"
    thought = checked(working, language, 1)
    return Question("shop", language.code, text, thought, answer, f"{working.value}", len(working.lines))
