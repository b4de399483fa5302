"""Train the small model with its MTP layer in two stages.

python -m models.small.train [--stage text|pictures] [--run-dir RUN] [--minutes N] [--fresh]

The stage `text` trains the trunk and the draft layer on questions and functions. The stage `pictures` begins with what
that has learned, and mixes pictures in. Each stage has a checkpoint and a log of its own in the run folder. A run that
was interrupted, or that ended at `--minutes`, goes on where it stopped.

It uses plain PyTorch on a CPU, in bfloat16 autocast over float32 weights; the engine uses bfloat16, too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.optimizer import build_optimizers
from models.small.collate import collate
from models.small.config import model_config
from models.small.encoding import Encoder, Example
from models.small.evaluate import evaluate
from models.small.examples import batches, example, mixed_example
from models.small.language_model import SmallModel
from models.small.tokenizer import build_tokenizer

WARM_UP_STEPS = 100
DRAFT_EVERY = 3
"""The draft layer learns from the trained trunk: a third of the steps is enough for it."""
DRAFT_WEIGHTS = (0.3, 0.15)
"""Loss weight of the first and of the second draft."""
MINUTES_BETWEEN_SAVES = 3.0


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: linear warm-up, then linear decay to a fiftieth of the peak."""
    if step < WARM_UP_STEPS:
        return peak * (step + 1) / WARM_UP_STEPS
    left = (steps - step) / max(1, steps - WARM_UP_STEPS)
    return peak * max(0.02, left)


def weighted_loss(model: SmallModel, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens with weight, all (B, T). Only those tokens get logits."""
    said = weights > 0
    logits = model.lm_head(hidden[said]).float()
    losses = F.cross_entropy(logits, targets[said], reduction="none")
    return (losses * weights[said]).sum() / weights[said].sum()


def losses_of(model: SmallModel, group: list[Example], drafts: int) -> tuple[Tensor, dict[str, float]]:
    """Return the total loss of a batch and its parts: answer (next token), one per draft, balance (1 is even)."""
    batch = collate(group)
    ids, weights = batch.ids, batch.weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model(ids, batch.positions, batch.pictures)
        balance = states.balance
        total = weighted_loss(model, states.hidden[:, :-1], ids[:, 1:], weights[:, 1:])
        parts = {"loss": total.item(), "balance": balance.item()}
        if drafts:
            outs, draft_balance = model.drafts(states, drafts, batch.positions)
            balance = balance + draft_balance
            for index, out in enumerate(outs):
                draft = weighted_loss(model, out[:, index:-1], ids[:, index + 2 :], weights[:, index + 2 :])
                parts[f"draft_{index + 1}"] = draft.item()
                total = total + DRAFT_WEIGHTS[index] * draft
    return total + model.config["text_config"]["router_aux_loss_coef"] * balance, parts


class Run:
    """The state of a training run: everything that a checkpoint must have."""

    def __init__(self, folder: Path, stage: str, seed: int) -> None:
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self._log = folder / f"{stage}.pt", folder / f"{stage}.jsonl"
        self.model = SmallModel(model_config())
        self.optimizers = build_optimizers(self.model, 0.0)
        self.step, self.next_seed, self.seconds = 0, 0, 0.0

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the one before."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "next_seed": self.next_seed,
            "seconds": self.seconds,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def load(self) -> None:
        """Continue from the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.next_seed, self.seconds = state["step"], state["next_seed"], state["seconds"]

    def begin_with(self, other: Path) -> None:
        """Take over the weights of another stage; the optimizers and the learning rate start anew."""
        self.model.load_state_dict(torch.load(other, weights_only=True)["model"])

    def log(self, entry: dict) -> None:
        """Print a line of progress, and add it to the log."""
        line = json.dumps({"step": self.step, "seconds": round(self.seconds), **entry})
        print(line, flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def train_step(self, group: list[Example], rate: float) -> dict[str, float]:
        """Learn from one batch, and return the parts of its loss."""
        loss, parts = losses_of(self.model, group, drafts=2 if self.step % DRAFT_EVERY == 0 else 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return parts


def train(run: Run, encoder: Encoder, make: Callable[[int], Example], arguments: argparse.Namespace) -> None:
    """Train until the last step, or for the given minutes."""
    started = time.monotonic() - run.seconds
    saved = begun = time.monotonic()
    for next_seed, group in batches(make, run.next_seed, arguments.tokens_per_batch):
        run.next_seed = next_seed
        if run.step >= arguments.steps or time.monotonic() - begun > arguments.minutes * 60:
            break
        parts = run.train_step(group, learning_rate(run.step, arguments.steps, arguments.rate))
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
    run = Run(arguments.run_dir, arguments.stage, arguments.seed)
    if run.checkpoint.exists() and not arguments.fresh:
        run.load()
    elif arguments.stage == "pictures":
        run.begin_with(arguments.run_dir / "text.pt")
    make = {"text": example, "pictures": mixed_example}[arguments.stage]
    train(run, encoder, lambda seed: make(seed, encoder), arguments)
    run.log({"final": evaluate(run.model.eval(), encoder, 120, arguments.stage == "pictures")})


if __name__ == "__main__":
    main()
