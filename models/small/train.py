"""Train the small model with its MTP layer in two stages.

python -m models.small.train [--stage text|pictures] [--run-dir RUN] [--minutes N] [--fresh]

The stage `text` trains the trunk and the draft layer on questions and functions. The stage `pictures` begins with what
that has learned, and mixes pictures in. Each stage has a checkpoint and a log of its own in the run folder. A run that
was interrupted, or that ended at `--minutes`, goes on where it stopped.

It uses plain PyTorch on a CPU, in bfloat16 autocast over float32 weights; the engine uses bfloat16, too.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.demo.data import batches
from models.demo.run import DRAFT_WEIGHTS, Run, draft_losses, learning_rate, weighted_loss
from models.small.collate import collate
from models.small.config import model_config
from models.small.encoding import Encoder, Example
from models.small.evaluate import evaluate
from models.small.examples import example, mixed_example
from models.small.language_model import SmallModel
from models.small.tokenizer import build_tokenizer

WARM_UP_STEPS = 100
MINUTES_BETWEEN_SAVES = 3.0


def losses_of(model: SmallModel, group: list[Example], drafts: int) -> tuple[Tensor, dict[str, float]]:
    """Return the total loss of a batch and its parts: answer (next token), one per draft, balance (1 is even)."""
    batch = collate(group)
    ids, weights = batch.ids, batch.weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model(ids, batch.positions, batch.pictures)
        balance = states.balance
        total = weighted_loss(model.lm_head, states.hidden[:, :-1], ids[:, 1:], weights[:, 1:])
        parts = {"loss": total.item(), "balance": balance.item()}
        if drafts:
            outs, draft_balance = model.drafts(states, drafts, batch.positions)
            balance = balance + draft_balance
            for index, draft in enumerate(draft_losses(model.lm_head, outs, ids, weights)):
                parts[f"draft_{index + 1}"] = draft.item()
                total = total + DRAFT_WEIGHTS[index] * draft
    return total + model.config["text_config"]["router_aux_loss_coef"] * balance, parts


def train(run: Run, encoder: Encoder, make: Callable[[int], Example], arguments: argparse.Namespace) -> None:
    """Train until the last step, or for the given minutes."""
    started = time.monotonic() - run.seconds
    saved = begun = time.monotonic()
    for next_seed, group in batches(make, run.next_seed, arguments.tokens_per_batch):
        run.next_seed = next_seed
        if run.step >= arguments.steps or time.monotonic() - begun > arguments.minutes * 60:
            break
        parts = run.train_step(group, learning_rate(run.step, arguments.steps, arguments.rate, WARM_UP_STEPS))
        run.seconds = time.monotonic() - started
        if run.step % 20 == 0:
            run.log({name: round(value, 4) for name, value in parts.items()})
        if time.monotonic() - saved > MINUTES_BETWEEN_SAVES * 60:
            run.save()
            saved = time.monotonic()
        if run.step % arguments.evaluate_every == 0:
            run.log(evaluate(run.model.eval(), encoder, 24, arguments.stage == "pictures"))
            run.model.train()
    run.save()


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("text", "pictures"), default="text")
    parser.add_argument("--run-dir", type=Path, default=Path("build/small_model"), help="checkpoints and logs")
    parser.add_argument("--fresh", action="store_true", help="start from nothing, although there is a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; the next run goes on")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = Encoder(build_tokenizer())
    torch.manual_seed(arguments.seed)
    folder, stage = arguments.run_dir, arguments.stage
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(SmallModel(model_config()), losses_of, folder / f"{stage}.pt", folder / f"{stage}.jsonl")
    if run.checkpoint.exists() and not arguments.fresh:
        run.load()
    elif stage == "pictures":
        run.begin_with(folder / "text.pt")
    make = {"text": example, "pictures": mixed_example}[stage]
    train(run, encoder, lambda seed: make(seed, encoder), arguments)
    run.log({"final": evaluate(run.model.eval(), encoder, 120, arguments.stage == "pictures")})


if __name__ == "__main__":
    main()
