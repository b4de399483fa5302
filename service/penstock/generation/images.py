"""Find the images of a conversation, and learn their sizes from the engine before a call is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.engine.base import Engine
from penstock.types import Image, Message, Request

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
"""Media types of images that can be read."""


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Return all images, in the order in which the caller sent them."""
    return tuple(
        image
        for message in messages
        for image in (*message.images, *(image for result in message.tool_results for image in result.images))
    )


async def measured(request: Request, engine: Engine) -> Request:
    """Return the request with the number of tokens of each of its images.

    Raise BadRequest for an image that cannot be read, Overloaded where too many wait.
    """
    if request.messages is None or not images_of(request.messages):
        return request
    messages = [await _measured_message(message, engine, request.caller_id) for message in request.messages]
    return replace(request, messages=tuple(messages))


async def _measured_message(message: Message, engine: Engine, caller: str) -> Message:
    images = await _measured_images(message.images, engine, caller)
    results = [
        replace(result, images=await _measured_images(result.images, engine, caller)) if result.images else result
        for result in message.tool_results
    ]
    return replace(message, images=images, tool_results=tuple(results))


async def _measured_images(images: Sequence[Image], engine: Engine, caller: str) -> tuple[Image, ...]:
    return tuple([replace(image, tokens=await engine.image_tokens(image, caller)) for image in images])
