"""Measure accuracy by kind and thinking budget, and draft acceptance, with teacher-forced passes.

The question determines the right thought. If each argmax equals the canonical token, greedy decoding writes exactly
this text, so one forward pass replaces decoding token by token. The result is a lower bound: a wrong step that still
leads to the right answer counts as wrong.

    python -m models.demo.evaluate --checkpoint RUN.pt [--questions 100]
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.demo.config import IM_END, THINK_CLOSE, text_config
from models.demo.data import KINDS, PAD, Encoder, Example, held_out, pad
from models.demo.language_model import DemoModel
from models.demo.question import Question
from models.demo.questions import MULTI_STEP
from models.demo.tokenizer import build_tokenizer

BUDGETS: tuple[int | None, ...] = (0, 8, 16, 24, 32, 48, None)
"""Budgets in thought tokens; 0 is the template without thought (FAST), None is no limit."""


@dataclass
class Score:
    """Counts over questions (`asked`, `right`), thought tokens and drafts (by position)."""

    asked: int = 0
    right: int = 0
    thought_tokens: int = 0
    drafted: int = 0
    accepted: tuple[int, int] = (0, 0)


def transcript(encoder: Encoder, asked: Question, budget: int | None) -> tuple[Example, int]:
    """Return the canonical text under `budget` and its thought tokens.

    Weights mark the tokens that the model must write.
    """
    out = Example()
    out.add(encoder.prompt(asked, None, [], thinking=budget != 0))
    spent = 0
    if budget != 0:
        thought = encoder.thought(asked)
        spent = len(thought) if budget is None else min(budget, len(thought))
        out.add(thought[:spent], 1.0)
        natural = spent == len(thought)
        out.add([THINK_CLOSE], 1.0 if natural else 0.0)
        out.add(encoder.blank_line, 1.0)
    out.add([*encoder.encode(asked.answer), IM_END], 1.0)
    return out, spent


@torch.no_grad()
def score(model: DemoModel, encoder: Encoder, questions: Iterable[Question], budget: int | None) -> Score:
    """Score `questions` in one padded batch."""
    rows = [transcript(encoder, asked, budget) for asked in questions]
    ids = torch.tensor(pad([row.ids for row, _ in rows], PAD))
    spoken = torch.tensor(pad([row.weights for row, _ in rows], 0.0)) > 0
    hidden, _ = model.model(ids)
    right = (model.lm_head(hidden[:, :-1]).argmax(-1) == ids[:, 1:]) | ~spoken[:, 1:]
    drafts, _ = model.drafts(ids, hidden, 2)
    hits = [(model.lm_head(out[:, :-1]).argmax(-1) == ids[:, 2:]) & spoken[:, 2:] for out in drafts]
    # A second draft counts only after an accepted first one, as in the engine.
    both = hits[1][:, 1:] & hits[0][:, :-1]
    return Score(
        len(rows),
        int(right.all(1).sum()),
        sum(spent for _, spent in rows),
        int(spoken[:, 2:].sum()),
        (int(hits[0].sum()), int(both.sum())),
    )


def evaluate(model: DemoModel, encoder: Encoder, count: int, budgets: tuple[int | None, ...] = BUDGETS) -> dict:
    """Return accuracy per kind and budget, mean thought tokens, and acceptance by draft position without a limit."""
    table: dict[str, dict[str, float]] = {}
    thought_tokens, drafted, accepted = {}, 0, [0, 0]
    for kind in KINDS:
        asked = held_out(kind, count)
        for budget in budgets if kind in MULTI_STEP else (0, None):
            found = score(model, encoder, asked, budget)
            table.setdefault(kind, {})[str(budget)] = round(found.right / found.asked, 3)
            if budget is None:
                thought_tokens[kind] = round(found.thought_tokens / found.asked, 1)
                drafted += found.drafted
                accepted = [total + new for total, new in zip(accepted, found.accepted, strict=True)]
    mean = {
        str(budget): round(sum(table[kind][str(budget)] for kind in MULTI_STEP) / len(MULTI_STEP), 3)
        for budget in budgets
    }
    return {
        "multi_step_mean": mean,
        "by_kind": table,
        "thought_tokens": thought_tokens,
        "draft_acceptance": [round(hits / drafted, 3) for hits in accepted],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100, help="held-out questions per kind")
    arguments = parser.parse_args()
    model = DemoModel(text_config())
    model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True)["model"])
    print(json.dumps(evaluate(model.eval(), Encoder(build_tokenizer()), arguments.questions), indent=1))


if __name__ == "__main__":
    main()
