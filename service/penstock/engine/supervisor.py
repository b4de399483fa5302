"""Keeps an engine alive: sees it die or hang, ends what is left of it, starts another, and lets streams go on.

An `Engine` itself, so that nobody above knows: a stream whose engine died raises EngineDown, its candidate waits in
`wait_until_available` and goes on with a continuation. What had given no more than a few tokens when the engine died is suspected of
it, and is tried again alone (see `probation`): a request that kills engines is found out at the second death, and
without blaming those beside it. Its caller's requests of the same kind are then refused for a while (see `poison`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from penstock import tasks
from penstock.config.schema import SupervisionSettings
from penstock.engine.base import Engine, EngineLoad, Interruption, Tokenizer
from penstock.engine.expert_load.statistics import Continued, ExpertCounts
from penstock.engine.poison import PoisonMemory
from penstock.engine.probation import SETTLING_SECONDS, SETTLING_STEPS, Probation, Run
from penstock.errors import EngineDied, EngineDown, PoisonousRequest
from penstock.types import EngineChunk, EngineRequest, InterruptionReason, ModelCard, StructuredOutput

log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 60.0
_MAX_REMEMBERED = 4096


class KillableEngine(Engine, Protocol):
    """An engine that can be ended without its help."""

    async def kill(self) -> None:
        """Ends all processes of the engine at once; its streams raise EngineDown."""
        ...


@dataclass(eq=False, slots=True)
class _Death:
    """One death of the engine: how many of those that were suspected of it have not shown that they did not do it."""

    suspects: int


StartEngine = Callable[[], Awaitable[KillableEngine]]
OnChange = Callable[[bool], Awaitable[None]]


class _ProgressWatchdog:
    """When the engine was last seen at work, while anybody really waits for it: readers that are slow say nothing."""

    def __init__(self) -> None:
        self.waiting_streams = 0
        self._at = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        return time.monotonic() - self._at

    def mark_progress(self) -> None:
        self._at = time.monotonic()

    def waiting(self) -> _Wait:
        return _Wait(self)


class _Wait:
    """One stream's waiting for its next chunk, from its beginning to its end."""

    def __init__(self, watchdog: _ProgressWatchdog) -> None:
        self._watchdog = watchdog
        self._waits = False

    def __enter__(self) -> _Wait:
        self.begins()
        return self

    def __exit__(self, *error: object) -> None:
        if self._waits:
            self.ends()

    def begins(self) -> None:
        self._waits = True
        if self._watchdog.waiting_streams == 0:
            self._watchdog.mark_progress()
        self._watchdog.waiting_streams += 1

    def ends(self) -> None:
        self._waits = False
        self._watchdog.waiting_streams -= 1
        self._watchdog.mark_progress()


class SupervisedEngine:
    """`on_change` is told True when the engine takes work again, False when it went down.

    `start_seconds` is how long the engine's start took, where that was measured.
    """

    def __init__(
        self,
        engine: KillableEngine,
        start: StartEngine,
        settings: SupervisionSettings,
        on_change: OnChange,
        start_seconds: float | None = None,
    ) -> None:
        self._engine = engine
        self._start = start
        self._settings = settings
        self._on_change = on_change
        self._alive = True
        self._start_seconds = start_seconds
        self._down_since = 0.0
        self._down_because = InterruptionReason.ENGINE_DIED
        self._changed = asyncio.Condition()
        self._restarts: deque[float] = deque()
        self.poison = PoisonMemory(settings.poison_seconds)
        self._probation = Probation()
        self._runs: set[Run] = set()
        self._deaths: OrderedDict[str, _Death] = OrderedDict()
        self._buried: KillableEngine | None = None
        self._death_counts = True
        self._watchdog = _ProgressWatchdog()
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
        """See `Engine.stream`. Raises EngineDied where the engine died, PoisonousRequest where that is its doing."""
        self.refuse_convicted(request)
        run = Run(request, alone=request.deaths > 0 or self._suspicions(request) > 0)
        await self._probation.start_run(run)
        try:
            # A request that no engine has seen is waited with: a death here would be counted against it.
            await self.wait_until_available()
            self.refuse_convicted(request)
            run.engine = self._engine
            self._runs.add(run)
            async with aclosing(self._chunks(run)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineDown as error:
            if run.engine is None:
                raise
            # Told at once, not at the watcher's next look: who waits in `wait_until_available` must not find the dead one alive.
            if self._alive and self._engine is run.engine:
                self._goes_down(InterruptionReason.ENGINE_DIED)
                self._lost.set()
                self._find_suspects()
            if run.convicted:
                raise PoisonousRequest(
                    f"the engine died {request.deaths + 1} times on this request", engine_deaths=request.deaths + 1
                ) from error
            raise EngineDied(suspected=run.blamed) from error
        finally:
            self._runs.discard(run)
            self._probation.end_run(run)

    async def _chunks(self, run: Run) -> AsyncGenerator[EngineChunk, None]:
        """What the engine gives. Of a run that is alone nothing is given before it has settled: others wait for that,
        and must not have to wait for its client."""
        held: list[EngineChunk] = []
        async with aclosing(run.engine.stream(run.request)) as chunks:
            with self._watchdog.waiting() as wait:
                async for chunk in chunks:
                    if not run.settled:
                        self._count_chunk(run)
                        if run.alone and not run.settled:
                            held.append(chunk)
                            self._watchdog.mark_progress()
                            continue
                    wait.ends()
                    for earlier in held:
                        yield earlier
                    held.clear()
                    yield chunk
                    wait.begins()
            self._settle(run)
            for earlier in held:
                yield earlier

    def _count_chunk(self, run: Run) -> None:
        """Count a chunk of a run that has not settled."""
        run.chunks += 1
        if run.chunks >= SETTLING_STEPS:
            self._settle(run)
        elif run.chunks == 1 and not run.alone:
            asyncio.get_running_loop().call_later(SETTLING_SECONDS, self._settle, run)

    def _settle(self, run: Run) -> None:
        """This run does no harm."""
        if run.settled or run.blamed:
            return
        run.settled = True
        self._probation.end_run(run)
        if run.request.deaths == 0:
            return
        if run.request.accountable is not None:
            self.poison.acquit(run.request.accountable)
        death = self._deaths.pop(run.candidate, None)
        if death is not None:
            death.suspects -= 1
            if death.suspects == 0:
                # None of them did it: the engine did, and that death counts after all.
                self._restarts.append(time.monotonic())

    def refuse_convicted(self, request: EngineRequest) -> None:
        """Raise PoisonousRequest for a request that is refused for what others of its caller have done."""
        if request.accountable is not None and not request.continues:
            self.poison.refuse_convicted(request.accountable)

    def _suspicions(self, request: EngineRequest) -> int:
        return self.poison.suspicions(request.accountable) if request.accountable is not None else 0

    def _find_suspects(self) -> None:
        """The engine died, and this is the first that is heard of it. Whatever had not settled on it is suspected; what
        had been suspected before, and was alone, did it."""
        if self._buried is self._engine:
            return
        self._buried = self._engine
        suspects = [run for run in self._runs if run.engine is self._engine and not run.settled]
        self._death_counts = not suspects
        death = _Death(len(suspects))
        for run in suspects:
            run.blamed = True
            deaths = max(run.request.deaths, self._suspicions(run.request)) + 1
            if len(suspects) == 1 and deaths >= self._settings.max_deaths_per_request:
                self._convict(run)
            else:
                if run.request.accountable is not None:
                    self.poison.suspect(run.request.accountable)
                self._deaths[run.candidate] = death
        while len(self._deaths) > _MAX_REMEMBERED:
            self._deaths.popitem(last=False)

    def _convict(self, run: Run) -> None:
        run.convicted = True
        self._deaths.pop(run.candidate, None)
        if run.request.accountable is not None:
            self.poison.convict(run.request.accountable)
        log.error("request %s killed the engine and is refused as poisonous", run.request.request_id)

    def _goes_down(self, reason: InterruptionReason) -> None:
        if self._alive:
            self._alive, self._down_since, self._down_because = False, time.monotonic(), reason

    def interruption(self) -> Interruption | None:
        if self._alive or self.given_up.is_set():
            return None
        expected = self._start_seconds
        if expected is not None:
            expected = max(0.0, self._down_since + expected - time.monotonic())
        return Interruption(self._down_because, expected)

    async def wait_until_available(self) -> None:
        if self._alive:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._alive or self.given_up.is_set())
        if self.given_up.is_set():
            raise EngineDown("the engine died too often and is not started again")

    async def close(self) -> None:
        await tasks.end(self._watcher)
        if self._alive:
            await self._engine.close()
        else:
            await self._engine.kill()

    async def _watch(self) -> None:
        while not self.given_up.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _CHECK_SECONDS)
            trouble = await self._find_failure()
            if trouble is not None:
                try:
                    await self._replace(*trouble)
                except Exception:
                    log.exception("the supervisor failed")
                    await self._give_up()

    async def _find_failure(self) -> tuple[InterruptionReason, str] | None:
        """Return why the engine must be replaced, for streams and in words for the log; None while all is well."""
        try:
            await self._engine.check()
        except EngineDown:
            self._lost.set()
        if self._lost.is_set():
            self._lost.clear()
            return InterruptionReason.ENGINE_DIED, "died"
        steps = self._engine.load().steps
        if steps != self._steps_seen:
            self._steps_seen = steps
            self._watchdog.mark_progress()
        stuck_seconds, streams = self._watchdog.stalled_seconds, self._watchdog.waiting_streams
        if streams and stuck_seconds > self._settings.hang_seconds:
            happened = f"hangs: no step for {stuck_seconds:.0f} s with {streams} streams waiting"
            return InterruptionReason.ENGINE_HUNG, happened
        return None

    async def _replace(self, reason: InterruptionReason, happened: str) -> None:
        self._goes_down(reason)
        self._find_suspects()
        counts = self._death_counts
        log.error("the engine %s; ending it and starting another", happened)
        await self._set_alive(False)
        await self._engine.kill()
        failures = 0
        while self._may_restart(counts=counts):
            if failures:
                await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, self._settings.backoff_seconds * 2 ** (failures - 1)))
            began = time.monotonic()
            try:
                self._engine = await self._start()
            except Exception as error:
                failures += 1
                counts = True
                log.error("the engine did not start again: %s", type(error).__name__)
                continue
            self.restarts += 1
            self._start_seconds = time.monotonic() - began
            log.warning("the engine is back after %.1f s", self._start_seconds)
            self._steps_seen = -1
            self._watchdog.mark_progress()
            await self._set_alive(True)
            return
        await self._give_up()

    def _may_restart(self, *, counts: bool) -> bool:
        """A death that somebody is suspected of does not count, until all suspects have shown that they did not do it:
        only deaths that count by then, and are too many, end the engine here."""
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > self._settings.restart_window_seconds:
            self._restarts.popleft()
        if not counts:
            return len(self._restarts) <= self._settings.max_restarts
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
