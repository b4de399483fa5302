"""The gateway in a process of its own, which says what it holds when asked: a program, started by `test_gateway_fuzz`.

argv: the service's address, and settings such as `request_seconds=1`. stdout: a line with the address, then one JSON
object per line of stdin.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys

import psutil
import uvloop
from penstock_client import AsyncClient
from penstock_gateway import server
from penstock_gateway.app import create_app
from penstock_gateway.settings import Settings

from tests.gateway.conftest import InLoopServer


def holdings() -> dict[str, int]:
    """Tasks, open files, threads, memory. What waits for the garbage collector is not held."""
    gc.collect()
    own = psutil.Process()
    return {
        "tasks": len(asyncio.all_tasks()),
        "fds": own.num_fds(),
        "threads": own.num_threads(),
        "rss_kib": own.memory_info().rss >> 10,
    }


async def main() -> None:
    settings = Settings.of(sys.argv[2:])
    listener = server.bind("127.0.0.1", 0, settings)
    app = create_app(AsyncClient(sys.argv[1], api_key=""), settings)
    serving = asyncio.create_task(InLoopServer(server.configuration(app, settings)).serve([listener]))
    print(server.address_of(listener), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(holdings()), flush=True)
    serving.cancel()


if __name__ == "__main__":
    uvloop.run(main())
