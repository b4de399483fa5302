"""The only wiring: configuration -> engine -> server, from the first log line to exit."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from penstock.config import Config
from penstock.engine import Engine
from penstock.server import Server
from penstock.supervisor import Mortal, OnChange, SupervisedEngine

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
    starting = asyncio.create_task(start_engine(config, progress, server.set_ready))
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
        return await _until_the_end(server, engine, stop, config, progress)
    finally:
        await engine.close()


async def _until_the_end(server: Server, engine: Engine, stop: asyncio.Event, config: Config, progress: OnText) -> int:
    """Serves until a signal, then drains (exit code 0), or until the engine is given up (exit code 1)."""
    ends = [asyncio.create_task(stop.wait())]
    if isinstance(engine, SupervisedEngine):
        ends.append(asyncio.create_task(engine.given_up.wait()))
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    if not stop.is_set():
        progress("the engine died too often; ending, so that whoever runs this process can start it anew")
        await server.drain(0)
        return 1
    stop.clear()
    progress(f"draining: {server.admission.running_calls} calls under way")
    draining = asyncio.create_task(server.drain(config.server.drain_seconds))
    again = asyncio.create_task(stop.wait())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if draining.done():
        await draining
    else:
        draining.cancel()
        await server.drain(0)
    return 0


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def start_engine(config: Config, progress: OnText, on_change: OnChange) -> Engine:
    """The engine that the configuration names, supervised. vLLM is imported only where it is wanted."""
    if config.engine.kind == "scripted":
        from penstock.engine_scripted import ScriptedEngine

        progress("the SCRIPTED engine answers with canned tokens: for client tests only")
        return ScriptedEngine.from_settings(config.engine)
    from penstock.engine_vllm.start import start

    async def start_again() -> Mortal:
        return await start(config.engine, progress)

    return SupervisedEngine(await start_again(), start_again, config.supervision, on_change)
