"""The official `openai` package from PyPI on the gateway: what the tests of the endpoints do not already do with it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest
from openai import OpenAI
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from pydantic import BaseModel

from tests.gateway.conftest import Gateway, openai_of, refusal, until
from tests.pictures import png
from tests.rpc.fake_service import FakeService

MODEL = "scripted"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PICTURE = f"data:image/png;base64,{base64.b64encode(png(64, 64)).decode()}"
DAMAGED = "data:image/png;base64,iVBORw0KGgo="


class Sum(BaseModel):
    """A sum."""

    value: int


async def test_structured_output(gateway: Gateway, served: tuple[FakeService, str], fake: FakeService) -> None:
    fake.candidate = pb.Candidate(answer='{"value": 75}')
    async with openai_of(await gateway.in_front_of(served[1])) as client:
        reply = await client.chat.completions.parse(model="", messages=HELLO, response_format=Sum)
    assert reply.choices[0].message.parsed == Sum(value=75)
    assert '"integer"' in fake.generations[-1].spec.output.json_schema


def chat_with(url: str) -> list[Any]:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": content}]


def input_with(url: str) -> list[Any]:
    item = {"type": "input_image", "image_url": url, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, item]}]


async def test_images_are_shown(gateway: Gateway) -> None:
    async with openai_of(await gateway()) as client:
        chat = await client.chat.completions.create(model=MODEL, messages=chat_with(PICTURE))
        response = await client.responses.create(model=MODEL, input=input_with(PICTURE))
    assert chat.choices[0].message.content
    assert response.output_text == chat.choices[0].message.content


async def test_damaged_images_are_refused_with_their_place(gateway: Gateway) -> None:
    async with openai_of(await gateway()) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=chat_with(DAMAGED))
        assert (refused.value.code, refused.value.param) == ("invalid_value", "messages[0].content[1]")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model=MODEL, input=input_with(DAMAGED))
        assert (refused.value.code, refused.value.param) == ("invalid_value", "input[0].content[1]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "error"), [("QUOTA_EXCEEDED", openai.RateLimitError), ("OVERLOADED", openai.InternalServerError)]
)
@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
async def test_what_was_refused_for_a_while_is_repeated(
    gateway: Gateway,
    served: tuple[FakeService, str],
    fake: FakeService,
    reason: str,
    error: type[openai.APIStatusError],
    endpoint: str,
) -> None:
    http = await gateway.in_front_of(served[1])
    fake.scripts = [[refusal(reason, 0.005)], fake.script, [refusal(reason, 1.5)]]
    async with openai_of(http, retries=1) as client:
        assert [one async for one in await _stream(client, endpoint)]
    assert len(fake.generations) == 2
    async with openai_of(http) as client:
        with pytest.raises(error) as refused:
            await _stream(client, endpoint)
    assert refused.value.response.headers["retry-after"] == "2"


async def _stream(client: openai.AsyncOpenAI, endpoint: str) -> openai.AsyncStream[Any]:
    if endpoint == "chat":
        return await client.chat.completions.create(model="", messages=HELLO, stream=True)
    if endpoint == "completions":
        return await client.completions.create(model="", prompt="hello", stream=True)
    return await client.responses.create(model="", input="hello", stream=True)


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
async def test_leaving_ends_the_generation(gateway: Gateway, endpoint: str) -> None:
    http = await gateway(Reply(thought="", answer="x" * 100_000, step_seconds=0.01), window=200_000)
    engine = gateway.engines[-1]
    async with openai_of(http) as client:
        stream = await _stream(client.with_options(timeout=60), endpoint)
        await anext(stream.__aiter__())
        await until(lambda: engine.running == 1)
        await stream.close()
        await until(lambda: engine.running == 0)


async def test_the_package_without_asyncio(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="hm", answer="It is 75."))

    def ask() -> tuple[str, str, str]:
        with OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
            with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
                chat = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            text = client.completions.create(model=MODEL, prompt="hello").choices[0].text
            with client.responses.stream(model=MODEL, input="hello") as events:
                for _ in events:
                    pass
                return chat, text, events.get_final_response().output_text

    assert await asyncio.to_thread(ask) == ("It is 75.",) * 3
