"""Pictures to ask about: a seed names one, what it shows is in it, and patches are the official processor's."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from penstock.engine.vllm.compat import declare_torchvision_operators
from PIL import Image, ImageColor
from scipy import ndimage

from models.small import pictures
from models.small.config import PICTURE_PIXELS, preprocessor_config
from models.small.pictures import COLOURS, FONTS, SIZES, TOKEN_EDGE, DoesNotFit, to_patches

declare_torchvision_operators()
from transformers import Qwen2VLImageProcessorFast  # noqa: E402


def drawn(seed: int) -> list[Image.Image]:
    """Return a picture of each sort."""
    rng = random.Random(seed)
    drawings = [
        pictures.draw_expression(rng, "37+48-12"),
        pictures.draw_numbers(rng, (62, 419)),
        pictures.draw_shapes(rng)[0],
    ]
    return [drawing.picture for drawing in drawings]


def test_a_seed_names_a_picture() -> None:
    for first, again, other in zip(drawn(7), drawn(7), drawn(8), strict=True):
        assert first == again
        assert first.tobytes() != other.tobytes()
    assert {picture.size for seed in range(30) for picture in drawn(seed)} <= set(SIZES)


def regions(picture: Image.Image, colour: str) -> int:
    """Return how many separate areas of about this colour a picture has."""
    near = np.abs(np.asarray(picture, dtype=float) - ImageColor.getrgb(colour)).max(-1) < 60
    labels, _ = ndimage.label(near)
    return int((np.bincount(labels.flat)[1:] > 20).sum())


def test_counted_shapes_are_there_and_apart() -> None:
    for seed in range(12):
        drawing, counts = pictures.draw_shapes(random.Random(seed))
        assert Counter(mark.what for mark in drawing.marks) == {" ".join(shape): n for shape, n in counts.items()}
        for colour, code in COLOURS.items():
            expected = sum(count for (named, _), count in counts.items() if named == colour)
            assert regions(drawing.picture, code) == expected <= 9, (seed, colour)


def middle(drawing: pictures.Drawing, mark: pictures.Mark, reach: int) -> tuple[float, float]:
    """Return the middle of what differs from the paper within `reach` pixels of a mark."""
    values = np.asarray(drawing.picture, dtype=float)
    other = np.abs(values - np.median(values, axis=(0, 1))).max(-1) > 60
    rows, columns = np.nonzero(other)
    near = (np.abs(columns + 0.5 - mark.x) <= reach) & (np.abs(rows + 0.5 - mark.y) <= reach)
    return columns[near].mean() + 0.5, rows[near].mean() + 0.5


def test_marks_are_where_characters_and_shapes_are() -> None:
    offsets = []
    for seed in range(40):
        rng = random.Random(seed)
        for drawing in (pictures.draw_expression(rng, "0+8"), pictures.draw_shapes(rng)[0]):
            for mark in drawing.marks:
                x, y = middle(drawing, mark, 14)
                offsets.append((abs(x - mark.x), abs(y - mark.y)))
    assert np.mean(offsets) < 1.0
    assert np.max(offsets) < 5.0
    line = pictures.draw_expression(random.Random(3), "123+456-7")
    assert "".join(mark.what for mark in line.marks) == "123+456-7"
    apart = [right.x - left.x for left, right in itertools.pairwise(line.marks)]
    assert min(apart) > TOKEN_EDGE, "each character has a token of its own"


def test_every_font_has_every_sign() -> None:
    for name in FONTS:
        font = pictures._font(name, 20)
        signs = "0123456789+-*=?<>" + ("" if name in pictures.ASCII_FONTS else "×÷−")
        shapes = {bytes(font.getmask(sign)) for sign in signs}
        assert len(shapes) == len(signs), name
        assert bytes(font.getmask("\U0010fffd")) not in shapes


def test_long_texts_are_drawn_smaller_or_refused() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        assert pictures.draw_expression(rng, "123+456-7").picture.size in SIZES
        assert pictures.draw_numbers(rng, (98765432, 12345678)).picture.size in SIZES
        assert pictures.draw_expression(rng, "12 × 3 ÷ 4").picture.size in SIZES
    with pytest.raises(DoesNotFit, match="at most 320 x 128 pixels"):
        pictures.draw_expression(random.Random(0), "1" * 60)
    with pytest.raises(DoesNotFit, match="at most 320 x 128 pixels"):
        pictures.draw_numbers(random.Random(0), (1, 10**40))


def test_patches_are_those_of_the_official_processor() -> None:
    processor = Qwen2VLImageProcessorFast(**preprocessor_config())
    seen = [picture for seed in range(4) for picture in drawn(seed)]
    seen += [Image.new("RGB", size, "#123456") for size in SIZES]
    made = processor(seen, return_tensors="pt")
    ours = [to_patches(picture) for picture in seen]
    assert [[1, *grid] for _, grid in ours] == made["image_grid_thw"].tolist()
    assert torch.equal(torch.cat([patches for patches, _ in ours]), made["pixel_values"])
    assert all(PICTURE_PIXELS[0] <= width * height <= PICTURE_PIXELS[1] for width, height in SIZES)


def test_a_picture_that_would_be_scaled_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32 pixels, got 100 x 64"):
        to_patches(Image.new("RGB", (100, 64)))
