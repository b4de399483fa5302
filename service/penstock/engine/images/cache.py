"""Decode images, and keep the pixels of the latest ones: a call needs them for its plan and for each of its runs."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from penstock.config.schema import EngineSettings
from penstock.engine.images import ImageDecoder, ImageLimits
from penstock.types import DecodedImage, Image

_MAX_BYTES = 256 * 1024 * 1024
_DECODE_SECONDS = 5.0
_PROCESS_BYTES = 1024 * 1024 * 1024
_MAX_WAITING = 64
_MAX_SIDE = 32_768
_MAX_ASPECT = 100


def limits_of(settings: EngineSettings) -> ImageLimits:
    """Return the limits that the settings ask for."""
    return ImageLimits(
        max_pixels=settings.max_image_pixels,
        max_side=_MAX_SIDE,
        max_aspect=_MAX_ASPECT,
        target_pixels=settings.image_pixels,
        seconds=_DECODE_SECONDS,
        memory_bytes=_PROCESS_BYTES,
        max_waiting=_MAX_WAITING,
    )


class ImageCache:
    """Decode images in a process of its own. Belongs to one event loop.

    What one caller has sent makes no other caller's image faster, so that times tell nobody what others have.
    """

    def __init__(self, settings: EngineSettings, max_bytes: int = _MAX_BYTES) -> None:
        """Decode by the limits of `settings`; keep at most `max_bytes` of pixels."""
        self._decoder = ImageDecoder(limits_of(settings))
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str, bytes], DecodedImage] = OrderedDict()

    async def decode(self, image: Image, caller: str) -> DecodedImage:
        """Return an image's pixels. Raise BadRequest where it cannot be read, Overloaded where too many wait."""
        digest = await asyncio.to_thread(_digest, image.data)  # 8 MiB take ten milliseconds
        key = (caller, image.mime_type, digest)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        decoded = await self._decoder.decode(image.data, image.mime_type, image.path, caller)
        if key not in self._kept:  # another call may have decoded it meanwhile
            self._kept[key] = decoded
            self._bytes += len(decoded.rgb)
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.rgb)
        return decoded

    async def close(self) -> None:
        """End the process."""
        await self._decoder.close()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
