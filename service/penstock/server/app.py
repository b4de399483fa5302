"""Wire the service together: configuration, engine and server, from the first log line to the exit."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from penstock import tasks
from penstock.config.schema import Config, EngineSettings
from penstock.engine.base import Engine
from penstock.engine.supervisor import KillableEngine, OnChange, SupervisedEngine
from penstock.server.server import Server
from penstock.telemetry import logging as logs
from penstock.telemetry.hooks import NO_HOOKS, TelemetryHooks
from penstock.telemetry.otel.plan import plan_telemetry

log = logging.getLogger(__name__)
OnText = Callable[[str], None]
# Seconds beyond the drain: node 0 sleeps before it, and sends its last events after it.
_LEADER_SECONDS = 60.0
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 128 * 1024


async def serve(config: Config, *, on_progress: OnText | None = None, on_ready: OnText | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once. Return the exit code.

    With several nodes, a node other than node 0 computes for it until the engine of node 0 ends. `on_progress` gets a
    line per phase of the start, `on_ready` the bound host:port once a real token was generated. Raise ConfigError for a
    configuration that cannot be served.
    """
    progress = on_progress or log.info
    stop = asyncio.Event()
    _on_signals(stop)
    if config.engine.node_rank > 0:
        return await _compute(config, stop, progress)
    async with observed(config, progress) as (config, hooks):
        return await _serve(config, hooks, stop, progress, on_ready)


def leave(code: int) -> None:
    """End the process now with `code`, where an aborted start still imports or loads modules in its thread.

    Python would remove the modules while that thread uses them. Return where there is no such thread.
    """
    from penstock.engine.vllm.background import is_busy

    if is_busy():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def _compute(config: Config, stop: asyncio.Event, progress: OnText) -> int:
    """Run a node that does not serve: no listener and no metrics of its own."""
    from penstock.engine.vllm.nodes import compute

    stderr = logs.to_stderr(config.telemetry.log_format)
    try:
        return await compute(config.engine, stop, progress, hold_seconds=config.server.drain_seconds + _LEADER_SECONDS)
    finally:
        logging.getLogger().removeHandler(stderr)


def _give_back_freed_memory() -> None:
    """Make glibc return large blocks to the system when they are freed; do nothing on other C libraries.

    By default glibc keeps freed blocks of up to 32 MiB each: a service that took a few hundred large requests kept 150
    MiB for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


async def _serve(
    config: Config, hooks: TelemetryHooks, stop: asyncio.Event, progress: OnText, on_ready: OnText | None
) -> int:
    _give_back_freed_memory()
    server = Server(config, hooks)
    address = await server.listen()
    progress(f"listening on {address}, not serving yet")
    starting = asyncio.create_task(start_engine(config, progress, server.set_ready))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set() and not starting.done():
        await tasks.end(starting)
        await server.drain(0)
        progress("stopped while starting; nothing was served")
        return 0
    try:
        engine = await starting
    except BaseException:
        await server.drain(0)
        raise
    try:
        await server.serve_with(engine)
        # The objects that exist now stay: vLLM's modules alone are a million, which no collection needs to check again.
        gc.collect()
        gc.freeze()
        if on_ready is not None:
            on_ready(address)
        return await _serve_until_stopped(server, engine, stop, config, progress)
    finally:
        await engine.close()


async def _serve_until_stopped(
    server: Server, engine: Engine, stop: asyncio.Event, config: Config, progress: OnText
) -> int:
    """Serve until a signal and drain (exit code 0), or until the supervisor gives up on the engine (exit code 1)."""
    ends = [asyncio.create_task(stop.wait())]
    if isinstance(engine, SupervisedEngine):
        ends.append(asyncio.create_task(engine.given_up.wait()))
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    if not stop.is_set():
        progress("the engine died too often; the process ends, so that it can be started again")
        await server.drain(0)
        return 1
    stop.clear()
    progress(f"draining: {server.admission.running_calls} calls are running")
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


@asynccontextmanager
async def observed(config: Config, progress: OnText) -> AsyncIterator[tuple[Config, TelemetryHooks]]:
    """Set up logging and telemetry as configured; yield the configuration and the hooks.

    The configuration that is yielded makes vLLM's own spans join the service's traces. Raise ConfigError for invalid
    telemetry settings.
    """
    settings = config.telemetry
    plan = plan_telemetry(settings, os.environ)
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        if settings.log_format == "json" or "logs" in plan.routes:
            vllm = logs.vllm_environment(settings.log_format, config.engine.log_level, Path(scratch))
            os.environ.update(vllm)
        stderr = logs.to_stderr(settings.log_format)
        logs.silence_grpc()
        try:
            if plan.is_off:
                yield config, NO_HOOKS
                return
            # OpenTelemetry is imported only where it is wanted.
            from penstock.telemetry.otel.start import Telemetry, engine_environment

            telemetry = Telemetry(plan, settings)
            if telemetry.endpoint is not None:
                progress(f"metrics on http://{telemetry.endpoint.address}/metrics")
            traced = engine_environment(plan.routes, os.environ) if settings.engine_traces else None
            try:
                yield config.model_copy(update={"engine": _traced(config.engine, traced)}), telemetry.hooks
            finally:
                await telemetry.close()
        finally:
            logging.getLogger().removeHandler(stderr)


def _traced(settings: EngineSettings, endpoint: str | None) -> EngineSettings:
    if endpoint is None:
        return settings
    return settings.model_copy(update={"extra_args": {"otlp_traces_endpoint": endpoint, **settings.extra_args}})


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def check_engine(settings: EngineSettings, *, has_model: bool) -> None:
    """Raise ConfigError where the engine cannot start here. Without `has_model`, its files are not looked at."""
    if settings.kind == "scripted":
        from penstock.engine.scripted import ScriptedEngine

        ScriptedEngine.from_settings(settings)
        return
    from penstock.engine.vllm.start import installed_build, plan

    if has_model:
        plan(settings)
    else:
        installed_build(settings)


async def start_engine(config: Config, progress: OnText, on_change: OnChange) -> Engine:
    """Start the engine that the configuration names, supervised. vLLM is imported only where it is needed."""
    if config.engine.kind == "scripted":
        from penstock.engine.scripted import ScriptedEngine

        progress("the SCRIPTED engine answers with prepared tokens: for client tests only")
        return ScriptedEngine.from_settings(config.engine)
    from penstock.engine.vllm.start import start

    async def start_again() -> KillableEngine:
        # Only the endpoint shows vLLM's metrics.
        return await start(config.engine, progress, keeps_metrics=bool(config.telemetry.prometheus_listen))

    began = time.monotonic()
    engine = await start_again()
    return SupervisedEngine(engine, start_again, config.supervision, on_change, time.monotonic() - began)
