"""Hold the state of a training run, its learning rate and the losses of its drafts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from models.small.optimizer import build_optimizers

DRAFT_EVERY = 3
"""The draft layer learns from the trained trunk: a third of the steps is enough for it."""
DRAFT_WEIGHTS = (0.3, 0.15)
"""Loss weight of the first and of the second draft."""
Losses = Callable[[Any, Any, int], tuple[Tensor, dict[str, Tensor]]]
"""Maps a model, a batch and a number of drafts to the total loss and its parts, which have no gradient."""


def learning_rate(step: int, steps: int, peak: float, warm_up_steps: int) -> float:
    """Return the learning rate: linear warm-up, then linear decay to a fiftieth of the peak."""
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    left = (steps - step) / max(1, steps - warm_up_steps)
    return peak * max(0.02, left)


def weighted_loss(head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens with weight, all (B, T). Only those tokens get logits."""
    said = weights > 0
    logits = head(hidden[said]).float()
    losses = F.cross_entropy(logits, targets[said], reduction="none")
    return (losses * weights[said]).sum() / weights[said].sum()


def draft_losses(head: nn.Module, outs: list[Tensor], ids: Tensor, weights: Tensor) -> list[Tensor]:
    """Return the loss of each draft, from the hidden states of successive drafts."""
    return [
        weighted_loss(head, out[:, index:-1], ids[:, index + 2 :], weights[:, index + 2 :])
        for index, out in enumerate(outs)
    ]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights of a training run's checkpoint, or of an exported folder, which has them in bfloat16."""
    if file.is_dir():
        return load_file(file / "model.safetensors")
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)["model"]
    return weights


class Run:
    """The state of a training run: everything that a checkpoint must have."""

    def __init__(self, model: nn.Module, losses: Losses, checkpoint: Path, log: Path) -> None:
        self.model, self._losses = model, losses
        self.checkpoint, self._log = checkpoint, log
        self.optimizers = build_optimizers(model, 0.0)
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
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.next_seed, self.seconds = state["step"], state["next_seed"], state["seconds"]

    def begin_with(self, other: Path) -> None:
        """Take over the weights of another checkpoint. The optimizers and the learning rate start anew."""
        self.model.load_state_dict(read_weights(other))

    def log(self, entry: dict) -> None:
        """Print a line of progress, and add it to the log."""
        line = json.dumps({"step": self.step, "seconds": round(self.seconds), **entry})
        print(line, flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def log_losses(self, parts: dict[str, Tensor]) -> None:
        """Log the parts of a loss."""
        self.log({name: round(part.item(), 4) for name, part in parts.items()})

    def train_step(self, batch: Any, rate: float) -> dict[str, Tensor]:
        """Learn from one batch, and return the parts of its loss."""
        loss, parts = self._losses(self.model, batch, 2 if self.step % DRAFT_EVERY == 0 else 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return parts
