"""The tower's own training: what is drawn is shared out among the tokens, and a tower learns to read it."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models.small import pictures
from models.small.config import model_config
from models.small.encoding import Encoder
from models.small.language_model import SmallModel
from models.small.pictures import TOKEN_EDGE, Drawing, Mark, to_patches
from models.small.positions import picture_tokens
from models.small.run import Run
from models.small.tokenizer import load_tokenizer
from models.small.tower import CLASSES, NOTHING, OVERLAP, Batches, Reader, losses_of, picture_of, shares_of, trunk_words


def test_a_character_belongs_to_the_token_that_has_its_middle_and_in_part_to_one_that_is_near() -> None:
    near = TOKEN_EDGE + OVERLAP / 4
    marks = (Mark("7", 40.0, 20.0), Mark("red circle", 50.0, 80.0), Mark("+", near, 48.0))
    shares = shares_of(Drawing(Image.new("RGB", (64, 96)), marks))
    assert shares.shape == (6, len(CLASSES))
    # 64 pixels are two tokens: (40, 20) is in the second, (50, 80) in the last.
    assert shares[1, CLASSES.index("7")] == shares[5, CLASSES.index("red circle")] == 1
    assert shares[2:4, CLASSES.index("+")].tolist() == [0.25, 0.75]
    assert shares[:, NOTHING].tolist() == [1, 0, 0.75, 0.25, 1, 0]


def test_what_is_at_the_edge_of_a_picture_belongs_to_it_wholly() -> None:
    shares = shares_of(Drawing(Image.new("RGB", (64, 64)), (Mark("1", 0.5, 0.5), Mark("2", 63.5, 63.5))))
    assert shares[0, CLASSES.index("1")] == shares[3, CLASSES.index("2")] == 1


@pytest.mark.slow
def test_the_shares_of_a_picture_are_what_is_drawn() -> None:
    for seed in range(60):
        drawing = picture_of(seed).drawing
        shares = shares_of(drawing)
        assert len(shares) == picture_tokens(to_patches(drawing.picture)[1])
        torch.testing.assert_close(shares.sum(-1), torch.ones(len(shares)))
        drawn = Counter(mark.what for mark in drawing.marks)
        for kind, name in enumerate(CLASSES):
            assert kind == NOTHING or shares[:, kind].sum().item() == pytest.approx(drawn[name], abs=1e-4)
    every = {mark.what for seed in range(400) for mark in picture_of(seed).drawing.marks}
    assert every <= set(CLASSES)
    signs = pictures.draw_expression(random.Random(1), "1×2÷3−4*5").marks
    assert {mark.what for mark in signs} <= set(CLASSES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tower_learns_the_words_of_its_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = model_config()
    config["vision_config"]["depth"] = 1
    model = SmallModel(config)
    encoder = Encoder(load_tokenizer())
    words = trunk_words(model, encoder)
    embeddings = model.model.language_model.embed_tokens.weight
    assert torch.allclose(
        F.normalize(words[CLASSES.index("7")], dim=0), F.normalize(embeddings[encoder.encode("7")[0]], dim=0)
    )
    reader = Reader(model.model.visual, words)
    assert reader.read(reader.words).tolist() == list(range(len(CLASSES)))
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
    with torch.no_grad():
        before = reader(batch.pictures)
        reader.finish()
        torch.testing.assert_close(reader(batch.pictures), before * reader.size, rtol=1e-3, atol=1e-4)
