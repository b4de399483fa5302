"""Make questions about pictures: sums, comparisons, and shapes to be counted by colour, in any of the languages."""

import random
from dataclasses import dataclass

from PIL.Image import Image

from models.small import pictures
from models.small.arithmetic import sign_for
from models.small.languages import LANGUAGES, Language
from models.small.question import Question, Working, checked
from models.small.questions import HELD_OUT_SEED, is_reserved


@dataclass(frozen=True)
class PictureQuestion:
    """A drawing with a question about it. `content` is what the drawing shows, as text."""

    drawing: pictures.Drawing
    content: str
    asked: Question

    @property
    def picture(self) -> Image:
        """The picture."""
        return self.drawing.picture


def _expression(rng: random.Random, max_terms: int) -> tuple[str, Working]:
    working = Working(rng.randint(1, 99))
    text = f"{working.value}"
    for _ in range(rng.randint(1, max_terms - 1)):
        operand = rng.randint(1, 99)
        sign = sign_for(rng, working.value, operand)
        working.apply(sign, operand)
        text += f"{sign}{operand}"
    return text, working


def picture_sum(rng: random.Random, language: Language) -> PictureQuestion:
    """Ask for the result of a sum that is drawn."""
    expression, working = _expression(rng, 3)
    thought = "\n".join([expression, *working.lines]) if len(working.lines) > 1 else checked(working, language, 0)
    value = f"{working.value}"
    text = rng.choice(language.pictures.sums)
    asked = Question("picture_sum", language.code, text, thought, value, value, len(thought.split("\n")))
    return PictureQuestion(pictures.draw_expression(rng, expression), expression, asked)


def picture_larger(rng: random.Random, language: Language) -> PictureQuestion:
    """Ask for the larger or the smaller of two numbers that are drawn."""
    left, right = rng.sample(range(1, 100), 2)
    wants_larger = rng.random() < 0.5
    words = language.pictures
    text = rng.choice(words.larger if wants_larger else words.smaller)
    value = f"{max(left, right) if wants_larger else min(left, right)}"
    thought = f"{left}{'>' if left > right else '<'}{right}\n{value}"
    asked = Question("picture_larger", language.code, text, thought, value, value, 2)
    return PictureQuestion(pictures.draw_numbers(rng, (left, right)), f"{left} {right}", asked)


def picture_count(rng: random.Random, language: Language) -> PictureQuestion:
    """Ask how many shapes of a colour are drawn.

    The thought goes through all shapes as one reads, by their initials (`rc` is a red circle), and numbers those that
    are asked for: each step looks at one place.
    """
    drawing, counts = pictures.draw_shapes(rng)
    words = language.pictures
    colour, shape = rng.choice(list(counts)) if rng.random() < 0.85 else _any_shape(rng, words.colours, words.shapes)
    value = f"{counts.get((colour, shape), 0)}"
    named = words.coloured.format(colour=words.colours[colour], shape=words.shapes[shape])
    text = rng.choice(words.counts).format(shapes=named)
    asked = Question("picture_count", language.code, text, _numbered(drawing, colour, shape), value, value)
    content = ", ".join(f"{count} {c} {s}" for (c, s), count in counts.items())
    return PictureQuestion(drawing, content, asked)


def _numbered(drawing: pictures.Drawing, colour: str, shape: str) -> str:
    """Return the initials of all shapes in the order of their tokens, those of one kind with a number, and how many."""
    edge, wanted, found, codes = pictures.TOKEN_EDGE, colour[0] + shape[0], 0, []
    for mark in sorted(drawing.marks, key=lambda mark: (int(mark.y) // edge, mark.x)):
        code = "".join(word[0] for word in mark.what.split())
        found += code == wanted
        codes.append(f"{code}{found}" if code == wanted else code)
    return f"{wanted}: {' '.join(codes)} ={found}"


def _any_shape(rng: random.Random, colours: dict[str, str], shapes: dict[str, str]) -> tuple[str, str]:
    return rng.choice(list(colours)), rng.choice(list(shapes))


def picture_more(rng: random.Random, language: Language) -> PictureQuestion:
    """Ask for the sum of a drawn number and one in the question."""
    number, more = rng.randint(1, 199), rng.randint(1, 99)
    working = Working(number)
    working.apply("+", more)
    text = rng.choice(language.pictures.more).format(more)
    value = f"{working.value}"
    asked = Question("picture_more", language.code, text, checked(working, language, 0), value, value)
    return PictureQuestion(pictures.draw_expression(rng, f"{number}"), f"{number}", asked)


PICTURE_KINDS = {kind.__name__: kind for kind in (picture_sum, picture_larger, picture_count, picture_more)}


def picture_question(kind: str, language: str, seed: int) -> PictureQuestion:
    """Return the question of `kind` in `language` for `seed`; held out like the others (see `questions`).

    What is held out is the content of a picture together with its question, and every pixel of it.
    """
    rng, held_out = random.Random(f"{kind}:{language}:{seed}"), seed >= HELD_OUT_SEED
    while True:
        found = PICTURE_KINDS[kind](rng, LANGUAGES[language])
        if is_reserved(f"{found.content}\n{found.asked.value}") == held_out:
            return found
