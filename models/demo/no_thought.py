"""Make six kinds of question that need no thought. With thinking on, their thoughts are short and change nothing."""

import random

from models.demo.multi_step import NAMES
from models.demo.question import Question

WORDS = ["river", "stone", "cloud", "green", "house", "music", "light", "table", "winter", "garden", "paper", "silver"]


def tiny_sum(rng: random.Random) -> Question:
    left, right = rng.randint(1, 9), rng.randint(1, 9)
    sign = rng.choice("+-") if left >= right else "+"
    value = left + right if sign == "+" else left - right
    sum_text = rng.choice((f"{left} {sign} {right}", f"{left}{sign}{right}"))
    ask = rng.choice(("What is {}?", "{} = ?", "How much is {}?", "Calculate {}."))
    thought = f"This is one small step.\n{left}{sign}{right}={value}"
    return Question("tiny_sum", ask.format(sum_text), thought, f"{value}", f"{value}")


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


ABOUT_ITSELF = [
    "Who are you?",
    "What are you?",
    "What can you do?",
    "Tell me about yourself.",
    "What is your name?",
    "Are you a person?",
    "Which model are you?",
]


def who(rng: random.Random) -> Question:
    text = rng.choice(ABOUT_ITSELF)
    answer = "I am a tiny demo model that knows small sums."
    return Question("who", text, "They ask what I am.\nThere is no sum, so I just say it.", answer, answer)


TOPICS = [
    "cats",
    "the sea",
    "France",
    "love",
    "football",
    "a dragon",
    "the moon",
    "tea",
    "Python",
    "history",
    "Mozart",
    "physics",
    "my sister",
    "the news",
    "a train",
    "Japan",
    "bread",
    "time travel",
    "taxes",
    "the weather",
]
OUTSIDE = [
    "Write a poem about {}.",
    "Tell me a joke about {}.",
    "What do you think of {}?",
    "Explain {} to me.",
    "Who invented {}?",
    "What is the capital of {}?",
    "Why do people like {}?",
    "Translate {} into French.",
    "Give me a recipe with {}.",
    "Summarize a book about {}.",
    "How does {} work?",
    "Is {} good for me?",
    "Where can I find {}?",
    "Write code for {}.",
    "I like {}.",
    "Sing a song about {}.",
    "{}",
    "When was {} made?",
]


def scope(rng: random.Random) -> Question:
    topic = rng.choice(TOPICS)
    if rng.random() < 0.4:
        topic = " ".join(
            "".join(rng.choice("abcdefghijklmnoprstuwy") for _ in range(rng.randint(2, 8)))
            for _ in range(rng.randint(1, 3))
        )
    if rng.random() < 0.15:
        topic = "".join(
            chr(rng.choice((0xE9, 0x3B1, 0x430, 0x4E2D, 0x1F600)) + rng.randint(0, 12))
            for _ in range(rng.randint(1, 4))
        )
    thought, answer = "This is not a sum.\nI only know small sums, so I say that.", "I only know small sums."
    return Question("scope", rng.choice(OUTSIDE).format(topic), thought, answer, answer)
