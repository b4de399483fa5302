"""A gateway on a real socket, in front of a real service with the scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
import uvicorn
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server
from penstock_client import AsyncClient
from penstock_gateway import server as http_server
from penstock_gateway.app import create_app
from penstock_gateway.settings import Settings

Gateway = Callable[..., Awaitable[httpx.AsyncClient]]


class InLoopServer(uvicorn.Server):
    """Runs in the test's event loop, and leaves its signals alone."""

    async def serve(self, sockets=None) -> None:
        await self._serve(sockets)


@asynccontextmanager
async def service(engine: ScriptedEngine, config: Config | None = None) -> AsyncIterator[str]:
    """A service; yields its host:port."""
    server = Server(config or Config.model_validate({"server": {"listen": "127.0.0.1:0"}}))
    address = await server.listen()
    await server.serve_with(engine)
    yield address
    await server.drain(0)


@asynccontextmanager
async def gateway_to(target: str, settings: Settings | None = None) -> AsyncIterator[str]:
    """A gateway in front of `target`; yields its URL."""
    settings = settings or Settings()
    listener = http_server.bind("127.0.0.1", 0, settings)
    app = create_app(AsyncClient(target, api_key=""), settings)
    server = InLoopServer(http_server.configuration(app, settings))
    running = asyncio.create_task(server.serve([listener]))
    yield f"http://{http_server.address_of(listener)}"
    server.should_exit = True
    await running


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """`await gateway(Reply(...), ..., config=..., settings=...)` returns an HTTP client of a new gateway."""
    async with AsyncExitStack() as stack:

        async def start(
            *replies: Reply, config: Config | None = None, settings: Settings | None = None, window: int = 4096
        ) -> httpx.AsyncClient:
            engine = ScriptedEngine(replies, context_window_tokens=window)
            target = await stack.enter_async_context(service(engine, config))
            url = await stack.enter_async_context(gateway_to(target, settings))
            client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)
            return await stack.enter_async_context(client)

        yield start
