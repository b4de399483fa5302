"""Keeps an engine alive: sees it die or hang, ends what is left of it, starts another, and lets streams go on.

An `Engine` itself, so that nobody above knows: a stream whose engine died raises EngineDown, its candidate waits in
`revived` and goes on with a continuation. Suspects (see EngineRequest.suspect) run one at a time until their first
token, so that a request that kills engines is found out without blaming those beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from penstock.config import SupervisionSettings
from penstock.engine import Engine, EngineLoad, Tokenizer
from penstock.errors import EngineDown
from penstock.routing import Continued, ExpertCounts
from penstock.types import EngineChunk, EngineRequest, ModelCard, StructuredOutput

log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.25
_MOST_BACKOFF_SECONDS = 60.0


class Mortal(Engine, Protocol):
    """An engine that can be ended without its help."""

    async def kill(self) -> None:
        """Ends all processes of the engine at once; its streams raise EngineDown."""
        ...


StartEngine = Callable[[], Awaitable[Mortal]]
OnChange = Callable[[bool], Awaitable[None]]


class _Pulse:
    """When the engine was last seen at work, while anybody really waits for it: readers that are slow say nothing."""

    def __init__(self) -> None:
        self.waiting_streams = 0
        self._at = time.monotonic()

    @property
    def still_seconds(self) -> float:
        return time.monotonic() - self._at

    def beats(self) -> None:
        self._at = time.monotonic()

    def waiting(self) -> _Wait:
        return _Wait(self)


class _Wait:
    """One stream's waiting for its next chunk, from its beginning to its end."""

    def __init__(self, pulse: _Pulse) -> None:
        self._pulse = pulse
        self._waits = False

    def __enter__(self) -> _Wait:
        self.begins()
        return self

    def __exit__(self, *error: object) -> None:
        if self._waits:
            self.ends()

    def begins(self) -> None:
        self._waits = True
        if self._pulse.waiting_streams == 0:
            self._pulse.beats()
        self._pulse.waiting_streams += 1

    def ends(self) -> None:
        self._waits = False
        self._pulse.waiting_streams -= 1
        self._pulse.beats()


class SupervisedEngine:
    """`on_change` is told True when the engine takes work again, False when it went down."""

    def __init__(self, engine: Mortal, start: StartEngine, settings: SupervisionSettings, on_change: OnChange) -> None:
        self._engine = engine
        self._start = start
        self._settings = settings
        self._on_change = on_change
        self._alive = True
        self._changed = asyncio.Condition()
        self._restarts: deque[float] = deque()
        self._probation = asyncio.Lock()
        self._pulse = _Pulse()
        self._steps_seen = -1
        self._experts = Continued()
        self.restarts = 0
        self.given_up = asyncio.Event()
        self._lost = asyncio.Event()
        self._watcher = asyncio.create_task(self._watch())

    @property
    def card(self) -> ModelCard:
        return self._engine.card

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        await self._engine.check_constraint(structured, caller)

    def load(self) -> EngineLoad:
        return self._engine.load()

    async def expert_counts(self) -> ExpertCounts:
        """Since the first engine's start, less what a dead one counted after it was last asked."""
        engine = self._engine
        if not self._alive:
            raise EngineDown("the engine is restarting")
        return self._experts.total(engine, await engine.expert_counts())

    async def check(self) -> None:
        if not self._alive:
            raise EngineDown("the engine is restarting")
        await self._engine.check()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        if request.suspect:
            await self._probation.acquire()
        on_probation = request.suspect
        engine = self._engine
        try:
            # A request that no engine has seen is waited with: a death here would be counted against it.
            await self.revived()
            engine = self._engine
            async with aclosing(engine.stream(request)) as chunks:
                with self._pulse.waiting() as wait:
                    async for chunk in chunks:
                        wait.ends()
                        if on_probation:
                            on_probation = False
                            self._probation.release()
                        yield chunk
                        wait.begins()
        except EngineDown:
            # Told at once, not at the watcher's next look: who waits in `revived` must not find the dead one alive.
            if self._alive and self._engine is engine:
                self._alive = False
                self._lost.set()
            raise
        finally:
            if on_probation:
                self._probation.release()

    async def revived(self) -> None:
        if self._alive:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._alive or self.given_up.is_set())
        if self.given_up.is_set():
            raise EngineDown("the engine died too often and is not started again")

    async def close(self) -> None:
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        if self._alive:
            await self._engine.close()
        else:
            await self._engine.kill()

    async def _watch(self) -> None:
        while not self.given_up.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _LOOK_SECONDS)
            reason = await self._trouble()
            if reason:
                try:
                    await self._replace(reason)
                except Exception:
                    log.exception("the supervisor failed")
                    await self._give_up()

    async def _trouble(self) -> str:
        """Why the engine must be replaced; empty while all is well."""
        try:
            await self._engine.check()
        except EngineDown:
            self._lost.set()
        if self._lost.is_set():
            self._lost.clear()
            return "died"
        steps = self._engine.load().steps
        if steps != self._steps_seen:
            self._steps_seen = steps
            self._pulse.beats()
        stuck_seconds, streams = self._pulse.still_seconds, self._pulse.waiting_streams
        if streams and stuck_seconds > self._settings.hang_seconds:
            return f"hangs: no step for {stuck_seconds:.0f} s with {streams} streams waiting"
        return ""

    async def _replace(self, reason: str) -> None:
        log.error("the engine %s; ending it and starting another", reason)
        await self._set_alive(False)
        await self._engine.kill()
        failures = 0
        while self._may_restart():
            if failures:
                await asyncio.sleep(min(_MOST_BACKOFF_SECONDS, self._settings.backoff_seconds * 2 ** (failures - 1)))
            began = time.monotonic()
            try:
                self._engine = await self._start()
            except Exception as error:
                failures += 1
                log.error("the engine did not start again: %s", type(error).__name__)
                continue
            self.restarts += 1
            log.warning("the engine is back after %.1f s", time.monotonic() - began)
            self._steps_seen = -1
            self._pulse.beats()
            await self._set_alive(True)
            return
        await self._give_up()

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > self._settings.restart_window_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self._settings.max_restarts:
            return False
        self._restarts.append(now)
        return True

    async def _give_up(self) -> None:
        log.critical("the engine needed more than %d restarts; giving up", self._settings.max_restarts)
        self.given_up.set()
        await self._set_alive(False)

    async def _set_alive(self, alive: bool) -> None:
        async with self._changed:
            self._alive = alive
            self._changed.notify_all()
        await self._on_change(alive)
