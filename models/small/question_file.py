"""Write held-out questions of the small model for `penstock eval`.

    python -m models.small.question_file                                 the text questions that ship with the service
    python -m models.small.question_file --out DIR [--questions 13]      text.jsonl, tools.jsonl and pictures.jsonl

All have equal parts of each kind and language; follow-ups are among the text questions. Seeds start at FIRST_SEED,
which training never draws, nor its own evaluation. Texts of the kinds that need steps are never in training data.
"""

import argparse
import base64
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

from models.small.languages import LANGUAGES
from models.small.picture_questions import PICTURE_KINDS, picture_question
from models.small.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, question
from models.small.tokenizer import SYSTEM_PROMPTS
from models.small.tools import TASKS, task

SHIPPED = Path("bench/penstock_bench/evaluation/questions.jsonl")
SHIPPED_QUESTIONS = 7
"""Shipped questions of each kind and language, or as many as differ."""
FIRST_SEED = HELD_OUT_SEED + 1_000_000
SYSTEM_SHARE = 0.4
"""Share of the questions with a system prompt, as in training."""
Maker = Callable[[str, str, int], dict]


def text_entry(kind: str, language: str, seed: int) -> dict:
    """Return a question without a picture and without functions."""
    asked = question(kind, language, seed)
    made = _entry(kind, language, seed, asked.text, asked.value) | {"needs_thought": kind in MULTI_STEP}
    return made | ({"earlier": [list(turn) for turn in asked.earlier]} if asked.earlier else {})


def tools_entry(kind: str, language: str, seed: int) -> dict:
    """Return a question with functions, the right calls, and their results."""
    asked = task(kind, language, seed)
    # Evaluation finds a number in a reply; with a word, it compares the whole reply.
    expected = asked.value if asked.value.isdigit() else asked.answer
    return _entry(kind, language, seed, asked.text, expected) | {
        "tools": list(asked.tools),
        "calls": [{"name": call.name, "arguments": call.arguments} for call in asked.calls],
        "results": list(asked.results),
    }


def picture_entry(kind: str, language: str, seed: int) -> dict:
    """Return a question about a picture."""
    found = picture_question(kind, language, seed)
    picture = io.BytesIO()
    found.picture.save(picture, "PNG")
    made = _entry(kind, language, seed, found.asked.text, found.asked.value)
    return made | {"image": base64.b64encode(picture.getvalue()).decode()}


def _entry(kind: str, language: str, seed: int, text: str, value: str) -> dict:
    rng = random.Random(f"system:{kind}:{language}:{seed}")
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else None
    made = {"id": f"{kind}-{language}-{seed}", "kind": kind, "language": language, "question": text, "system": system}
    return made | {"answer": value, "needs_thought": False}


FILES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "text.jsonl": (text_entry, tuple(KINDS)),
    "tools.jsonl": (tools_entry, tuple(TASKS)),
    "pictures.jsonl": (picture_entry, tuple(PICTURE_KINDS)),
}
"""How the entries of each file are made, and of which kinds."""


def content(name: str, count: int) -> str:
    """Return a file of FILES, one question per line, with `count` distinct ones of each kind and language.

    Seeds are drawn until enough differ in what is asked; a kind with fewer texts than that has all its texts.
    """
    make, kinds = FILES[name]
    lines = []
    for kind in kinds:
        for language in LANGUAGES:
            found: dict[str, str] = {}
            for seed in range(FIRST_SEED, FIRST_SEED + 40 * count):
                made = make(kind, language, seed)
                asked = json.dumps({key: value for key, value in made.items() if key != "id"}, ensure_ascii=False)
                found.setdefault(asked, json.dumps(made, ensure_ascii=False))
                if len(found) == count:
                    break
            lines += found.values()
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for all three files; without it, the shipped file is written")
    parser.add_argument("--questions", type=int, default=13, help="of each kind and language")
    arguments = parser.parse_args()
    if arguments.out is None:
        SHIPPED.write_text(content("text.jsonl", SHIPPED_QUESTIONS), encoding="utf-8")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (arguments.out / name).write_text(content(name, arguments.questions), encoding="utf-8")


if __name__ == "__main__":
    main()
