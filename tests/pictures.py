"""Make small pictures for tests."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw


def picture(width: int, height: int, colour: str = "white", text: str = "") -> Image.Image:
    """One colour, with a text in black."""
    made = Image.new("RGB", (width, height), colour)
    if text:
        ImageDraw.Draw(made).text((8, 8), text, fill="black")
    return made


def encoded(made: Image.Image, form: str) -> bytes:
    """The picture as PNG, JPEG or WEBP."""
    buffer = io.BytesIO()
    made.save(buffer, form)
    return buffer.getvalue()


def png(width: int, height: int, colour: str = "white", text: str = "") -> bytes:
    """A picture as PNG."""
    return encoded(picture(width, height, colour, text), "PNG")
