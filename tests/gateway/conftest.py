"""A gateway on a real socket, in front of a real service with the scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from google.rpc import error_details_pb2, status_pb2
from openai import AsyncOpenAI
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server
from penstock.types import EngineChunk, EngineRequest
from penstock_client import AsyncClient
from penstock_gateway import server as http_server
from penstock_gateway.app import create_app
from penstock_gateway.settings import Settings

from tests.rpc.conftest import fake, served
from tests.rpc.fake_service import status

__all__ = ["fake", "served"]  # fixtures


class Gateway:
    """`await gateway(Reply(...), ..., config=..., settings=...)` returns an HTTP client of a new gateway."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.engines: list[CountingEngine] = []

    async def __call__(
        self, *replies: Reply, config: Config | None = None, settings: Settings | None = None, window: int = 4096
    ) -> httpx.AsyncClient:
        engine = CountingEngine(replies, context_window_tokens=window)
        self.engines.append(engine)
        target = await self._stack.enter_async_context(service(engine, config))
        return await self.in_front_of(target, settings)

    async def in_front_of(self, target: str, settings: Settings | None = None) -> httpx.AsyncClient:
        url = await self._stack.enter_async_context(gateway_to(target, settings))
        client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)
        return await self._stack.enter_async_context(client)


class InLoopServer(uvicorn.Server):
    """Runs in the test's event loop, and leaves its signals alone."""

    async def serve(self, sockets=None) -> None:
        await self._serve(sockets)


class CountingEngine(ScriptedEngine):
    """`running` is the number of its streams, `started` of all that there were."""

    running = 0
    started = 0

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.running += 1
        self.started += 1
        try:
            async with aclosing(super().stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.running -= 1


def openai_of(http: httpx.AsyncClient, key: str = "none", retries: int = 0) -> AsyncOpenAI:
    """The official client of a gateway."""
    return AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key=key, max_retries=retries)


def refusal(reason: str, seconds: float) -> status_pb2.Status:
    """Return what the service answers where the caller may try again after some time."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(round(seconds * 1000))
    info = error_details_pb2.ErrorInfo(reason=reason, domain="penstock.v1")
    return status(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now", [info, retry])


async def events_of(reply: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events of a stream: id and data; checks that it ends with [DONE]."""
    event_id, done = "", False
    async for line in reply.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data" and value == "[DONE]":
            done = True
        elif name == "data":
            assert not done
            yield event_id, json.loads(value)
            event_id = ""
    assert done


async def chunks_of(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed chat completion."""
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        return [data async for _, data in events_of(reply)]


@asynccontextmanager
async def service(engine: Engine, config: Config | None = None) -> AsyncIterator[str]:
    """A service; yields its host:port."""
    server = Server(config or Config.model_validate({"server": {"listen": "127.0.0.1:0"}}))
    address = await server.listen()
    await server.serve_with(engine)
    try:
        yield address
    finally:
        await server.drain(0)


@asynccontextmanager
async def gateway_to(target: str, settings: Settings | None = None) -> AsyncIterator[str]:
    """A gateway in front of `target`; yields its URL."""
    settings = settings or Settings()
    listener = http_server.bind("127.0.0.1", 0, settings)
    app = create_app(AsyncClient(target, api_key=""), settings)
    server = InLoopServer(http_server.configuration(app, settings))
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://{http_server.address_of(listener)}"
    finally:
        server.should_exit = True
        await running


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """Gateways, which end with the test."""
    async with AsyncExitStack() as stack:
        yield Gateway(stack)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; fail where it never comes true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it asks about another part
            await asyncio.sleep(0.01)
