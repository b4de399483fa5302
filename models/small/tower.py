"""Train the vision tower alone to say in the trunk's own words what stands where.

python -m models.small.tower --begin-with WEIGHTS --out WEIGHTS [--run-dir RUN] [--steps N | --train-minutes N]

The answer to a question says little about a picture's hundred patches; what was drawn says what each of them shows. The
tower learns to give for each token of a picture the embedding that the trunk has for the character which stands there,
so that a drawn sum is to the trunk nearly what a written one is. The stage `all` of `models.small.train` goes on with
the result.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.small.config import model_config
from models.small.encoding import Encoder
from models.small.examples import PICTURE_WEIGHTS
from models.small.language_model import Pictures, SmallModel
from models.small.languages import LANGUAGES
from models.small.picture_questions import PictureQuestion, picture_question
from models.small.pictures import COLOURS, SHAPES, TOKEN_EDGE, Drawing, to_patches
from models.small.positions import picture_tokens
from models.small.questions import HELD_OUT_SEED
from models.small.run import Run, learning_rate, read_weights
from models.small.tokenizer import load_tokenizer
from models.small.train import WARM_UP_STEPS, add_run_arguments, prepare, steps_in_all
from models.small.vision import VisionTower

NOTHING = 0
SIGNS = (" ", *"0123456789+-*×÷−")
CLASSES = (*SIGNS, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
"""What a token can show; the first is nothing."""
OVERLAP = 6
"""Pixels about the line between two tokens within which what stands there belongs to both in part.

Nobody could tell a middle just before that line from one just behind it.
"""

CLEAR = 0.8
"""A token is counted as right or wrong if one class has more than this share of it."""


@dataclass(frozen=True)
class Batch:
    """Pictures, and what their tokens show: shares (tokens of all pictures, classes), which sum to 1 in each token."""

    pictures: Pictures
    shares: Tensor


def shares_of(drawing: Drawing) -> Tensor:
    """Return the share of each class in each token, (tokens, classes): 1 for a character whose middle is in it."""
    columns, rows = (edge // TOKEN_EDGE for edge in drawing.picture.size)
    shares = torch.zeros(rows, columns, len(CLASSES))
    for mark in drawing.marks:
        kind = CLASSES.index(mark.what)
        shares[:, :, kind] += torch.outer(_among(mark.y, rows), _among(mark.x, columns))
    shares[:, :, NOTHING] = 1 - shares.sum(-1)
    return shares.flatten(0, 1)


def _among(place: float, tokens: int) -> Tensor:
    """Return how a middle is shared out among a row of tokens; nothing is behind the edge of the picture."""
    lines = torch.arange(1, tokens) * TOKEN_EDGE
    behind = ((place - lines) / OVERLAP + 0.5).clamp(0, 1)
    return torch.cat([torch.ones(1), behind]) - torch.cat([behind, torch.zeros(1)])


@torch.no_grad()
def trunk_words(model: SmallModel, encoder: Encoder) -> Tensor:
    """Return what the trunk's embeddings have for each class, (classes, width), all of the size that a digit's has.

    A shape has the sum of its colour and its form, each without what all colours, or all forms, have in common.
    """
    embeddings = model.model.language_model.embed_tokens.weight

    def word(text: str) -> Tensor:
        return embeddings[encoder.encode(text)].mean(0)

    colours, forms = (torch.stack([word(name) for name in names]) for names in (COLOURS, SHAPES))
    shapes = (colours - colours.mean(0))[:, None] + (forms - forms.mean(0))
    signs = torch.stack([word(name) for name in SIGNS])
    size = embeddings[encoder.encode("0123456789")].norm(dim=-1).mean()
    return size * F.normalize(torch.cat([signs, shapes.flatten(0, 1)]), dim=-1)


class Reader(nn.Module):
    """A vision tower that learns the embeddings of what it is shown, `words` (classes, width), at unit size.

    The tower's last layer gives tokens of unit size while it learns, and `finish` brings them to that of `words`.
    """

    words: Tensor

    def __init__(self, tower: VisionTower, words: Tensor) -> None:
        super().__init__()
        self.visual = tower
        self.size = words.pow(2).mean().sqrt().item()
        self.register_buffer("words", words / self.size, persistent=False)
        nn.init.normal_(tower.merger.linear_fc2.weight, std=tower.merger.width**-0.5)

    def forward(self, pictures: Pictures) -> Tensor:
        """Return the pictures' tokens (tokens, width)."""
        tokens: Tensor = self.visual(pictures.pixels, pictures.grids)
        return tokens

    def read(self, tokens: Tensor) -> Tensor:
        """Return the class whose embedding is nearest to each token, (tokens)."""
        return torch.cdist(tokens.float(), self.words).argmin(-1)

    @torch.no_grad()
    def finish(self) -> None:
        """Bring the tower's tokens to the size of the trunk's embeddings."""
        last = self.visual.merger.linear_fc2
        last.weight *= self.size
        last.bias *= self.size


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
        return Batch(Pictures(torch.cat(patches), list(grids)), torch.cat([shares_of(one) for one in drawings]))

    def __len__(self) -> int:
        return (HELD_OUT_SEED - self._first_seed) // self._size


def losses_of(reader: Reader, batch: Batch, _drafts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, and the shares read right of the tokens that show something and of the empty ones.

    The loss is the mean square by which the tokens miss, of those that show something and of the others, both alike.
    """
    pixels, shares = batch.pictures.pixels, batch.shares
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        tokens = reader(batch.pictures).float()
    missed = (tokens - shares @ reader.words).pow(2).mean(-1)
    empty = shares[:, NOTHING] > 1 - CLEAR
    loss = missed[~empty].mean() + missed[empty].mean()
    right, clear = reader.read(tokens.detach()) == shares.argmax(-1), shares.amax(-1) > CLEAR
    parts = {"shown": right[clear & ~empty].float().mean(), "empty": right[clear & empty].float().mean()}
    return loss, {"loss": loss.detach(), **parts}


@torch.no_grad()
def evaluate(reader: Reader, count: int, device: torch.device) -> dict[str, float]:
    """Return the share of characters and shapes that are read right, and of pictures without any fault."""
    questions = [picture_of(HELD_OUT_SEED + index) for index in range(count)]
    patches, grids = zip(*(to_patches(one.picture) for one in questions), strict=True)
    shares = torch.cat([shares_of(one.drawing) for one in questions])
    read = reader.read(reader(Pictures(torch.cat(patches).to(device), list(grids)))).cpu()
    right, clear = read == shares.argmax(-1), shares.amax(-1) > CLEAR
    wholes = (right | ~clear).split([picture_tokens(grid) for grid in grids])
    by_kind: dict[str, list[bool]] = {}
    for one, whole in zip(questions, wholes, strict=True):
        by_kind.setdefault(one.asked.kind, []).append(bool(whole.all()))
    found = {kind: round(sum(wholly) / len(wholly), 3) for kind, wholly in sorted(by_kind.items())}
    return {"shown": round(right[clear & (shares.argmax(-1) != NOTHING)].float().mean().item(), 4), **found}


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train until the last step, or for the given minutes."""
    started = time.monotonic() - run.seconds
    batches = Batches(run.next_seed, arguments.pictures_per_batch)
    for batch in DataLoader(batches, batch_size=None, num_workers=arguments.workers):
        steps = steps_in_all(run, arguments)
        if run.step >= steps:
            break
        pixels = batch.pictures.pixels.to(arguments.device)
        on_device = Batch(Pictures(pixels, batch.pictures.grids), batch.shares.to(arguments.device))
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


def main(words: Sequence[str] | None = None) -> None:
    """Run the training from the command line, or with these words of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--begin-with", type=Path, required=True, help="weights of the small model to begin with")
    parser.add_argument("--out", type=Path, required=True, help="where the small model with the new tower is written")
    add_run_arguments(parser, steps=4000, rate=2e-3)
    parser.add_argument("--pictures-per-batch", type=int, default=64)
    parser.add_argument("--save-every", type=int, default=250, help="steps; the tower is evaluated then, too")
    arguments = parser.parse_args(words)
    prepare(arguments)
    model = SmallModel(model_config())
    model.load_state_dict(read_weights(arguments.begin_with))
    reader = Reader(model.model.visual, trunk_words(model, Encoder(load_tokenizer()))).to(arguments.device)
    run = Run(reader, losses_of, arguments.run_dir / "tower.pt", arguments.run_dir / "tower.jsonl")
    if run.checkpoint.exists() and not arguments.fresh:
        run.load()
    train(run, arguments)
    run.log({"final": evaluate(reader.cpu().eval(), 600, torch.device("cpu"))})
    reader.finish()
    torch.save({"model": model.cpu().state_dict()}, arguments.out)


if __name__ == "__main__":
    main()
