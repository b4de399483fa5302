"""End asyncio tasks without leaving reference cycles."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return once they have ended, however they end.

    A task keeps the CancelledError that it ended with until its result is taken, and with that error's frames all that
    it worked with; where one of them refers to the task (asyncio.timeout does), that is a cycle.
    """
    for task in tasks:
        task.cancel()
    await ended(*tasks)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Return once tasks have ended, however they end, and take their results."""
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        with suppress(BaseException):
            task.result()
