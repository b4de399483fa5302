"""Model Runner V2's Triton kernels in Triton's interpreter, on the CPU, against plain statements of what they must do.

A program of its own (`python -m tests.simulated_gpu.kernels SEED CASES`), because Triton reads TRITON_INTERPRET at
import, and because vLLM's CPU build runs without Triton. Prints a JSON object: per check, rows compared and what
differs. Generated with drafts, reopened thoughts, prompts beyond the kernel's block of 1,024 tokens, mixed batches.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulated_gpu.with_triton import pretend_triton_works

OPEN, CLOSE, VOCABULARY = 3, 4, 64
SLOTS, LONGEST = 8, 3000


@dataclass
class Batch:
    """Requests in their slots: committed tokens, drafts, and a row per token that the model computes."""

    order: list[int]
    committed: dict[int, list[int]]
    drafts: dict[int, list[int]]
    prompts: dict[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> list[tuple[int, int]]:
        return [(slot, row) for slot in self.order for row in range(len(self.drafts[slot]) + 1)]

    @property
    def input_ids(self) -> list[int]:
        return [self.text(slot, row)[-1] for slot, row in self.rows]

    def text(self, slot: int, row: int) -> list[int]:
        """All tokens before what this row predicts."""
        return self.committed[slot] + self.drafts[slot][:row]


def batch(rng: random.Random, lengths: tuple[int, ...]) -> Batch:
    made = Batch(rng.sample(range(SLOTS), rng.randint(1, 5)), {}, {})
    for slot in made.order:
        length = rng.choice(lengths)
        text = [rng.randint(5, VOCABULARY - 1) for _ in range(length)]
        for _ in range(rng.randint(0, 3)):
            text[rng.randrange(length)] = rng.choice([OPEN, CLOSE])
        if rng.random() < 0.7:
            text[max(0, length - rng.randint(1, 6))] = OPEN
        made.committed[slot] = text
        made.prompts[slot] = rng.randint(1, length)
        kinds = [CLOSE, OPEN, *(rng.randint(5, VOCABULARY - 1) for _ in range(6))]
        made.drafts[slot] = [rng.choice(kinds) for _ in range(rng.randint(0, 3))]
    return made


def int32(values: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.int32)


def token_table(made: Batch) -> tuple[Any, Any]:
    """(token ids, lengths) by slot."""
    import torch

    ids, lengths = torch.zeros(SLOTS, LONGEST, dtype=torch.int32), torch.zeros(SLOTS, dtype=torch.int32)
    for slot, text in made.committed.items():
        ids[slot, : len(text)] = int32(text)
        lengths[slot] = len(text)
    return ids, lengths


def budget_rule(text: list[int], budget: int) -> int | None:
    """Penstock's: in an open thought of `budget` or more tokens the closing marker is next, whatever was drafted."""
    opened = max((at for at, token in enumerate(text) if token == OPEN), default=-1)
    closed = max((at for at, token in enumerate(text) if token == CLOSE), default=-1)
    if budget < 0 or opened <= closed:
        return None
    return CLOSE if len(text) - opened - 1 >= budget else None


def check_budget(rng: random.Random) -> tuple[int, list[Any]]:
    """Return what each row is forced to, over three steps whose drafts were accepted in part."""
    import torch
    from vllm.v1.worker.gpu.sample.thinking_budget import apply_thinking_budget

    made = batch(rng, (1, 2, 5, 30, 1025, 1100, 2500))
    budgets = torch.full((SLOTS,), -1, dtype=torch.int32)
    for slot in made.order:
        budgets[slot] = rng.choice([-1, 0, 1, 2, 3, 5, 8])
    scanned = [torch.full((SLOTS,), fill, dtype=torch.int32) for fill in (-1, -1, 0)]
    count, wrong = 0, []
    for _ in range(3):
        rows = made.rows
        logits = torch.zeros(len(rows), VOCABULARY)
        ids, lengths = token_table(made)
        slots, places = int32([slot for slot, _ in rows]), int32([row for _, row in rows])
        apply_thinking_budget(
            *(logits, int32(made.order), slots, budgets, ids, lengths, int32(made.input_ids), places),
            *(*scanned, int32([OPEN]), int32([CLOSE]), int32([CLOSE])),
        )
        for at, (slot, row) in enumerate(rows):
            forced = int(logits[at].argmax()) if logits[at].max() > 1 else None
            wanted = budget_rule(made.text(slot, row), int(budgets[slot]))
            count += 1
            if forced != wanted:
                wrong.append([int(budgets[slot]), made.text(slot, row)[-8:], forced, wanted])
        for slot in made.order:
            taken = rng.randint(0, len(made.drafts[slot]))
            made.committed[slot] += [*made.drafts[slot][:taken], rng.choice([OPEN, CLOSE, 9, 10, 11])]
            made.drafts[slot] = [rng.choice([OPEN, CLOSE, 9, 10]) for _ in range(rng.randint(0, 3))]
    return count, wrong


def check_bad_words(rng: random.Random) -> tuple[int, list[Any]]:
    """A word is banned where all but its last token stand at the end of the output; drafts count as output."""
    import torch
    from vllm.v1.worker.gpu.sample.bad_words import apply_bad_words

    made = batch(rng, (1, 2, 5, 30))
    words = {}
    for slot in made.order:
        words[slot] = [
            [rng.randint(5, VOCABULARY - 1) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(0, 4))
        ]
        output = made.text(slot, rng.randint(0, len(made.drafts[slot])))[made.prompts[slot] :]
        if output:  # a word that really ends here
            words[slot].append([*output[-rng.randint(1, 2) :], rng.randint(5, VOCABULARY - 1)])
    tokens, offsets = torch.zeros(SLOTS, 64, dtype=torch.int32), torch.zeros(SLOTS, 16, dtype=torch.int32)
    counts, prompts = torch.zeros(SLOTS, dtype=torch.int32), torch.zeros(SLOTS, dtype=torch.int32)
    for slot, own in words.items():
        flat = [token for word in own for token in word]
        tokens[slot, : len(flat)] = int32(flat)
        ends = [sum(map(len, own[: n + 1])) for n in range(len(own))]
        offsets[slot, 1 : len(own) + 1] = int32(ends)
        counts[slot], prompts[slot] = len(own), made.prompts[slot]
    rows = made.rows
    logits = torch.zeros(len(rows), VOCABULARY)
    ids, lengths = token_table(made)
    slots, places = int32([slot for slot, _ in rows]), int32([row for _, row in rows])
    most = max(len(own) for own in words.values())
    if most:
        apply_bad_words(
            *(logits, slots, tokens, offsets, counts, ids, prompts, lengths, int32(made.input_ids), places, most)
        )
    wrong = []
    for at, (slot, row) in enumerate(rows):
        output = made.text(slot, row)[made.prompts[slot] :]
        wanted = {word[-1] for word in words[slot] if output[len(output) - len(word) + 1 :] == word[:-1]}
        banned = set(logits[at].isinf().nonzero().flatten().tolist())
        if banned != wanted:
            wrong.append([words[slot], output[-4:], sorted(banned), sorted(wanted)])
    return len(rows), wrong


def reject(made: Batch, target: Any, warm: dict[int, float], seeds: list[int]) -> tuple[Any, Any]:
    """vLLM's rejection sampler over one-hot drafts, as its MTP proposes them: (tokens, how many) by request."""
    import torch
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    rows = made.rows
    starts = [0]
    for slot in made.order:
        starts.append(starts[-1] + len(made.drafts[slot]) + 1)
    temperatures = torch.zeros(SLOTS)
    for slot, temperature in warm.items():
        temperatures[slot] = temperature
    return rejection_sample(  # type: ignore[no-any-return]
        target_logits=target,
        draft_logits=None,
        draft_sampled=torch.tensor(made.input_ids),
        cu_num_logits=int32(starts),
        pos=torch.tensor([len(made.text(slot, row)) for slot, row in rows]),
        idx_mapping=int32(made.order),
        expanded_idx_mapping=int32([slot for slot, _ in rows]),
        expanded_local_pos=int32([row for _, row in rows]),
        temperature=temperatures,
        seed=torch.tensor(seeds),
        num_speculative_steps=3,
    )


def check_rejection(rng: random.Random) -> tuple[int, list[Any]]:
    """Greedy, and sampled where one token is certain (as at a budget): drafts hold up to the first that differs."""
    import torch

    made = batch(rng, (1, 5, 30))
    warm = {slot: rng.choice([0.0, 0.7, 1.0]) for slot in made.order}
    rows = made.rows
    chosen = []
    for slot, row in rows:
        drafts = made.drafts[slot]
        agrees = row < len(drafts) and rng.random() < 0.7
        chosen.append(drafts[row] if agrees else rng.randrange(VOCABULARY))
    target = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
    for at, token in enumerate(chosen):
        target[at, token] = 1e9
    tokens, counts = reject(made, target, warm, [rng.randrange(1 << 30) for _ in range(SLOTS)])
    wrong, at = [], 0
    for number, slot in enumerate(made.order):
        drafts = made.drafts[slot]
        own = chosen[at : at + len(drafts) + 1]
        at += len(own)
        kept = next((n for n, draft in enumerate(drafts) if draft != own[n]), len(drafts))
        got = tokens[number, : int(counts[number])].tolist()
        if got != own[: kept + 1]:
            wrong.append([warm[slot], drafts, own, got])
    return len(made.order), wrong


def check_spread(rng: random.Random) -> tuple[int, list[Any]]:
    """Sampled with a draft, tokens come as the model's own probabilities say: 400 seeds, within five deviations."""
    import torch

    probabilities = [0.5, 0.3, 0.15, 0.05]
    target = torch.full((2 * SLOTS, VOCABULARY), -math.inf)
    target[:, 5:9] = torch.tensor(probabilities).log()
    draws, seen = 50, [0, 0, 0, 0]
    for _ in range(draws):
        made = Batch(list(range(SLOTS)), {slot: [9] for slot in range(SLOTS)}, {slot: [6] for slot in range(SLOTS)})
        tokens, _ = reject(
            made, target, dict.fromkeys(range(SLOTS), 1.0), [rng.randrange(1 << 30) for _ in range(SLOTS)]
        )
        for token in tokens[:, 0].tolist():
            seen[token - 5] += 1
    total = draws * SLOTS
    wrong = [
        [share, count / total]
        for share, count in zip(probabilities, seen, strict=True)
        if abs(count - share * total) > 5 * math.sqrt(total * share * (1 - share))
    ]
    return total, wrong


CHECKS: dict[str, tuple[Callable[[random.Random], tuple[int, list[Any]]], float]] = {
    "budget": (check_budget, 1.0),
    "bad_words": (check_bad_words, 1.0),
    "rejection": (check_rejection, 1.0),
    "spread": (check_spread, 0.0),
}
"""Each check, and the share of the cases that it runs; 0 is once."""


def main(seed: int, cases: int) -> None:
    pretend_triton_works()
    found = {}
    for name, (check, share) in CHECKS.items():
        rng = random.Random(seed)
        rows, wrong = 0, []
        for _ in range(max(1, int(cases * share))):
            more, differ = check(rng)
            rows += more
            wrong += differ
        found[name] = {"rows": rows, "wrong": wrong[:5]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
