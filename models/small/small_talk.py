"""Make questions that need no arithmetic, in any of the languages."""

import random

from models.small.languages import Language
from models.small.question import Question

_LETTERS = {"ru": "абвгдежзиклмнопрстуфхцчшя", "zh": "天地人日月水火山石田木禾马牛羊鸟鱼虫花草"}


def _word(rng: random.Random, language: Language, longest: int) -> str:
    """Return a made-up word in the language's script."""
    letters = _LETTERS.get(language.code, "abcdefghijklmnopqrstuvwxyz")
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, longest)))


def echo(rng: random.Random, language: Language) -> Question:
    """Ask to repeat a word, known or made up."""
    words = language.small_talk
    word = rng.choice(words.words) if rng.random() < 0.4 else _word(rng, language, 6)
    return Question("echo", language.code, rng.choice(words.echo).format(word), word, word, word)


def greet(rng: random.Random, language: Language) -> Question:
    """Greet."""
    words = language.small_talk
    text = rng.choice(words.greetings) + rng.choice(("!", ".", ""))
    return Question("greet", language.code, text, words.greeting_thought, words.greeting_answer, words.greeting_answer)


def who(rng: random.Random, language: Language) -> Question:
    """Ask the model what it is."""
    words = language.small_talk
    return Question("who", language.code, rng.choice(words.who), words.who_thought, words.who_answer, words.who_answer)


def scope(rng: random.Random, language: Language) -> Question:
    """Ask for something that the model does not know."""
    words = language.small_talk
    topic = rng.choice(words.topics)
    if rng.random() < 0.4:
        topic = " ".join(_word(rng, language, 8) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.15:
        topic = "".join(
            chr(rng.choice((0xE9, 0x3B1, 0x430, 0x4E2D, 0x1F600)) + rng.randint(0, 12))
            for _ in range(rng.randint(1, 4))
        )
    text = rng.choice(words.outside).format(topic)
    return Question("scope", language.code, text, words.outside_thought, words.outside_answer, words.outside_answer)
