"""Give images to vLLM: count their tokens, and build prompts with their pixels."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image as Pillow
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM

from penstock.engine.images.cache import ImageCache
from penstock.errors import EngineRefused
from penstock.types import DecodedImage, EngineRequest, Image


class PictureInput:
    """Build prompts with images. Belongs to one event loop.

    Args:
        llm: The engine.
        images: Decodes images.
        stands_for_image: Id of the token that stands for images in prompts.
    """

    def __init__(self, llm: AsyncLLM, images: ImageCache, stands_for_image: int) -> None:
        self._llm = llm
        self._images = images
        self._stands_for_image = stands_for_image
        self._info: Any = llm.renderer.get_mm_processor().info

    async def tokens(self, image: Image, caller: str) -> int:
        """Return how many tokens of a prompt stand for an image. Raise as `Engine.image_tokens` does."""
        decoded = await self._images.decode(image, caller)
        return int(
            self._info.get_num_image_tokens(
                image_width=decoded.width,
                image_height=decoded.height,
                image_processor=self._info.get_image_processor(),
                mm_kwargs={},
            )
        )

    async def prompt(self, request: EngineRequest) -> Any:
        """Return vLLM's input of a request with images.

        vLLM repeats the token that stands for an image itself, in a thread, while the pixels become patches there.
        """
        decoded = [await self._images.decode(image, request.caller_id) for image in request.images]
        prompt = TokensPrompt(
            prompt_token_ids=_once_for_each(request.prompt_token_ids, request.images, self._stands_for_image),
            multi_modal_data={"image": await asyncio.to_thread(_pictures, decoded)},
            multi_modal_uuids={"image": [_cache_key(one, request.cache_salt) for one in decoded]},
        )
        if request.cache_salt is not None:
            prompt["cache_salt"] = request.cache_salt
        (rendered,) = await self._llm.renderer.render_cmpl_async([prompt])
        if tuple(rendered["prompt_token_ids"]) != request.prompt_token_ids:
            raise EngineRefused("vLLM counts other tokens for an image than the service")
        return rendered

    async def close(self) -> None:
        """End the process that decodes."""
        await self._images.close()


def _once_for_each(ids: Sequence[int], images: Sequence[Image], stands_for_image: int) -> list[int]:
    """Return the ids with one token for each image in place of `tokens` of it."""
    result: list[int] = []
    left = iter(images)
    at = 0
    while at < len(ids):
        result.append(ids[at])
        at += next(left).tokens if ids[at] == stands_for_image else 1
    return result


def _pictures(images: Sequence[DecodedImage]) -> list[Pillow.Image]:
    """Return Pillow's objects, with copies of the pixels: in a thread, because copying takes milliseconds."""
    return [Pillow.frombytes("RGB", (image.width, image.height), image.rgb) for image in images]


def _cache_key(image: DecodedImage, salt: str | None) -> str:
    """Return the name of an image in vLLM's caches of patches and of the tower's output, in which the salt is no key.

    The whole hash: a shorter one could show a caller another image.
    """
    return hashlib.sha256(f"{salt or ''}\0{image.digest}".encode()).hexdigest()
