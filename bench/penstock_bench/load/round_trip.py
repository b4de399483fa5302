"""The network's round trip apart: calls that do next to nothing, before any load."""

from __future__ import annotations

import time

from penstock_bench.load.statistics import Spread
from penstock_client import AsyncClient

_CALLS = 20


async def measure(client: AsyncClient) -> Spread:
    """Time `GetModel` on the connected and idle service: the network there and back, and the front end. Seconds."""
    await client.model()
    found = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        await client.model()
        found.append(time.perf_counter() - began)
    return Spread.of(found)
