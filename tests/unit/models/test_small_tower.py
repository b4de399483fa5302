"""The tower's own training: what is drawn is labelled where it stands, and a tower learns to read it."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.demo.run import Run
from models.small import pictures
from models.small.config import model_config
from models.small.pictures import Drawing, Mark, to_patches
from models.small.positions import picture_tokens
from models.small.tower import CLASSES, NOTHING, UNKNOWN, Batches, Reader, labels_of, losses_of, picture_of
from models.small.vision import VisionTower


def test_a_label_is_at_the_half_patch_that_has_the_middle() -> None:
    marks = (Mark("7", 40.0, 20.0), Mark("red circle", 63.9, 95.9), Mark("+", 1.0, 1.0), Mark("-", 2.0, 2.0))
    labels = labels_of(Drawing(Image.new("RGB", (64, 96)), marks))
    assert labels.shape == (6, 8)
    # 64 pixels are two tokens. (40, 20) is in the second, lower left patch, right half.
    assert CLASSES[labels[1, 5]] == "7"
    assert CLASSES[labels[5, 7]] == "red circle"
    assert labels[0, 0] == UNKNOWN
    assert (labels == NOTHING).sum() == 45


@pytest.mark.slow
def test_the_labels_of_a_picture_are_what_is_drawn() -> None:
    for seed in range(60):
        drawing = picture_of(seed).drawing
        labels = labels_of(drawing)
        assert len(labels) == picture_tokens(to_patches(drawing.picture)[1])
        if (labels == UNKNOWN).any():
            continue
        assert sorted(CLASSES[label] for label in labels[labels != NOTHING]) == sorted(
            one.what for one in drawing.marks
        )
    every = {mark.what for seed in range(400) for mark in picture_of(seed).drawing.marks}
    assert every <= set(CLASSES)
    signs = pictures.draw_expression(random.Random(1), "1 × 2 ÷ 3 − 4 * 5").marks
    assert {mark.what for mark in signs} <= set(CLASSES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tower_learns_to_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = model_config()["vision_config"] | {"depth": 1}
    reader = Reader(VisionTower(config), config["out_hidden_size"])
    run = Run(reader, losses_of, tmp_path / "tower.pt", tmp_path / "log.jsonl")
    batch = Batches(0, 8)[0]
    first = run.train_step(batch, 2e-3)
    for _ in range(25):
        last = run.train_step(batch, 2e-3)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["shown"] > first["shown"] + 0.2
    run.save()
    again = Run(reader, losses_of, tmp_path / "tower.pt", tmp_path / "log.jsonl")
    again.load()
    assert again.step == 26
