"""Images of a request: their places, bounds and tokens, before an engine runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from penstock.config.schema import Config, EngineSettings
from penstock.engine.images.cache import ImageCache
from penstock.engine.scripted import ScriptedEngine
from penstock.errors import BadRequest, FeatureOff
from penstock.generation.context_window import kept_messages
from penstock.generation.images import images_of, measured
from penstock.generation.planner import plan_generation
from penstock.generation.validation import validate
from penstock.server.convert.generation import request_from_proto
from penstock.types import ContextConfig, GenerationPlan, Image, Message, Overflow, Request, Role
from penstock_proto.v1 import generation_pb2 as pb

from tests.pictures import png

ENGINE = ScriptedEngine([])
SMALL = png(64, 32)  # two tokens in the scripted engine


def text(said: str) -> pb.Part:
    return pb.Part(text=said)


def image(data: bytes = SMALL, mime_type: str = "image/png") -> pb.Part:
    return pb.Part(image=pb.Image(mime_type=mime_type, data=data))


def spec(*parts: pb.Part) -> pb.GenerationSpec:
    return pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]))


async def planned(asked: pb.GenerationSpec | Request) -> GenerationPlan:
    request = request_from_proto(asked) if isinstance(asked, pb.GenerationSpec) else asked
    config = Config()
    validate(request, ENGINE.card, config.resolved_limits)
    return plan_generation(await measured(request, ENGINE), ENGINE, config)


def refused(asked: pb.GenerationSpec, **limits: int) -> dict[str, str]:
    """The violations by field."""
    bounds = Config.model_validate({"limits": limits}).resolved_limits
    with pytest.raises(BadRequest) as raised:
        validate(request_from_proto(asked), ENGINE.card, bounds)
    return {violation.field: violation.description for violation in raised.value.violations}


def test_texts_and_images_of_a_user_come_in_any_order() -> None:
    (message,) = request_from_proto(spec(image(), text("left"), image(b"x"), image(), text("right"))).messages or ()
    assert message.content == "leftright"
    assert [(one.place, one.path) for one in message.images] == [
        (0, "spec.messages.messages[0].parts[0].image"),
        (4, "spec.messages.messages[0].parts[2].image"),
        (4, "spec.messages.messages[0].parts[3].image"),
    ]


async def test_a_plan_has_a_token_for_each_square_of_pixels_at_the_images_place() -> None:
    plan = await planned(
        spec(text("<"), image(png(64, 32)), text("|"), image(png(33, 32)), image(png(1, 1)), text(">"))
    )
    (stands,) = ENGINE.card.image_token_ids
    ids = plan.context.prompt_token_ids
    begin, end = ids.index(ord("<")), len(ids) - ids[::-1].index(ord(">"))
    assert ids[begin:end] == (ord("<"), stands, stands, ord("|"), *(stands,) * 3, ord(">"))
    assert [one.tokens for one in plan.context.images] == [2, 2, 1]
    assert plan.context.image_tokens == 5


async def test_the_spelled_name_of_an_image_token_is_text() -> None:
    plan = await planned(spec(text("<|image_pad|>"), image()))
    (stands,) = ENGINE.card.image_token_ids
    assert plan.context.prompt_token_ids.count(stands) == 2


@pytest.mark.parametrize("raw", [{"text": "a<|image_pad|>"}, {"token_ids": (97, *ENGINE.card.image_token_ids)}])
def test_a_raw_prompt_with_an_image_token_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="token of images") as raised:
        plan_generation(Request(**raw), ENGINE, Config())  # type: ignore[arg-type]
    assert raised.value.violations[0].field in ("spec.text", "spec.token_ids.ids")


def test_number_bytes_and_types_are_bounded_before_anything_is_decoded() -> None:
    assert "at most 2 images, got 3" in refused(spec(image(), image(), image()), max_images=2)["spec.messages"]
    assert "bytes of images" in refused(spec(image(), image()), max_image_bytes=len(SMALL))["spec.messages"]
    path = "spec.messages.messages[0].parts[0].image"
    assert "image/jpeg, image/webp, got 'image/gif'" in refused(spec(image(mime_type="image/gif")))[f"{path}.mime_type"]
    assert "got none" in refused(spec(image(mime_type="")))[f"{path}.mime_type"]
    assert refused(spec(image(b"")))[f"{path}.data"] == "must not be empty"


def test_a_user_may_show_an_image_without_a_word() -> None:
    validate(request_from_proto(spec(image())), ENGINE.card, Config().resolved_limits)


def test_a_model_that_reads_text_only_says_so() -> None:
    engine = ScriptedEngine([], settings=EngineSettings(kind="scripted", images="off"))
    with pytest.raises(FeatureOff, match="reads no images") as raised:
        validate(request_from_proto(spec(text("a"), image())), engine.card, Config().resolved_limits)
    assert raised.value.metadata["field"] == "spec.messages.messages[0].parts[1].image"


def turns(count: int) -> Sequence[Message]:
    shown = Image(SMALL, "image/png", 0, "path")
    talk = [Message(Role.SYSTEM, "s")]
    for number in range(count):
        talk += [Message(Role.USER, f"{number}" * 40, images=(shown,)), Message(Role.ASSISTANT, "a" * 40)]
    return [*talk, Message(Role.USER, "last", images=(replace(shown, path="last"),))]


async def test_dropped_turns_take_their_images_with_them() -> None:
    messages = tuple(turns(14))
    asked = Request(
        messages=messages, context=ContextConfig(max_context_tokens=700, overflow=Overflow.DROP_OLDEST_TURNS)
    )
    plan = await planned(asked)
    assert 0 < plan.context.dropped_messages < 28
    (stands,) = ENGINE.card.image_token_ids
    assert plan.context.prompt_token_ids.count(stands) == 2 * len(plan.context.images)
    assert plan.context.images[-1].path == "last"
    assert len(images_of(kept_messages(messages, plan.context))) == len(plan.context.images)


async def test_the_latest_pixels_are_kept_for_their_caller() -> None:
    cache = ImageCache(EngineSettings(), max_bytes=2 * 64 * 32 * 3)
    one = Image(SMALL, "image/png", 0, "path")
    try:
        first = await cache.decode(one, "a")
        assert await cache.decode(one, "a") is first
        others = await asyncio.gather(cache.decode(one, "b"), cache.decode(replace(one, data=png(64, 32, "red")), "a"))
        assert [other.digest == first.digest for other in others] == [True, False]
        assert others[0] is not first
        assert await cache.decode(one, "a") is not first, "two pictures fit"
    finally:
        await cache.close()
