"""A scripted engine that dies, hangs, or is killed by certain prompts, under the real supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from penstock.config.schema import Config
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.engine.supervisor import SupervisedEngine
from penstock.errors import EngineDown
from penstock.server.server import Server
from penstock.telemetry.hooks import NO_HOOKS, TelemetryHooks
from penstock.types import EngineChunk, EngineRequest

POISON = "POISON"


class MortalEngine(ScriptedEngine):
    """Prompts that hold POISON kill it after `poison_after` chunks of a run, by default before their first token.

    With `poison_at` they kill it after so many tokens of their whole output instead, whichever run gives them. With
    `together` each waits there until so many are there.
    """

    def __init__(
        self, replies: tuple[Reply, ...], poison_after: int = 0, poison_at: int | None = None, together: int = 1
    ) -> None:
        super().__init__(replies)
        self._poison_after = poison_after
        self._poison_at = poison_at
        self._missing = together
        self._together = asyncio.Event()
        self._dead = asyncio.Event()
        self.hanging = False
        self.runs = 0
        self.chunks = 0

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.runs += 1
        poison = POISON.encode() in bytes(i for i in request.prompt_token_ids if i < 256)
        chunks, given = 0, self._script(request)[1]
        async for chunk in super().stream(request):
            kills = chunks == self._poison_after if self._poison_at is None else given >= self._poison_at
            if poison and kills:
                self._missing -= 1
                if self._missing <= 0:
                    self._together.set()
                await self._together.wait()
                self._dead.set()
            chunks += 1
            given += len(chunk.token_ids)
            self.chunks += 1
            if self.hanging:
                await self._dead.wait()
            if self._dead.is_set():
                raise EngineDown("dead")
            yield chunk

    async def check(self) -> None:
        if self._dead.is_set():
            raise EngineDown("dead")

    async def kill(self) -> None:
        self._dead.set()


@dataclass
class Ward:
    """A running service, and the engines it has had."""

    server: Server
    channel: grpc.aio.Channel
    supervised: SupervisedEngine
    address: str
    start_seconds: float
    engines: list[MortalEngine] = field(default_factory=list)
    health: list[bool] = field(default_factory=list)

    @property
    def engine(self) -> MortalEngine:
        return self.engines[-1]


@asynccontextmanager
async def ward(
    *replies: Reply,
    start_seconds: float = 0.05,
    key_file: Path | None = None,
    hooks: TelemetryHooks = NO_HOOKS,
    auth: Mapping[str, object] | None = None,
    poison_after: int = 0,
    poison_at: int | None = None,
    together: int = 1,
    thinking: Mapping[str, object] | None = None,
    **supervision: object,
) -> AsyncIterator[Ward]:
    # Deltas stay apart, however late the loop is: tests count them.
    sections = {"listen": "127.0.0.1:0", "drain_seconds": 0.2, "adaptive_flush_seconds": 0}
    config = Config.model_validate(
        {
            "server": sections,
            "supervision": {"backoff_seconds": 0.01, **supervision},
            "resume": {"key_file": key_file},
            "auth": auth or {},
            "thinking": thinking or {},
        }
    )
    server = Server(config, hooks)
    engines: list[MortalEngine] = []
    health: list[bool] = []

    here: Ward | None = None

    async def start() -> MortalEngine:
        await asyncio.sleep(here.start_seconds if here else start_seconds)
        engines.append(MortalEngine(replies, poison_after, poison_at, 1 if engines else together))
        return engines[-1]

    async def on_change(alive: bool) -> None:
        health.append(alive)
        await server.set_ready(alive)

    address = await server.listen()
    supervised = SupervisedEngine(await start(), start, config.supervision, on_change)
    await server.serve_with(supervised)
    async with grpc.aio.insecure_channel(address) as channel:
        here = Ward(server, channel, supervised, address, start_seconds, engines, health)
        yield here
    await server.drain(0)
    await supervised.close()
