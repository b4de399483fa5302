"""One real vLLM engine for all tests in this directory: it takes half a minute to start, and ends with them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.base import Engine
from penstock.engine.vllm.start import start
from penstock.types import EngineChunk, EngineRequest, Message, Role, Sampling

from tests.gateway.conftest import gateway_to, service
from tests.rpc.conftest import serving

GREEDY = Sampling(temperature=0.0)
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))  # the first one waits for the engine


@pytest.fixture(scope="package")
def engine_settings() -> EngineSettings:
    """The defaults, on the demo checkpoint, with room for prompts of several chunks."""
    return EngineSettings(max_batch_tokens=512)


@pytest.fixture(scope="package")
async def engine(engine_settings: EngineSettings) -> AsyncIterator[Engine]:
    engine = await start(engine_settings)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def http(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway in front of the engine."""
    async with (
        service(engine) as target,
        gateway_to(target) as url,
        httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
def thinking_prompt(engine: Engine) -> tuple[int, ...]:
    return tuple(engine.tokenizer.render([Message(Role.USER, "What is 17 + 25 + 3?")], thinking=True))


@pytest.fixture
def fast_prompt(engine: Engine) -> tuple[int, ...]:
    return tuple(engine.tokenizer.render([Message(Role.USER, "What is 17 + 25 + 3?")], thinking=False))


@pytest.fixture
def request_for() -> Callable[..., EngineRequest]:
    """An `EngineRequest` with a fresh id; greedy unless told."""

    def make(prompt: tuple[int, ...], max_tokens: int, **fields: object) -> EngineRequest:
        fields = {"min_tokens": 0, "sampling": GREEDY, **fields}
        return EngineRequest(f"test-{next(_numbers)}", prompt, max_tokens, **fields)  # type: ignore[arg-type]

    return make


async def run(engine: Engine, request: EngineRequest) -> tuple[list[int], list[EngineChunk]]:
    """All tokens of a request, and the chunks they came in."""
    chunks = [chunk async for chunk in engine.stream(request)]
    return [token for chunk in chunks for token in chunk.token_ids], chunks


@pytest.fixture(scope="package")
async def channel(engine: Engine) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a real server with the real engine behind it."""
    async with serving(engine) as (_, channel):
        yield channel
