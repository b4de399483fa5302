"""Train the demo model with its MTP layer, and export it.

python -m models.demo.train [--out DIR] [--run-dir RUN] [--resume]

It uses plain PyTorch on a CPU, in bfloat16 autocast over float32 weights; the engine uses bfloat16, too. The run folder
has the last checkpoint and log.jsonl, from which `--resume` continues.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.config import text_config
from models.demo.data import PAD, Encoder, Example, batches, pad
from models.demo.evaluate import evaluate
from models.demo.export import export
from models.demo.language_model import DemoModel
from models.demo.optimizer import build_optimizers
from models.demo.tokenizer import build_tokenizer

PACKAGED = Path("service/penstock/demo_model")
WARM_UP_STEPS = 60
DRAFT_WEIGHTS = (0.3, 0.15)
"""Loss weight of the first and of the second draft."""


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: linear warm-up, then linear decay to a fiftieth of the peak."""
    if step < WARM_UP_STEPS:
        return peak * (step + 1) / WARM_UP_STEPS
    left = (steps - step) / max(1, steps - WARM_UP_STEPS)
    return peak * max(0.02, left)


def weighted_loss(model: DemoModel, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens with weight, all (B, T). Only those tokens get logits."""
    said = weights > 0
    logits = model.lm_head(hidden[said]).float()
    losses = F.cross_entropy(logits, targets[said], reduction="none")
    return (losses * weights[said]).sum() / weights[said].sum()


def losses_of(model: DemoModel, group: list[Example], drafts: int) -> tuple[Tensor, dict[str, float]]:
    """Return the total loss of a batch and its parts: answer (next token), one per draft, balance (1 is even)."""
    ids = torch.tensor(pad([item.ids for item in group], PAD))
    weights = torch.tensor(pad([item.weights for item in group], 0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, balance = model.model(ids)
        total = weighted_loss(model, hidden[:, :-1], ids[:, 1:], weights[:, 1:])
        parts = {"loss": total.item(), "balance": balance.item()}
        if drafts:
            outs, draft_balance = model.drafts(ids, hidden, drafts)
            balance = balance + draft_balance
            for index, out in enumerate(outs):
                draft = weighted_loss(model, out[:, index:-1], ids[:, index + 2 :], weights[:, index + 2 :])
                parts[f"draft_{index + 1}"] = draft.item()
                total = total + DRAFT_WEIGHTS[index] * draft
    return total + model.config["router_aux_loss_coef"] * balance, parts


class Run:
    """The state of a training run: everything that a checkpoint must have."""

    def __init__(self, folder: Path, seed: int, peak_rate: float) -> None:
        torch.manual_seed(seed)
        self.folder, self.peak_rate = folder, peak_rate
        self.model = DemoModel(text_config())
        self.optimizers = build_optimizers(self.model, peak_rate)
        self.step, self.next_seed, self.seconds = 0, 0, 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run.pt"

    def save(self) -> None:
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
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.next_seed, self.seconds = state["step"], state["next_seed"], state["seconds"]

    def log(self, entry: dict) -> None:
        line = json.dumps({"step": self.step, "seconds": round(self.seconds), **entry})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def train_step(self, group: list[Example], steps: int) -> dict[str, float]:
        rate = learning_rate(self.step, steps, self.peak_rate)
        # The draft layer learns from the trained trunk: a third of the steps is enough for it.
        loss, parts = losses_of(self.model, group, drafts=2 if self.step % 3 == 0 else 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return parts


def train(run: Run, encoder: Encoder, arguments: argparse.Namespace) -> None:
    started = time.monotonic() - run.seconds
    for next_seed, group in batches(encoder, run.next_seed, arguments.tokens_per_batch):
        run.next_seed = next_seed
        if run.step >= arguments.steps:
            break
        parts = run.train_step(group, arguments.steps)
        run.seconds = time.monotonic() - started
        if run.step % 20 == 0:
            run.log({name: round(value, 4) for name, value in parts.items()})
        if run.step % arguments.save_every == 0:
            run.save()
        if run.step % arguments.evaluate_every == 0:
            run.log(evaluate(run.model, encoder, 24, (0, 8, 16, 32, None)))
    run.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to export to")
    parser.add_argument("--run-dir", type=Path, default=Path("build/demo_model"), help="checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens-per-batch", type=int, default=6144, help="padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--evaluate-every", type=int, default=150, help="steps")
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    run, encoder = Run(arguments.run_dir, arguments.seed, arguments.rate), Encoder(build_tokenizer())
    if arguments.resume:
        run.load()
    train(run, encoder, arguments)
    run.log({"final": evaluate(run.model, encoder, 100)})
    export(run.model, arguments.out)


if __name__ == "__main__":
    main()
