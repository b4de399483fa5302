"""The process that decodes images: right pictures, refusals, and that it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.child_environment import ALLOWED
from penstock.engine.images import ImageDecoder
from penstock.engine.images.cache import limits_of
from penstock.errors import BadRequest, Overloaded
from penstock.types import DecodedImage

from tests.hostile_images import CASES, Case
from tests.pictures import png

LIMITS = limits_of(EngineSettings())


@pytest.fixture
async def decoder() -> AsyncIterator[ImageDecoder]:
    made = ImageDecoder(LIMITS)
    yield made
    await made.close()


def process_of(decoder: ImageDecoder) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def pixel(image: DecodedImage, place: tuple[int, int]) -> tuple[int, ...]:
    at = 3 * (place[1] * image.width + place[0])
    return tuple(image.rgb[at : at + 3])


async def outcome(decoder: ImageDecoder, case: Case) -> str:
    """Empty where the case became what it must."""
    try:
        image = await decoder.decode(case.data, case.mime_type, "field", "caller")
    except BadRequest as error:
        (violation,) = error.violations
        if not case.refusal or case.refusal not in violation.description:
            return f"{case.name}: {violation.field} {violation.description}"
        return "" if violation.field in ("field.data", "field.mime_type") else f"{case.name}: {violation.field}"
    if case.refusal:
        return f"{case.name}: decoded as {image.width} x {image.height}"
    if case.size is not None and (image.width, image.height) != case.size:
        return f"{case.name}: {image.width} x {image.height}"
    for place, colour in case.pixels:
        seen = pixel(image, place)
        if any(abs(a - b) > case.tolerance for a, b in zip(seen, colour, strict=True)):
            return f"{case.name}: {seen} at {place}"
    return ""


@pytest.mark.slow
async def test_hostile_images_are_refused_in_words_or_become_the_right_picture(decoder: ImageDecoder) -> None:
    assert len(CASES) >= 60
    assert [wrong for case in CASES if (wrong := await outcome(decoder, case))] == []


async def test_the_process_knows_nothing_of_the_services_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and tokens are not where strangers' bytes are read."""
    for name in ("HF_TOKEN", "PENSTOCK_AUTH__KEYS", "AWS_SECRET_ACCESS_KEY", "PYTHON_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    decoder = ImageDecoder(LIMITS)
    try:
        await decoder.decode(png(64, 64), "image/png", "field", "caller")
        seen = psutil.Process(process_of(decoder)).environ()
    finally:
        await decoder.close()
    assert "a-secret" not in seen.values()
    assert set(seen) <= ALLOWED | {"MALLOC_ARENA_MAX"}
    assert (seen["TZ"], seen["MALLOC_ARENA_MAX"]) == ("Europe/Berlin", "1")


@pytest.mark.slow
@pytest.mark.timeout(400)  # some 250 images, each with a bound of its own
async def test_memory_is_flat(decoder: ImageDecoder) -> None:
    """A second and a third round of all cases leave no more than the first; processes that died have been replaced."""
    sizes = []
    for _ in range(3):
        for case in CASES:
            await outcome(decoder, case)
        await decoder.decode(png(64, 64), "image/png", "field", "caller")
        sizes.append(psutil.Process(process_of(decoder)).memory_info().rss)
    assert max(sizes[1:]) < sizes[0] + 64 * 2**20


async def test_an_image_that_takes_too_long_is_refused_and_the_next_is_decoded() -> None:
    decoder = ImageDecoder(replace(LIMITS, seconds=0.0001))
    try:
        with pytest.raises(BadRequest, match=r"within 0\.0001 seconds of the processor"):
            await decoder.decode(png(3000, 3000, text="x"), "image/png", "field", "caller")
    finally:
        await decoder.close()
    decoder = ImageDecoder(replace(LIMITS, memory_bytes=8 * 2**20))
    try:
        with pytest.raises(BadRequest, match="memory"):
            await decoder.decode(png(3000, 3000), "image/png", "field", "caller")
        assert (await decoder.decode(png(8, 8), "image/png", "field", "caller")).width == 8
    finally:
        await decoder.close()


async def test_an_image_survives_the_death_of_the_process(decoder: ImageDecoder) -> None:
    await decoder.decode(png(8, 8), "image/png", "field", "caller")
    first = process_of(decoder)
    os.kill(first, signal.SIGKILL)
    assert (await decoder.decode(png(9, 8), "image/png", "field", "caller")).width == 9
    assert process_of(decoder) != first


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_start_that_fails_is_tried_once_more_and_said_with_its_exit_status(
    failing: int,
    tmp_path: Path,
    decoder: ImageDecoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\necho >> {tmp_path}/starts\n"
        f"[ $(wc -l < {tmp_path}/starts) -gt {failing} ] || {{ echo no library >&2; exit 7; }}\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if failing == 1:
        image = await decoder.decode(png(64, 64, "red"), "image/png", "field", "caller")
        assert pixel(image, (0, 0)) == (255, 0, 0)
    else:
        with pytest.raises(Overloaded, match="the decoder did not start"):
            await decoder.decode(png(64, 64, "red"), "image/png", "field", "caller")
    said = "the process that decodes images did not start: IncompleteReadError, exit status 7\nno library\n"
    assert caplog.text.count(said) == failing


async def test_nothing_of_an_image_can_reach_the_log(decoder: ImageDecoder) -> None:
    await decoder.decode(png(8, 8), "image/png", "field", "caller")
    assert os.readlink(f"/proc/{process_of(decoder)}/fd/2") == os.devnull
    assert len(os.listdir(f"/proc/{process_of(decoder)}/fd")) == 3


async def test_a_cancelled_call_leaves_no_half_reply(decoder: ImageDecoder) -> None:
    await decoder.decode(png(8, 8), "image/png", "field", "caller")
    large = asyncio.create_task(decoder.decode(png(2000, 2000), "image/png", "field", "a"))
    await asyncio.sleep(0)
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    assert (await decoder.decode(png(9, 8), "image/png", "field", "b")).width == 9


async def test_waiting_images_are_bounded() -> None:
    decoder = ImageDecoder(replace(LIMITS, max_waiting=3))
    try:
        found = await asyncio.gather(
            *(decoder.decode(png(8, 8), "image/png", "field", f"{n}") for n in range(5)), return_exceptions=True
        )
        assert [isinstance(one, Overloaded) for one in found] == [False] * 3 + [True] * 2
        assert (await decoder.decode(png(8, 8), "image/png", "field", "a")).width == 8
    finally:
        await decoder.close()
    assert decoder._waiting == 0
    assert not decoder._callers
