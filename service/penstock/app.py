"""The only wiring: configuration -> engine -> server, from the first log line to exit."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from penstock.config import Config
from penstock.engine import Engine
from penstock.server import Server

log = logging.getLogger(__name__)
OnText = Callable[[str], None]


async def serve(config: Config, *, on_progress: OnText | None = None, on_ready: OnText | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once. Returns the exit code.

    `on_progress` gets a line per phase of the start, `on_ready` the bound host:port once a real token was generated.
    Raises ConfigError where the configuration cannot be served.
    """
    progress = on_progress or log.info
    stop = asyncio.Event()
    _on_signals(stop)
    server = Server(config)
    address = await server.listen()
    progress(f"listening on {address}, not serving yet")
    starting = asyncio.create_task(start_engine(config, progress))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set() and not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.drain(0)
        return 0
    try:
        engine = await starting
    except BaseException:
        await server.drain(0)
        raise
    try:
        await server.serve_with(engine)
        if on_ready is not None:
            on_ready(address)
        await stopping
        stop.clear()
        progress(f"draining: {server.admission.running_calls} calls under way")
        draining = asyncio.create_task(server.drain(config.server.drain_seconds))
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await server.drain(0)
        again.cancel()
        await draining
    finally:
        await engine.close()
    return 0


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def start_engine(config: Config, progress: OnText) -> Engine:
    """The engine that the configuration names. vLLM is imported only where it is wanted."""
    if config.engine.kind == "scripted":
        from penstock.engine_scripted import ScriptedEngine

        progress("the SCRIPTED engine answers with canned tokens: for client tests only")
        return ScriptedEngine.from_settings(config.engine)
    from penstock.engine_vllm.start import start

    return await start(config.engine, progress)
