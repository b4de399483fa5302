"""Train the vision tower alone to say which characters and shapes stand where.

python -m models.small.tower --begin-with WEIGHTS --out WEIGHTS [--run-dir RUN] [--steps N | --train-minutes N]

The answer to a question says little about a picture's hundred patches; what was drawn says what each of them shows. A
linear layer, which is thrown away afterwards, reads it from the tower's tokens, so that each token has what the trunk
needs. The stages `pictures` and `functions` of `models.small.train` go on with the result.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.demo.run import Run, learning_rate, read_weights
from models.small.config import MERGE_SIZE, PATCH_SIZE, model_config
from models.small.examples import PICTURE_WEIGHTS
from models.small.language_model import Pictures, SmallModel
from models.small.languages import LANGUAGES
from models.small.picture_questions import PictureQuestion, picture_question
from models.small.pictures import COLOURS, SHAPES, TOKEN_EDGE, Drawing, to_patches
from models.small.positions import picture_tokens
from models.small.questions import HELD_OUT_SEED
from models.small.train import WARM_UP_STEPS, add_run_arguments, prepare, steps_in_all
from models.small.vision import VisionTower

NOTHING = 0
CLASSES = (
    *("", *"0123456789+-*×÷−"),
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
)
"""What a place can show; the first is nothing."""
PLACES_PER_TOKEN = 2 * MERGE_SIZE**2
"""Each half of each patch, 8 pixels wide and 16 high, shows one character or shape at most: whose middle is in it."""
UNKNOWN = -100
"""Label of the few places that have more than one."""
NOTHING_WEIGHT = 2.0
"""Weight of the mean loss over the places that show nothing, nineteen of twenty, beside that over the others."""


@dataclass(frozen=True)
class Batch:
    """Pictures, and what their places show: labels (tokens of all pictures, PLACES_PER_TOKEN)."""

    pictures: Pictures
    labels: Tensor


def labels_of(drawing: Drawing) -> Tensor:
    """Return the class of each place of each token, (tokens, PLACES_PER_TOKEN)."""
    columns, rows = (edge // TOKEN_EDGE for edge in drawing.picture.size)
    labels = torch.full((rows * columns, PLACES_PER_TOKEN), NOTHING)
    for mark in drawing.marks:
        x, y = int(mark.x), int(mark.y)
        patch = y % TOKEN_EDGE // PATCH_SIZE * MERGE_SIZE + x % TOKEN_EDGE // PATCH_SIZE
        place = y // TOKEN_EDGE * columns + x // TOKEN_EDGE, 2 * patch + x % PATCH_SIZE // (PATCH_SIZE // 2)
        labels[place] = CLASSES.index(mark.what) if labels[place] == NOTHING else UNKNOWN
    return labels


class Reader(nn.Module):
    """A vision tower with a layer that reads its tokens."""

    def __init__(self, tower: VisionTower, width: int) -> None:
        super().__init__()
        self.visual = tower
        self.reader = nn.Linear(width, PLACES_PER_TOKEN * len(CLASSES))

    def forward(self, pictures: Pictures) -> Tensor:
        """Return logits (tokens, PLACES_PER_TOKEN, classes)."""
        tokens: Tensor = self.reader(self.visual(pictures.pixels, pictures.grids))
        return tokens.unflatten(-1, (PLACES_PER_TOKEN, len(CLASSES)))


def picture_of(seed: int) -> PictureQuestion:
    """Return the picture of `seed`; training draws seeds below `HELD_OUT_SEED`."""
    rng = random.Random(f"tower:{seed}")
    kind = rng.choices(list(PICTURE_WEIGHTS), list(PICTURE_WEIGHTS.values()))[0]
    return picture_question(kind, rng.choice(list(LANGUAGES)), seed)


class Batches(Dataset[Batch]):
    """Batch n has the pictures that begin n batches after seed `first_seed`."""

    def __init__(self, first_seed: int, pictures_per_batch: int) -> None:
        self._first_seed, self._size = first_seed, pictures_per_batch

    def __getitem__(self, index: int) -> Batch:
        start = self._first_seed + index * self._size
        drawings = [picture_of(seed).drawing for seed in range(start, start + self._size)]
        patches, grids = zip(*(to_patches(drawing.picture) for drawing in drawings), strict=True)
        return Batch(Pictures(torch.cat(patches), list(grids)), torch.cat([labels_of(one) for one in drawings]))

    def __len__(self) -> int:
        return (HELD_OUT_SEED - self._first_seed) // self._size


def losses_of(reader: Reader, batch: Batch, _drafts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and the shares of characters and shapes, and of empty places, that are read right."""
    pixels, labels = batch.pictures.pixels, batch.labels
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        logits = reader(batch.pictures).float()
    shown, empty = labels > NOTHING, labels == NOTHING
    loss = F.cross_entropy(logits[shown], labels[shown]) + NOTHING_WEIGHT * F.cross_entropy(
        logits[empty], labels[empty]
    )
    right = logits.detach().argmax(-1) == labels
    return loss, {"loss": loss.detach(), "shown": right[shown].float().mean(), "empty": right[empty].float().mean()}


@torch.no_grad()
def evaluate(reader: Reader, count: int, device: torch.device) -> dict[str, float]:
    """Return the share of characters and shapes that are read right, and of pictures without any fault."""
    questions = [picture_of(HELD_OUT_SEED + index) for index in range(count)]
    patches, grids = zip(*(to_patches(one.picture) for one in questions), strict=True)
    labels = torch.cat([labels_of(one.drawing) for one in questions])
    read = reader(Pictures(torch.cat(patches).to(device), list(grids))).argmax(-1).cpu()
    right, known = read == labels, labels != UNKNOWN
    wholes = (right | ~known).split([picture_tokens(grid) for grid in grids])
    by_kind: dict[str, list[bool]] = {}
    for one, whole in zip(questions, wholes, strict=True):
        by_kind.setdefault(one.asked.kind, []).append(bool(whole.all()))
    shares = {kind: round(sum(wholly) / len(wholly), 3) for kind, wholly in sorted(by_kind.items())}
    return {"shown": round(right[labels > NOTHING].float().mean().item(), 4), **shares}


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train until the last step, or for the given minutes."""
    started = time.monotonic() - run.seconds
    batches = Batches(run.next_seed, arguments.pictures_per_batch)
    for batch in DataLoader(batches, batch_size=None, num_workers=arguments.workers):
        steps = steps_in_all(run, arguments)
        if run.step >= steps:
            break
        pixels = batch.pictures.pixels.to(arguments.device)
        on_device = Batch(Pictures(pixels, batch.pictures.grids), batch.labels.to(arguments.device))
        parts = run.train_step(on_device, learning_rate(run.step, steps, arguments.rate, WARM_UP_STEPS))
        run.next_seed += arguments.pictures_per_batch
        run.seconds = time.monotonic() - started
        if run.step % arguments.log_every == 0:
            run.log_losses(parts)
        if run.step % arguments.save_every == 0:
            run.save()
            run.log(evaluate(run.model.eval(), 240, arguments.device))
            run.model.train()
    run.save()


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--begin-with", type=Path, required=True, help="weights of the small model to begin with")
    parser.add_argument("--out", type=Path, required=True, help="where the small model with the new tower is written")
    add_run_arguments(parser, steps=4000, rate=2e-3)
    parser.add_argument("--pictures-per-batch", type=int, default=64)
    parser.add_argument("--save-every", type=int, default=250, help="steps; the tower is evaluated then, too")
    arguments = parser.parse_args()
    prepare(arguments)
    config = model_config()
    model = SmallModel(config)
    model.load_state_dict(read_weights(arguments.begin_with))
    reader = Reader(model.model.visual, config["vision_config"]["out_hidden_size"]).to(arguments.device)
    run = Run(reader, losses_of, arguments.run_dir / "tower.pt", arguments.run_dir / "tower.jsonl")
    if run.checkpoint.exists() and not arguments.fresh:
        run.load()
    train(run, arguments)
    torch.save({"model": model.cpu().state_dict()}, arguments.out)
    run.log({"final": evaluate(reader.cpu().eval(), 600, torch.device("cpu"))})


if __name__ == "__main__":
    main()
