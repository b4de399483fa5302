"""The real service in a process of its own, which says what it holds when asked: a program, started by `conftest`.

argv: the configuration as JSON. stdout: a line with the address, then one JSON object per line of stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import psutil
from penstock.config.schema import Config
from penstock.engine.scripted import ScriptedEngine
from penstock.server.app import serve
from penstock.types import EngineChunk, EngineRequest

STARTS = 0
"""Engine runs so far."""
OPEN = 0
"""Engine runs that have not ended."""


def _count_starts() -> None:
    stream = ScriptedEngine.stream

    async def counted(self: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        global STARTS, OPEN
        STARTS += 1
        OPEN += 1
        try:
            async with aclosing(stream(self, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            OPEN -= 1

    ScriptedEngine.stream = counted  # type: ignore[method-assign]


def holdings() -> dict[str, int]:
    """Tasks, open files, threads, engine runs. Memory is read from outside (`Victim.rss_kib`)."""
    own = psutil.Process()
    process = {"tasks": len(asyncio.all_tasks()), "fds": own.num_fds(), "threads": own.num_threads()}
    return {**process, "starts": STARTS, "open": OPEN}


async def _answer() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(holdings()), flush=True)


async def main() -> int:
    _count_starts()
    answering = asyncio.create_task(_answer())
    code = await serve(Config.model_validate_json(sys.argv[1]), on_ready=lambda address: print(address, flush=True))
    answering.cancel()
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
