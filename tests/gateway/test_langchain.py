"""`langchain-openai` on the gateway: replies, streams, tools, structured output, errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import BadRequestError
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from pydantic import BaseModel

from tests.gateway.conftest import Gateway, refusal, until
from tests.rpc.fake_service import FakeService
from tests.rpc.test_tool_calls import OSLO

# Of LangChain's own packages among themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def model_of(http: httpx.AsyncClient, **more: Any) -> ChatOpenAI:
    body = {"thinking_mode": "thinking"} | more.pop("extra_body", {})
    more = {"max_retries": 0, "stream_usage": True} | more
    return ChatOpenAI(base_url=f"{http.base_url}/v1", api_key="none", model="", extra_body=body, **more)


@pytest.fixture(params=["chat", "responses"])
def api(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options for each of the two APIs that the package speaks."""
    return {"use_responses_api": request.param == "responses"}


def text_of(message: Any) -> str:
    return message.text if isinstance(message.text, str) else message.text()


@tool
def weather(city: str, days: int = 1) -> str:
    """Return the weather in a city."""
    return f"{city}: {days} days of sun"


async def test_a_reply_and_a_stream(gateway: Gateway, api: dict[str, Any]) -> None:
    model = model_of(await gateway(Reply(thought="hm", answer="It is 75.")), **api)
    reply = await model.ainvoke("What is 48 + 27?")
    assert text_of(reply) == "It is 75."
    assert reply.usage_metadata["output_token_details"]["reasoning"] == 2
    chunks = [chunk async for chunk in model.astream("What is 48 + 27?")]
    assert "".join(text_of(chunk) for chunk in chunks) == "It is 75."
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


async def test_the_thought_is_the_summary(gateway: Gateway) -> None:
    model = model_of(await gateway(Reply(thought="hm", answer="It is 75.")), reasoning={"summary": "auto"})
    blocks = [block for block in (await model.ainvoke("hello")).content_blocks if block["type"] == "reasoning"]
    assert [block["reasoning"] for block in blocks] == ["hm"]


async def test_the_loop_of_tools(gateway: Gateway, api: dict[str, Any]) -> None:
    http = await gateway(Reply("<tool_response>", thought="ok", answer="Sunny."), Reply(thought="I look.", answer=OSLO))
    model = model_of(http, **api).bind_tools([weather], tool_choice="auto")
    messages: list[Any] = [HumanMessage("How is the weather in Oslo?")]
    asked = await model.ainvoke(messages)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo", "days": 3})
    result: ToolMessage = await weather.ainvoke(call)
    assert text_of(await model.ainvoke([*messages, asked, result])) == "Sunny."


class Sum(BaseModel):
    """A sum."""

    value: int


async def test_structured_output(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService, api: dict[str, Any]
) -> None:
    fake.candidate = pb.Candidate(answer='{"value": 75}')
    http = await gateway.in_front_of(served[1])
    model = model_of(http, **api).with_structured_output(Sum, method="json_schema")
    assert await model.ainvoke("What is 48 + 27?") == Sum(value=75)
    schema = json.loads(fake.generations[-1].spec.output.json_schema)
    assert schema["properties"]["value"]["type"] == "integer"


async def test_damaged_images_are_refused_with_their_place(gateway: Gateway, api: dict[str, Any]) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    message = HumanMessage([{"type": "text", "text": "What is it?"}, picture])
    with pytest.raises(BadRequestError) as refused:
        await model_of(await gateway(), **api).ainvoke([message])
    assert refused.value.code == "invalid_value"
    assert str(refused.value.param).endswith("[0].content[1]")


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["QUOTA_EXCEEDED", "OVERLOADED"])
async def test_what_was_refused_for_a_while_is_repeated(
    gateway: Gateway, served: tuple[FakeService, str], fake: FakeService, api: dict[str, Any], reason: str
) -> None:
    model = model_of(await gateway.in_front_of(served[1]), max_retries=1, **api)
    fake.scripts = [[refusal(reason, 0.005)]]
    assert [chunk async for chunk in model.astream("hello")]
    assert len(fake.generations) == 2


async def test_leaving_ends_the_generation(gateway: Gateway, api: dict[str, Any]) -> None:
    http = await gateway(Reply(thought="", answer="x" * 100_000, step_seconds=0.01), window=200_000)
    chunks = model_of(http, extra_body={"thinking_mode": "fast"}, **api).astream("hello")
    await anext(chunks)
    await until(lambda: gateway.engines[-1].running == 1)
    await chunks.aclose()
    await until(lambda: gateway.engines[-1].running == 0)


async def test_errors(gateway: Gateway, api: dict[str, Any]) -> None:
    http = await gateway()
    with pytest.raises(BadRequestError) as refused:
        await model_of(http, temperature=9, **api).ainvoke("hello")
    assert refused.value.param == "temperature"
    with pytest.raises(BadRequestError, match="unknown field 'thinking_bugdet'"):
        await model_of(http, extra_body={"thinking_bugdet": 3}, **api).ainvoke("hello")
