"""Draw pictures to ask about: sums and numbers in many fonts, and shapes to count. A `random.Random` names a picture.

Every edge is a multiple of 32 pixels, so that the image processor does not scale a picture. Fonts, sizes, places,
colours, slight rotation and noise vary.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from models.small.config import MERGE_SIZE, PATCH_SIZE, PICTURE_MEAN, PICTURE_STD, TEMPORAL_PATCH_SIZE
from models.small.positions import Grid

TOKEN_EDGE = PATCH_SIZE * MERGE_SIZE
"""Edge in pixels of what one token sees."""
SIZES = [(width, height) for width in range(64, 321, TOKEN_EDGE) for height in range(64, 129, TOKEN_EDGE)]
"""Width and height in pixels of what may be drawn."""
FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{style}10.ttf" for style in ("b", "r", "ss", "tt")),
    "",
)
"""Fonts with digits and signs in matplotlib's package; empty is Pillow's own."""
ASCII_FONTS = tuple(name for name in FONTS if name.startswith("cm") or not name)
"""Fonts without × and ÷."""
FONT_SIZES = range(40, 69)
"""Pixels of an em."""
PITCH = 33
"""Pixels between the middles of neighbouring characters at least, so that each has a token of its own."""
ROTATION = 3.0
"""Largest rotation of text in degrees, each way."""
MARGIN = 4
"""Pixels between text and edge at least."""
GAP = 24
"""Pixels between two numbers at least."""
CONTRAST = 90
"""Least difference of the brightness of ink and paper; white is 255."""

COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f50d8",
    "yellow": "#f2d21b",
    "purple": "#8e3fbf",
}
SHAPES = ("circle", "square", "triangle")
MAX_OF_A_COLOUR = 9
Shape = tuple[str, str]
"""Colour and form."""


@dataclass(frozen=True)
class Mark:
    """A character or a shape (`red circle`) and the place of its middle in pixels from the upper left corner.

    The height of a character is that of the middle of its line, which is turned a little at most.
    """

    what: str
    x: float
    y: float

    def moved(self, right: float, down: float) -> "Mark":
        """Return the mark at another place."""
        return Mark(self.what, self.x + right, self.y + down)


@dataclass(frozen=True)
class Drawing:
    """A picture and what stands where in it."""

    picture: Image.Image
    marks: tuple[Mark, ...]


class DoesNotFit(ValueError):
    """The text is too long for the largest picture."""


def draw_expression(rng: random.Random, expression: str) -> Drawing:
    """Draw an expression as `37+48-12` in one line, at the drawn font size or at a smaller one that fits.

    Raises:
        DoesNotFit: The text is too long.
    """
    name, size = _font_name(rng, expression), rng.choice(FONT_SIZES)
    while True:
        ink = _ink(rng, expression, name, size)
        try:
            canvas = _Canvas(rng, _pick_size(rng, ink.mask.size))
        except DoesNotFit:
            if size == FONT_SIZES[0]:
                raise
            size -= 1
            continue
        at = (rng.randint(MARGIN, canvas.size[axis] - ink.mask.size[axis] - MARGIN) for axis in (0, 1))
        canvas.write(ink, (next(at), next(at)))
        return canvas.finish()


def draw_numbers(rng: random.Random, numbers: tuple[int, int]) -> Drawing:
    """Draw two numbers, the first to the left of the second or above it, each with a size of its own."""
    beside = rng.random() < 0.5
    names, sizes = [_font_name(rng, "") for _ in numbers], [rng.choice(FONT_SIZES) for _ in numbers]
    while True:
        inks = [_ink(rng, str(part), *font) for part, font in zip(numbers, zip(names, sizes, strict=True), strict=True)]
        wide, high = zip(*(ink.mask.size for ink in inks), strict=True)
        needed = (sum(wide) + GAP, max(high)) if beside else (max(wide), sum(high) + GAP)
        try:
            canvas = _Canvas(rng, _pick_size(rng, needed))
            break
        except DoesNotFit:
            if max(sizes) == FONT_SIZES[0] and not beside:
                raise
            beside, sizes = beside and max(sizes) > FONT_SIZES[0], [max(FONT_SIZES[0], size - 1) for size in sizes]
    # The space that is left over is shared out at random before, between and after the two.
    left = (canvas.size[0] - needed[0]) if beside else (canvas.size[1] - needed[1])
    first = rng.randint(MARGIN, left - MARGIN)
    second = rng.randint(first, left - MARGIN) + GAP + (wide[0] if beside else high[0])
    # Numbers beside each other are in one line.
    middle = rng.randint(MARGIN + needed[1] // 2, canvas.size[1] - MARGIN - needed[1] // 2)
    for ink, along in zip(inks, (first, second), strict=True):
        if beside:
            canvas.write(ink, (along, middle - ink.mask.height // 2))
        else:
            canvas.write(ink, (rng.randint(MARGIN, canvas.size[0] - ink.mask.width - MARGIN), along))
    return canvas.finish()


def draw_shapes(rng: random.Random) -> tuple[Drawing, dict[Shape, int]]:
    """Draw shapes that do not overlap, and return their numbers: 1 to 9 of each of one to three colours."""
    size, cell = rng.choice(SIZES), rng.randint(TOKEN_EDGE, 44)
    columns, rows = size[0] // cell, size[1] // cell
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    rng.shuffle(cells)
    canvas = _Canvas(rng, size, plain=True)
    counts: Counter[Shape] = Counter()
    for colour in rng.sample(list(COLOURS), rng.randint(1, 3)):
        forms = [rng.choice(SHAPES)] if rng.random() < 0.6 else list(SHAPES)
        for _ in range(min(rng.randint(1, MAX_OF_A_COLOUR), len(cells))):
            form = rng.choice(forms)
            column, row = cells.pop()
            canvas.draw_shape(form, colour, (column * cell, row * cell), cell)
            counts[colour, form] += 1
    return canvas.finish(), dict(counts)


def to_patches(picture: Image.Image) -> tuple[Tensor, Grid]:
    """Return what the official image processor makes of a picture: patches (N, pixel values) in float32, and its grid.

    Raises:
        ValueError: An edge is no multiple of 32 pixels: the processor would scale the picture.
    """
    width, height = picture.size
    if width % TOKEN_EDGE or height % TOKEN_EDGE:
        raise ValueError(f"edges must be multiples of {TOKEN_EDGE} pixels, got {width} x {height}")
    values = torch.from_numpy(np.array(picture.convert("RGB"))).float()
    values = (values - 255 * PICTURE_MEAN) / (255 * PICTURE_STD)
    rows, columns = height // TOKEN_EDGE, width // TOKEN_EDGE
    squares = values.view(rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3)
    # The patches of a token follow each other; a patch has channel, frame, row, column.
    patches = squares.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, PATCH_SIZE * PATCH_SIZE)
    return patches.repeat(1, 1, TEMPORAL_PATCH_SIZE, 1).flatten(1), (rows * MERGE_SIZE, columns * MERGE_SIZE)


class _Canvas:
    """Paper of one colour, on which ink of another is put, and noise over both."""

    def __init__(self, rng: random.Random, size: tuple[int, int], plain: bool = False) -> None:
        self.rng, self.size = rng, size
        self.paper, self.ink = (_grey(rng), (0, 0, 0)) if plain else _two_colours(rng)
        self.image = Image.new("RGB", size, self.paper)
        self.marks: list[Mark] = []

    def write(self, ink: "_Ink", at: tuple[int, int]) -> None:
        self.image.paste(self.ink, at, ink.mask)
        self.marks += [mark.moved(*at) for mark in ink.marks]

    def draw_shape(self, form: str, colour: str, corner: tuple[int, int], cell: int) -> None:
        """Draw a shape somewhere in its cell, smoothed by drawing four times as large."""
        edge = self.rng.randint(round(cell * 0.6), cell - 3)
        mask = Image.new("L", (4 * edge, 4 * edge))
        box = (0, 0, 4 * edge - 1, 4 * edge - 1)
        pen = ImageDraw.Draw(mask)
        if form == "circle":
            pen.ellipse(box, fill=255)
        elif form == "square":
            pen.rectangle((edge // 4, edge // 4, box[2] - edge // 4, box[3] - edge // 4), fill=255)
        else:
            pen.polygon(((2 * edge, 0), (box[2], box[3]), (0, box[3])), fill=255)
        mask = mask.resize((edge, edge), Image.Resampling.BOX)
        place = tuple(start + 1 + self.rng.randint(0, cell - edge - 2) for start in corner)
        self.image.paste(_near(self.rng, ImageColor.getrgb(COLOURS[colour]), 18), (place[0], place[1]), mask)
        self.marks.append(Mark(f"{colour} {form}", place[0] + edge / 2, place[1] + edge / 2))

    def finish(self) -> Drawing:
        """Return the picture with its noise."""
        strength = self.rng.uniform(0, 10)
        noise = np.random.default_rng(self.rng.getrandbits(64)).normal(0, strength, (*self.image.size[::-1], 3))
        noisy = np.clip(np.asarray(self.image) + noise.astype(np.float32), 0, 255)
        return Drawing(Image.fromarray(noisy.round().astype(np.uint8)), tuple(self.marks))


@dataclass(frozen=True)
class _Ink:
    """Text as a mask of coverage, and where its characters are in the mask."""

    mask: Image.Image
    marks: tuple[Mark, ...]


def _ink(rng: random.Random, text: str, name: str, size: int) -> _Ink:
    """Return a line of text, slightly rotated, cut to what is drawn."""
    font = _font(name, size)
    _, top, _, bottom = font.getbbox("0", anchor="ms")
    places = _places(font, text)
    mask = Image.new("L", (round(places[-1][1]) + 2 * size, 3 * size))
    pen, baseline, marks = ImageDraw.Draw(mask), 2 * size, []
    for character, place in places:
        pen.text((size + place, baseline), character, fill=255, font=font, anchor="ms")
        if character != " ":
            marks.append(Mark(character, size + place, baseline + (top + bottom) / 2))
    if rng.random() < 0.5:
        angle = rng.uniform(-ROTATION, ROTATION)
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
        marks = [_rotated(mark, math.radians(angle), mask.size) for mark in marks]
        middle = sum(mark.y for mark in marks) / len(marks)
        marks = [Mark(mark.what, mark.x, middle) for mark in marks]
    box = mask.getbbox()
    return _Ink(mask.crop(box), tuple(mark.moved(-box[0], -box[1]) for mark in marks) if box else ())


def _places(font: ImageFont.FreeTypeFont, line: str) -> list[tuple[str, float]]:
    """Return the characters of a line, each with the distance of its middle from the line's beginning in pixels."""
    places, x = [], 0.0
    for character in line:
        advance = font.getlength(character)
        advance = advance if character == " " else max(advance, PITCH)
        places.append((character, x + advance / 2))
        x += advance
    return places


def _rotated(mark: Mark, angle: float, size: tuple[int, int]) -> Mark:
    """Return where a mark is after the rotation of a mask of `size` about its middle."""
    right, down = mark.x - size[0] / 2, mark.y - size[1] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return Mark(mark.what, size[0] / 2 + cos * right + sin * down, size[1] / 2 - sin * right + cos * down)


def _pick_size(rng: random.Random, needed: tuple[int, int]) -> tuple[int, int]:
    fitting = [size for size in SIZES if all(a >= b + 2 * MARGIN for a, b in zip(size, needed, strict=True))]
    if not fitting:
        raise DoesNotFit(f"a picture has at most {SIZES[-1][0]} x {SIZES[-1][1]} pixels, text needs {needed}")
    return rng.choice(fitting)


def _font_name(rng: random.Random, text: str) -> str:
    return rng.choice(FONTS if text.isascii() else [name for name in FONTS if name not in ASCII_FONTS])


@lru_cache(maxsize=1024)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if not name:
        built_in = ImageFont.load_default(size)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType: install a build with it")
        return built_in
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("matplotlib is missing; its fonts are drawn with: pip install matplotlib")
    return ImageFont.truetype(Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf", name), size)


def _two_colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return colours of paper and ink, mostly black on white or the reverse, with enough contrast."""
    if rng.random() < 0.4:
        light, dark = _near(rng, (245, 245, 245), 10), _near(rng, (25, 25, 25), 25)
        return (light, dark) if rng.random() < 0.75 else (dark, light)
    while True:
        paper, ink = ((rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(2))
        if abs(_brightness(paper) - _brightness(ink)) >= CONTRAST:
            return paper, ink


def _grey(rng: random.Random) -> tuple[int, int, int]:
    """Return a paper on which every colour of `COLOURS` stands out: nearly white or nearly black."""
    return _near(rng, (247, 247, 247) if rng.random() < 0.8 else (15, 15, 15), 8)


def _near(rng: random.Random, colour: tuple[int, ...], by: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, part + rng.randint(-by, by))) for part in colour[:3])
    return red, green, blue


def _brightness(colour: tuple[int, int, int]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
