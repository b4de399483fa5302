"""Write the held-out questions that ship with the service, for `penstock eval`.

    python -m models.demo.question_file [--out FILE]

Twelve kinds have equal parts, so half of the questions need no thought. Seeds start at FIRST_SEED. They are held out
(never trained on), and differ from those of training's own evaluation. The kinds that need no thought have few texts,
so training has seen many of them. Texts of the others are never in training data (see `questions.question`).
"""

import argparse
import json
import random
from pathlib import Path

from models.demo.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, question
from models.demo.tokenizer import SYSTEM_PROMPTS

SHIPPED = Path("bench/penstock_bench/evaluation/questions.jsonl")
FIRST_SEED = HELD_OUT_SEED + 1_000_000
QUESTIONS_PER_KIND = 50
SYSTEM_SHARE = 0.4
"""Share of the questions with a system prompt, as in training."""


def entries(kind: str) -> list[dict]:
    """Return distinct questions of one kind: seeds are drawn until enough differ in text or system prompt."""
    found: dict[tuple, dict] = {}
    seed = FIRST_SEED
    while len(found) < QUESTIONS_PER_KIND:
        rng = random.Random(f"system:{kind}:{seed}")
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else None
        asked = question(kind, seed)
        entry = {
            "id": f"{kind}-{seed}",
            "kind": kind,
            "question": asked.text,
            "system": system,
            "answer": asked.value,
            "needs_thought": kind in MULTI_STEP,
        }
        found.setdefault((system, asked.text), entry)
        seed += 1
    return list(found.values())


def text() -> str:
    """Return the whole file, one question per line."""
    lines = [json.dumps(entry, ensure_ascii=False) for kind in KINDS for entry in entries(kind)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.parse_args().out.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
