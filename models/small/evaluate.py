"""Measure accuracy by kind, language and budget, and draft acceptance, with teacher-forced passes.

The question determines the right thought. If each argmax equals the canonical token, greedy decoding writes exactly
this text, so one forward pass replaces decoding token by token. The result is a lower bound: a wrong step that still
leads to the right answer counts as wrong.

    python -m models.small.evaluate --checkpoint RUN.pt [--questions 40]
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.small.collate import collate
from models.small.config import IM_END, THINK_CLOSE, model_config
from models.small.encoding import Encoder, Example
from models.small.language_model import SmallModel
from models.small.languages import LANGUAGES
from models.small.picture_questions import PICTURE_KINDS, PictureQuestion, picture_question
from models.small.pictures import to_patches
from models.small.positions import picture_tokens
from models.small.question import Question
from models.small.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, held_out
from models.small.tokenizer import load_tokenizer
from models.small.tools import TASKS, Task, task

BUDGETS: tuple[int | None, ...] = (0, 16, 32, None)
"""Budgets in thought tokens; 0 is the template without thought (FAST), None is no limit."""
TOKENS_PER_PASS = 8192


@dataclass
class Score:
    """Counts over conversations (`asked`, `right`) and drafts (by position)."""

    asked: int = 0
    right: int = 0
    drafted: int = 0
    accepted: tuple[int, int] = (0, 0)

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.asked + other.asked,
            self.right + other.right,
            self.drafted + other.drafted,
            (self.accepted[0] + other.accepted[0], self.accepted[1] + other.accepted[1]),
        )

    @property
    def share(self) -> float:
        """The share of right ones."""
        return round(self.right / self.asked, 3)


def question_row(encoder: Encoder, asked: Question, budget: int | None) -> Example:
    """Return the canonical text under `budget`. Weights mark the tokens that the model must write."""
    out = Example()
    out.add([*encoder.earlier(asked.earlier), *encoder.user(asked.text), *encoder.generation_prompt(budget != 0)])
    if budget != 0:
        thought = encoder.thought(asked.thought)
        spent = len(thought) if budget is None else min(budget, len(thought))
        out.add(thought[:spent], 1.0)
        out.add([THINK_CLOSE], 1.0 if spent == len(thought) else 0.0)
        out.add(encoder.blank_line, 1.0)
    out.add([*encoder.encode(asked.answer), IM_END], 1.0)
    return out


def picture_row(encoder: Encoder, found: PictureQuestion, thinking: bool) -> Example:
    """Return a question about a picture with its thought, or without, and its answer."""
    patches, grid = to_patches(found.picture)
    out = Example(pictures=[(patches, grid)])
    out.add([*encoder.user(found.asked.text, picture_tokens(grid)), *encoder.generation_prompt(thinking)])
    if thinking:
        out.add([*encoder.thought(found.asked.thought), THINK_CLOSE, *encoder.blank_line], 1.0)
    out.add([*encoder.encode(found.asked.answer), IM_END], 1.0)
    return out


def task_rows(encoder: Encoder, asked: Task, thinking: bool) -> tuple[Example, Example | None]:
    """Return the turn that must make the right calls (or none), and the turn that reads the results."""
    first = Example()
    first.add([*encoder.system(None, asked.tools), *encoder.user(asked.text), *encoder.generation_prompt(thinking)])
    if thinking:
        first.add([*encoder.thought(asked.thought), THINK_CLOSE, *encoder.blank_line], 1.0)
    if not asked.calls:
        first.add([*encoder.encode(asked.answer), IM_END], 1.0)
        return first, None
    first.add([*encoder.calls(asked.calls), IM_END], 1.0)
    second = Example()
    second.add([*first.ids, *encoder.newline, *encoder.results(asked.results), *encoder.generation_prompt(thinking)])
    if thinking:
        second.add([*encoder.thought(asked.result_thought), THINK_CLOSE, *encoder.blank_line], 1.0)
    second.add([*encoder.encode(asked.answer), IM_END], 1.0)
    return first, second


@torch.no_grad()
def score(model: SmallModel, rows: Iterable[Example]) -> Score:
    """Score rows of text in padded batches."""
    total, group = Score(), []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if group and (len(group) + 1) * len(row.ids) > TOKENS_PER_PASS:
            total, group = total + _score_batch(model, group), []
        group.append(row)
    return total + _score_batch(model, group) if group else total


def _score_batch(model: SmallModel, rows: list[Example]) -> Score:
    batch = collate(rows).to(model.lm_head.weight.device)
    ids, spoken = batch.ids, batch.weights > 0
    states = model(ids, batch.positions, batch.pictures)
    right = (model.lm_head(states.hidden[:, :-1]).argmax(-1) == ids[:, 1:]) | ~spoken[:, 1:]
    drafts, _ = model.drafts(states, 2, batch.positions)
    hits = [(model.lm_head(out[:, :-1]).argmax(-1) == ids[:, 2:]) & spoken[:, 2:] for out in drafts]
    # A second draft counts only after an accepted first one, as in the engine.
    both = hits[1][:, 1:] & hits[0][:, :-1]
    return Score(len(rows), int(right.all(1).sum()), int(spoken[:, 2:].sum()), (int(hits[0].sum()), int(both.sum())))


def evaluate(model: SmallModel, encoder: Encoder, count: int, pictures: bool) -> dict:
    """Return accuracy by kind, language and budget, of functions and pictures, and draft acceptance.

    `count` questions of each kind are asked.
    """
    by_kind: dict[str, dict[str, float]] = {}
    by_language = {language: Score() for language in LANGUAGES}
    total = Score()
    for kind in KINDS:
        for budget in BUDGETS if kind in MULTI_STEP else (0, None):
            whole = Score()
            for language in LANGUAGES:
                asked = held_out(kind, language, max(1, count // len(LANGUAGES)))
                found = score(model, [question_row(encoder, one, budget) for one in asked])
                whole += found
                if budget is None:
                    by_language[language] += found
                    total += found
            by_kind.setdefault(kind, {})[str(budget)] = whole.share
    return {
        "by_kind": by_kind,
        "by_language": {language: one.share for language, one in by_language.items()},
        "functions": evaluate_functions(model, encoder, count),
        "pictures": evaluate_pictures(model, encoder, count) if pictures else {},
        "draft_acceptance": [round(hits / total.drafted, 3) for hits in total.accepted],
    }


def evaluate_functions(model: SmallModel, encoder: Encoder, count: int) -> dict[str, dict[str, float]]:
    """Return by kind the shares of right calls and of right last answers, with a thought and without."""
    table: dict[str, dict[str, float]] = {}
    for kind in TASKS:
        asked = [
            task(kind, language, HELD_OUT_SEED + index)
            for language in LANGUAGES
            for index in range(max(1, count // len(LANGUAGES)))
        ]
        for thinking in (False, True):
            rows = [task_rows(encoder, one, thinking) for one in asked]
            name = "thinking" if thinking else "fast"
            table.setdefault(kind, {})[f"call_{name}"] = score(model, [first for first, _ in rows]).share
            answers = [second for _, second in rows if second is not None]
            if answers:
                table[kind][f"answer_{name}"] = score(model, answers).share
    return table


def evaluate_pictures(model: SmallModel, encoder: Encoder, count: int) -> dict[str, float]:
    """Return the share of right thoughts and answers about held-out pictures, by kind."""
    table = {}
    for kind in PICTURE_KINDS:
        asked = [
            picture_question(kind, language, HELD_OUT_SEED + index)
            for language in LANGUAGES
            for index in range(max(1, count // len(LANGUAGES)))
        ]
        table[kind] = score(model, [picture_row(encoder, one, True) for one in asked]).share
    return table


def main() -> None:
    """Evaluate a checkpoint of a training run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=60, help="held-out questions per kind")
    arguments = parser.parse_args()
    model = SmallModel(model_config())
    model.load_state_dict(torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)["model"])
    print(json.dumps(evaluate(model.eval(), Encoder(load_tokenizer()), arguments.questions, True), indent=1))


if __name__ == "__main__":
    main()
