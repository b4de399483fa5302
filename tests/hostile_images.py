"""Images as strangers send them, each with what must become of it: a colour at a place, or a refusal in our words."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

Pixel = tuple[int, int, int]
RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
DAMAGED = "must be a whole image"
OTHER = "must be a PNG, JPEG or WebP image"


@dataclass(frozen=True)
class Case:
    """`pixels` are the colours at places of the right picture; without them `refusal` is in the error."""

    name: str
    data: bytes = field(repr=False)
    mime_type: str = "image/png"
    refusal: str = ""
    pixels: tuple[tuple[tuple[int, int], Pixel], ...] = ()
    size: tuple[int, int] | None = None
    tolerance: int = 0


def save(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, 32 x 16."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image.convert(mode)


LEFT, RIGHT = (4, 8), (28, 8)
BOTH = ((LEFT, RED), (RIGHT, BLUE))


def right_pictures() -> Iterator[Case]:
    """Give unusual pictures that are right."""
    for form in ("PNG", "WEBP"):
        yield Case(f"{form} lossless", save(halves(), form, lossless=True), f"image/{form.lower()}", pixels=BOTH)
    yield Case("JPEG", save(halves(), "JPEG", quality=95), "image/jpeg", pixels=BOTH, tolerance=12)
    yield Case(
        "progressive JPEG",
        save(halves(), "JPEG", quality=95, progressive=True),
        "image/jpeg",
        pixels=BOTH,
        tolerance=12,
    )
    yield Case("CMYK JPEG", save(halves("CMYK"), "JPEG", quality=95), "image/jpeg", pixels=BOTH, tolerance=40)
    yield Case(
        "grey JPEG",
        save(Image.new("L", (32, 16), 200), "JPEG"),
        "image/jpeg",
        pixels=((LEFT, (200,) * 3),),
        tolerance=3,
    )
    yield Case("one pixel", save(Image.new("RGB", (1, 1), RED)), pixels=(((0, 0), RED),), size=(1, 1))
    yield Case("one bit", save(Image.new("1", (8, 8), 1)), pixels=(((3, 3), WHITE),))
    yield Case("palette", save(halves("P")), pixels=BOTH)
    palette = halves("P")
    yield Case(
        "palette with a clear colour",
        save(palette, transparency=palette.getpixel(LEFT)),
        pixels=((LEFT, WHITE), (RIGHT, BLUE)),
    )
    yield Case("RGB with a clear colour", save(halves(), transparency=RED), pixels=((LEFT, WHITE), (RIGHT, BLUE)))
    clear = halves("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    yield Case("wholly clear", save(clear), pixels=((LEFT, WHITE), (RIGHT, WHITE)))
    half = halves("RGBA")
    half.putalpha(Image.new("L", half.size, 128))
    yield Case("half clear", save(half), pixels=((LEFT, (255, 127, 127)), (RIGHT, (127, 127, 255))), tolerance=2)
    yield Case(
        "half clear WebP",
        save(half, "WEBP", lossless=True),
        "image/webp",
        pixels=((LEFT, (255, 127, 127)),),
        tolerance=2,
    )
    yield Case("grey with alpha", save(Image.new("LA", (8, 8), (0, 128))), pixels=(((2, 2), (127,) * 3),), tolerance=2)
    for value, seen in ((0, 0), (65535, 255), (32896, 128), (255, 1)):
        grey = png(4, 4, b"".join(b"\0" + struct.pack(">H", value) * 4 for _ in range(4)), depth=16, colour=0)
        yield Case(f"16-bit grey {value}", grey, pixels=(((1, 1), (seen,) * 3),), tolerance=1)
    deep = png(4, 4, b"".join(b"\0" + struct.pack(">HHH", 65535, 0, 32896) * 4 for _ in range(4)), depth=16, colour=2)
    yield Case("16-bit RGB", deep, pixels=(((1, 1), (255, 0, 128)),), tolerance=1)
    for orientation, left in ((1, RED), (2, BLUE), (3, BLUE), (4, RED)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(f"EXIF {orientation}", save(halves(), exif=exif), pixels=((LEFT, left),), size=(32, 16))
    for orientation, top in ((5, RED), (6, RED), (7, BLUE), (8, BLUE)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(f"EXIF {orientation}", save(halves(), exif=exif), pixels=(((8, 4), top),), size=(16, 32))
    yield Case("EXIF that is no EXIF", save(halves(), exif=b"Exif\0\0" + b"\xff" * 40), pixels=BOTH)
    yield Case("PNG and then a program", save(halves()) + b"#!/bin/sh\nexit\n" * 100, pixels=BOTH)
    yield Case("PNG and then a ZIP", save(halves()) + b"PK\x03\x04" + b"\0" * 100, pixels=BOTH)
    yield Case(
        "JPEG and then HTML",
        save(halves(), "JPEG", quality=95) + b"<script>1</script>",
        "image/jpeg",
        pixels=BOTH,
        tolerance=12,
    )
    yield Case(
        "text in the PNG", png(1, 1, b"\0\xff\0\0", before=chunk(b"tEXt", b"a\0<|image_pad|>")), pixels=(((0, 0), RED),)
    )
    clear = chunk(b"tRNS", struct.pack(">HHH", 65535, 0, 32896))
    deep_clear = png(
        4, 4, b"".join(b"\0" + struct.pack(">HHH", 65535, 0, 32896) * 4 for _ in range(4)), depth=16, before=clear
    )
    yield Case("16-bit RGB with a clear colour", deep_clear, pixels=(((1, 1), WHITE),))
    grey_clear = png(4, 4, (b"\0" + b"\x12\x34" * 4) * 4, depth=16, colour=0, before=chunk(b"tRNS", b"\x12\x34"))
    yield Case("16-bit grey with a clear value", grey_clear, pixels=(((1, 1), WHITE),))
    endless = save(halves())
    endless = endless[:33] + struct.pack(">I", 2**32 - 1) + endless[37:]
    yield Case("pixels in a chunk of 4 GiB, as it says", endless, pixels=BOTH)
    fewer = png(64, 64, (b"\0" + bytes(RED) * 64) * 10)
    yield Case("fewer rows than the header says", fewer, pixels=(((9, 9), RED), ((9, 60), BLACK)))
    yield Case("interlaced", save(halves(), interlace=1), pixels=BOTH)
    more = save(halves(), "JPEG", quality=95)
    yield Case(
        "a photo with a second one behind it",
        save(halves(), "MPO", save_all=True, append_images=[halves()], quality=95) or more,
        "image/jpeg",
        pixels=BOTH,
        tolerance=12,
    )
    large = Image.new("RGB", (3000, 2000), RED)
    yield Case("larger than the target", save(large), pixels=(((10, 10), RED),), size=(2508, 1672))


def refused_pictures() -> Iterator[Case]:
    """Give what must not be decoded."""
    whole = save(Image.effect_noise((64, 64), 80).convert("RGB"))
    for form, data in (
        ("png", whole),
        ("jpeg", save(halves(), "JPEG")),
        ("webp", save(halves(), "WEBP", lossless=True)),
    ):
        for share in (0.3, 0.6, 0.9):
            yield Case(f"{form} cut at {share}", data[: int(len(data) * share)], f"image/{form}", refusal="must be")
    yield Case(
        "JPEG as PNG", save(halves(), "JPEG"), "image/png", refusal="must be image/jpeg, as the data is, got image/png"
    )
    yield Case("PNG as WebP", whole, "image/webp", refusal="must be image/png")
    yield Case("GIF as PNG", save(halves("P"), "GIF"), refusal=OTHER)
    yield Case("BMP as PNG", save(halves(), "BMP"), refusal=OTHER)
    yield Case("TIFF as JPEG", save(halves(), "TIFF"), "image/jpeg", refusal=OTHER)
    yield Case("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file", refusal=OTHER)
    yield Case(
        "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', refusal=OTHER
    )
    yield Case("text", b"<|image_pad|>" * 10, refusal=OTHER)
    yield Case("an address", b"http://127.0.0.1/a.png", refusal=OTHER)
    yield Case("zero bytes", b"\0" * 1000, refusal=OTHER)
    yield Case("a signature alone", b"\x89PNG\r\n\x1a\n", refusal="must be")
    yield Case("no pixels wide", png(0, 4, b""), refusal="must")
    yield Case("no pixels high", png(4, 0, b""), refusal="must")
    yield Case("1 x 100,000", png(1, 100_000, b"\0\0\0\0" * 100_000), refusal="must be at most 32,768 pixels long")
    yield Case("1 x 20,000", png(1, 20_000, b"\0\0\0\0" * 20_000), refusal="times as long as the other side")
    yield Case(
        "a bomb: 50,000 x 50,000",
        png(50_000, 50_000, b"\0" * 10_000_000),
        refusal="must have at most 40,000,000 pixels",
    )
    yield Case(
        "a header of 4 billion pixels on a side", png(2**31 - 1, 2**31 - 1, b""), refusal="must have at most 40,000,000"
    )
    yield Case("a wrong filter", png(4, 4, b"\x09" + b"\0" * 12), refusal="must be")
    yield Case("a colour type that is none", png(4, 4, b"\0" * 100, colour=5), refusal="must be")
    yield Case("a depth that is none", png(4, 4, b"\0" * 100, depth=7), refusal="must be")
    yield Case("a wrong checksum", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], refusal="must be")
    yield Case("a chunk longer than the file", whole[:8] + struct.pack(">I", 2**31 - 1) + whole[12:], refusal="must be")
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 300_000_000, 9))
    yield Case("a text of 300 MB", png(1, 1, b"\0\xff\0\0", before=bomb), refusal="must be")
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 300_000_000, 9))
    yield Case("a colour profile of 300 MB", png(1, 1, b"\0\xff\0\0", before=profile), refusal="must be")
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, WHITE)]
    yield Case("an animated PNG", save(frames[0], save_all=True, append_images=frames[1:]), refusal="got an animation")
    yield Case(
        "an animated WebP",
        save(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "image/webp",
        refusal="got an animation",
    )
    yield Case("JPEG markers without end", b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10_000, "image/jpeg", refusal="must be")
    scans = save(Image.new("L", (1024, 1024), 9), "JPEG", progressive=True)
    start = scans.index(b"\xff\xda")
    scan = scans[start : scans.index(b"\xff", start + 2)]
    yield Case("a JPEG of 200,000 scans", scans[:start] + scan * 200_000 + b"\xff\xd9", "image/jpeg", refusal="must be")
    yield Case("RIFF that is no WebP", b"RIFF\x20\0\0\0WEBPVP8X" + b"\xff" * 32, "image/webp", refusal="must be")


CASES = [*right_pictures(), *refused_pictures()]
