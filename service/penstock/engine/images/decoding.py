"""Decode one image with Pillow. Only the process `decoder_process` does this: a decoder may crash or never end."""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError

_FORMATS = {"image/png": ("PNG",), "image/jpeg": ("JPEG", "MPO"), "image/webp": ("WEBP",)}
"""Pillow's formats of each media type. MPO is a JPEG with more pictures behind it, as phones write it."""
_PLUGINS = ("PNG", "JPEG", "WEBP")
_WHITE = (255, 255, 255, 255)
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bound the decoding of an image.

    Attributes:
        max_pixels: Pixels of an image, as its header says.
        max_side: Pixels of its longer side.
        max_aspect: Times that the longer side may be as long as the shorter one.
        target_pixels: Larger images are scaled down to so many pixels; their sides keep their ratio.
        seconds: The processor's time for one image.
        memory_bytes: Memory of the process, in addition to what it needs without an image.
        max_waiting: Images that wait at once; further ones are refused as Overloaded.
    """

    max_pixels: int
    max_side: int
    max_aspect: int
    target_pixels: int
    seconds: float
    memory_bytes: int
    max_waiting: int


class Fault(enum.IntEnum):
    """Enumerate what is wrong with an image."""

    DATA = 1
    MIME_TYPE = 2
    LIMIT = 3


class Refused(Exception):
    """Refuse an image. The text is ours alone: nothing of the image is in it."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault
        self.text = text


def decode(data: bytes, mime_type: str, limits: ImageLimits) -> tuple[int, int, bytes]:
    """Return width, height and the pixels as RGB bytes, row by row. Raise Refused."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = None  # `_check` bounds what the header says, before anything is decoded
    try:
        image = Image.open(io.BytesIO(data), formats=_PLUGINS)
    except UnidentifiedImageError:
        raise Refused(Fault.DATA, "must be a PNG, JPEG or WebP image, got something else") from None
    except Exception:
        raise _damaged() from None
    found = next((known for known, formats in _FORMATS.items() if image.format in formats), "")
    if found != mime_type:
        raise Refused(Fault.MIME_TYPE, f"must be {found or 'that of the data'}, as the data is, got {mime_type}")
    _check(image, limits)
    try:
        image.load()
        pixels = _in_rgb(_upright(image), limits.target_pixels)
    except MemoryError:
        raise
    except Exception:
        raise _damaged() from None
    return pixels.width, pixels.height, pixels.tobytes()


def _damaged() -> Refused:
    return Refused(Fault.DATA, "must be a whole image, got one that ends early or is damaged")


def _check(image: Image.Image, limits: ImageLimits) -> None:
    """Raise Refused for a size or a number of pictures that is out of bounds. Nothing is decoded yet."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    if short < 1:
        raise Refused(Fault.DATA, f"must have at least one pixel, got {width} x {height}")
    if width * height > limits.max_pixels:
        at_most = f"must have at most {limits.max_pixels:,} pixels (engine.max_image_pixels)"
        raise Refused(Fault.LIMIT, f"{at_most}, got {width} x {height}")
    if long > limits.max_side:
        raise Refused(Fault.LIMIT, f"must be at most {limits.max_side:,} pixels long, got {width} x {height}")
    if long > limits.max_aspect * short:
        at_most = f"must be at most {limits.max_aspect} times as long as the other side"
        raise Refused(Fault.LIMIT, f"{at_most}, got {width} x {height}")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Refused(Fault.DATA, "must be one picture, got an animation")


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        return image


def _in_rgb(image: Image.Image, target_pixels: int) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        image = _in_eight_bits(image.convert("I"), image.info.get("transparency"))
    is_clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    image = _scaled(image.convert("RGBA" if is_clear else "RGB"), target_pixels)
    if not is_clear:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")


def _in_eight_bits(image: Image.Image, clear: object) -> Image.Image:
    """Return 16-bit grey as 8 bits, and the value `clear` as transparent."""
    grey = image.point(lambda value: value * (255 / 65535) + 0.5).convert("L")
    grey.info.pop("transparency", None)
    if not isinstance(clear, int):
        return grey
    # Conversion to 8 bits cuts at 0 and 255: what differs upwards or downwards is above 0 in one of the two.
    above = image.point(lambda value: value * 1 + -clear).convert("L")
    below = image.point(lambda value: value * -1 + clear).convert("L")
    opaque = ImageChops.lighter(above, below).point(lambda value: 255 if value else 0)
    return Image.merge("LA", (grey, opaque))


def _scaled(image: Image.Image, target_pixels: int) -> Image.Image:
    pixels = image.width * image.height
    if pixels <= target_pixels:
        return image
    ratio = (target_pixels / pixels) ** 0.5
    width, height = (max(1, int(side * ratio)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
