"""Train the small model with its MTP layer, in two stages.

python -m models.small.train [--stage text|all] [--run-dir RUN] [--steps N | --train-minutes N] [--fresh]

The stage `text` trains the trunk and the draft layer on questions and functions. The stage `all` adds pictures, when
`models.small.tower` has trained the tower. It begins with other weights (`--begin-with`). Each has a checkpoint and a
log of its own in the run folder. A run that was interrupted, or that ended at `--minutes`, goes on where it stopped.

It uses plain PyTorch, in bfloat16 autocast over float32 weights; the engine uses bfloat16, too. `--device cuda` uses a
GPU, with larger batches: some 30 minutes on one do what takes a CPU days.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.small.batches import POOL_SIZE, pool_batches, with_next_seed
from models.small.collate import Batch, collate
from models.small.config import model_config
from models.small.encoding import Encoder, Example
from models.small.evaluate import evaluate
from models.small.examples import any_example, example
from models.small.language_model import SmallModel
from models.small.questions import HELD_OUT_SEED
from models.small.run import DRAFT_WEIGHTS, Run, draft_losses, learning_rate, weighted_loss
from models.small.tokenizer import load_tokenizer

WARM_UP_STEPS = 100
MINUTES_BETWEEN_SAVES = 3.0


STAGES: dict[str, Callable[[int, Encoder], Example]] = {"text": example, "all": any_example}
"""What makes the examples of each stage."""


class Pools(Dataset[list[Batch]]):
    """Pools of training batches. Item n is the pool that begins n pools after seed `first_seed`."""

    def __init__(self, make: Callable[[int], Example], first_seed: int, tokens_per_batch: int) -> None:
        self._make, self._first_seed, self._tokens_per_batch = make, first_seed, tokens_per_batch

    def __getitem__(self, index: int) -> list[Batch]:
        start = self._first_seed + index * POOL_SIZE
        return [collate(group) for group in pool_batches(self._make, start, self._tokens_per_batch)]

    def __len__(self) -> int:
        return (HELD_OUT_SEED - self._first_seed) // POOL_SIZE


def training_batches(pools: Pools, first_seed: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """Return (next seed, batch) in an order that does not depend on the number of worker processes.

    A resumed run continues at the next seed, which changes after a whole pool.
    """
    return with_next_seed(DataLoader(pools, batch_size=None, num_workers=workers), first_seed)


def losses_of(model: SmallModel, batch: Batch, drafts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss of a batch and its parts: answer (next token), one per draft, balance (1 is even)."""
    ids, weights = batch.ids, batch.weights
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        states = model(ids, batch.positions, batch.pictures)
        balance = states.balance
        total = weighted_loss(model.lm_head, states.hidden[:, :-1], ids[:, 1:], weights[:, 1:])
        parts = {"loss": total.detach(), "balance": balance.detach()}
        if drafts:
            outs, draft_balance = model.drafts(states, drafts, batch.positions)
            balance = balance + draft_balance
            for index, draft in enumerate(draft_losses(model.lm_head, outs, ids, weights)):
                parts[f"draft_{index + 1}"] = draft.detach()
                total = total + DRAFT_WEIGHTS[index] * draft
    return total + model.config["text_config"]["router_aux_loss_coef"] * balance, parts


def steps_in_all(run: Run, arguments: argparse.Namespace) -> int:
    """Return after how many steps the training ends: `--steps`, or as many as fit `--train-minutes` at today's pace."""
    if arguments.train_minutes is None or run.step <= WARM_UP_STEPS:
        return int(arguments.steps)
    return int(run.step * arguments.train_minutes * 60 / run.seconds)


def train(run: Run, encoder: Encoder, make: Callable[[int], Example], arguments: argparse.Namespace) -> None:
    """Train until the last step, or for the given minutes."""
    started = time.monotonic() - run.seconds
    saved = begun = time.monotonic()
    pools = Pools(make, run.next_seed, arguments.tokens_per_batch)
    for next_seed, batch in training_batches(pools, run.next_seed, arguments.workers):
        run.next_seed = next_seed
        steps = steps_in_all(run, arguments)
        if run.step >= steps or time.monotonic() - begun > arguments.minutes * 60:
            break
        rate = learning_rate(run.step, steps, arguments.rate, WARM_UP_STEPS)
        parts = run.train_step(batch.to(arguments.device), rate)
        run.seconds = time.monotonic() - started
        if run.step % arguments.log_every == 0:
            run.log_losses(parts)
        if time.monotonic() - saved > MINUTES_BETWEEN_SAVES * 60:
            run.save()
            saved = time.monotonic()
        if run.step % arguments.evaluate_every == 0:
            run.log(evaluate(run.model.eval(), encoder, 24, arguments.stage != "text"))
            run.model.train()
    run.save()


def add_run_arguments(parser: argparse.ArgumentParser, steps: int, rate: float) -> None:
    """Add the arguments of every training run, with the default number of steps and the default peak rate."""
    parser.add_argument("--run-dir", type=Path, default=Path("build/small_model"), help="checkpoints and logs")
    parser.add_argument("--fresh", action="store_true", help="start from nothing, although there is a checkpoint")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=steps)
    length.add_argument("--train-minutes", type=float, help="instead of steps: train for so long in all")
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that make the batches; 0: the trainer itself")


def prepare(arguments: argparse.Namespace) -> None:
    """Set up PyTorch and the folder for a training run."""
    # Worker processes are copies of this one, after which the tokenizer must not start threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(arguments.threads)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)


def main(words: Sequence[str] | None = None) -> None:
    """Run the training from the command line, or with these words of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=tuple(STAGES), default="text")
    parser.add_argument("--begin-with", type=Path, help="checkpoint or folder whose weights to begin with")
    parser.add_argument("--freeze-tower", action="store_true", help="keep the vision tower as it is, which is faster")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    add_run_arguments(parser, steps=12000, rate=3e-3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; the next run goes on")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="padding included")
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps")
    arguments = parser.parse_args(words)
    prepare(arguments)
    encoder = Encoder(load_tokenizer())
    torch.manual_seed(arguments.seed)
    folder, stage = arguments.run_dir, arguments.stage
    make = STAGES[stage]
    model = SmallModel(model_config()).to(arguments.device)
    model.model.visual.requires_grad_(not arguments.freeze_tower)
    run = Run(model, losses_of, folder / f"{stage}.pt", folder / f"{stage}.jsonl")
    if run.checkpoint.exists() and not arguments.fresh:
        run.load()
    elif arguments.begin_with:
        run.begin_with(arguments.begin_with)
    train(run, encoder, lambda seed: make(seed, encoder), arguments)
    run.log({"final": evaluate(run.model.eval(), encoder, 120, arguments.stage != "text")})


if __name__ == "__main__":
    main()
