"""A real server on a real channel, with the scripted engine behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server

from tests.rpc.fake_service import FakeService, running

Serve = Callable[..., Awaitable[grpc.aio.Channel]]


@asynccontextmanager
async def serving(engine: Engine, config: Config | None = None) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    # Deltas stay apart, however full the loop is: tests read some of them, and then do something in the middle.
    alone = {"server": {"listen": "127.0.0.1:0", "adaptive_flush_seconds": 0}}
    server = Server(config or Config.model_validate(alone))
    address = await server.listen()
    await server.serve_with(engine)
    async with grpc.aio.insecure_channel(address) as channel:
        yield server, channel
    await server.drain(0)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(Reply(...), ..., config=...)` starts a server that plays these replies; it ends with the test."""
    async with AsyncExitStack() as stack:

        async def start(*replies: Reply, config: Config | None = None, window: int = 4096) -> grpc.aio.Channel:
            engine = ScriptedEngine(replies, context_window_tokens=window)
            _, channel = await stack.enter_async_context(serving(engine, config))
            return channel

        yield start


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeService, str]]:
    """A fake service for the module's clients, and its host:port."""
    service = FakeService()
    with running(service) as target:
        yield service, target


@pytest.fixture
def fake(served: tuple[FakeService, str]) -> FakeService:
    """The same, with nothing planned and nothing seen."""
    served[0].reset()
    return served[0]
