"""Show the progress of a load: a line that changes on a terminal, a line at intervals in a log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock_bench.load.measure import Load
    from rich.console import Console

_LOG_SECONDS, _TERMINAL_SECONDS = 5.0, 0.25


@asynccontextmanager
async def watched(load: Load, console: Console, title: str) -> AsyncIterator[None]:
    """Show progress on `console` until the context ends."""
    task = asyncio.create_task(_show(load, console, title))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _show(load: Load, console: Console, title: str) -> None:
    if not console.is_terminal:
        console.out(f"{title} ...", highlight=False)
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            console.out(f"  {line(load)}", highlight=False)
    with console.status(title) as status:
        while True:
            status.update(f"{title}: {line(load)}")
            await asyncio.sleep(_TERMINAL_SECONDS)


def line(load: Load) -> str:
    """Return a line such as `12.0 of 30 s, 57 calls ended, 8 running, 412 tokens/s`."""
    now, live = load.run.clock.now(), load.live
    last = [sum(live.tokens[second]) for second in range(int(now // 1) - 3, int(now // 1)) if second in live.tokens]
    when = f"warming up, {-now:.0f} s left" if now < 0 else f"{now:.0f} of {load.options.seconds:.4g} s"
    troubles = "".join(f", {count} {name}" for name, count in live.by_outcome.items() if name != "ok")
    pace = f", {sum(last) / len(last):.0f} tokens/s" if last else ""
    return f"{when}, {live.ended} calls ended{troubles}, {live.running} running{pace}"
