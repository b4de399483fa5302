"""Measure the network's round trip alone, before any load, with calls that do very little."""

from __future__ import annotations

import time

from penstock_bench.load.statistics import Spread
from penstock_client import AsyncClient

_CALLS = 20


async def measure(client: AsyncClient) -> Spread:
    """Return the seconds of `GetModel` on the connected, idle service: the network's round trip and the front end."""
    await client.model()
    found = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        await client.model()
        found.append(time.perf_counter() - began)
    return Spread.of(found)
