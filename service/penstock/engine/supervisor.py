"""Supervise the engine: detect that it died or hangs, end its processes, start another one, and let streams continue.

It is an `Engine` itself, so that its users need not know: a stream whose engine died raises EngineDown; its candidate
waits in `wait_until_available` and continues with a new run. Runs that had produced only a few tokens when the engine
died are suspected and retried alone (see `probation`), so that a request which kills engines is found at the second
death, and others are not blamed. Its caller's requests of the same kind are then refused for a while (see `poison`).
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
from penstock.types import EngineChunk, EngineRequest, Image, InterruptionReason, ModelCard, StructuredOutput

log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 60.0
_MAX_REMEMBERED = 4096


class KillableEngine(Engine, Protocol):
    """Define an engine that can be ended without its cooperation."""

    async def kill(self) -> None:
        """End all processes of the engine at once; its streams raise EngineDown."""
        ...


@dataclass(eq=False, slots=True)
class _Death:
    """Count, for one engine death, the suspects that have not settled since."""

    suspects: int
    """Suspected runs that have not settled since."""


StartEngine = Callable[[], Awaitable[KillableEngine]]
OnChange = Callable[[bool], Awaitable[None]]


class _ProgressWatchdog:
    """Track when the engine last made progress while a stream waits for it; slow readers do not count as waiting."""

    def __init__(self) -> None:
        self.waiting_streams = 0
        self._at = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """Return the seconds since the last progress."""
        return time.monotonic() - self._at

    def mark_progress(self) -> None:
        """Record that the engine made progress now."""
        self._at = time.monotonic()

    def forgive(self, seconds: float) -> None:
        """Leave out seconds in which this process stood still: what the engine sent meanwhile is not read yet."""
        self._at = min(time.monotonic(), self._at + seconds)

    def waiting(self) -> _Wait:
        """Return a context in which one stream waits for its next chunk."""
        return _Wait(self)


class _Wait:
    """Track one stream's waits for its next chunk."""

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
        """Count the stream as waiting."""
        self._waits = True
        if self._watchdog.waiting_streams == 0:
            self._watchdog.mark_progress()
        self._watchdog.waiting_streams += 1

    def ends(self) -> None:
        """Stop to count the stream as waiting: it got a chunk, which is progress."""
        self._waits = False
        self._watchdog.waiting_streams -= 1
        self._watchdog.mark_progress()


class SupervisedEngine:
    """Run an engine and replace it when it dies or hangs.

    `on_change` is called with True when the engine takes work again and with False when it went down. `start_seconds`
    is how long the engine's start took, where that was measured.
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
        self._accounted_engine: KillableEngine | None = None
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
        """Return the facts about the served model."""
        return self._engine.card

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the served model."""
        return self._engine.tokenizer

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        """Try a constraint; see `Engine.check_constraint`."""
        await self._engine.check_constraint(structured, caller)

    async def image_tokens(self, image: Image, caller: str) -> int:
        """Return an image's number of tokens; see `Engine.image_tokens`."""
        return await self._engine.image_tokens(image, caller)

    def load(self) -> EngineLoad:
        """Return the present engine's counts."""
        return self._engine.load()

    async def expert_counts(self) -> ExpertCounts:
        """Return the counts since the first engine's start; a dead engine's last ones may be missing."""
        engine = self._engine
        if not self._alive:
            raise EngineDown("the engine is restarting")
        return self._experts.total(engine, await engine.expert_counts())

    async def check(self) -> None:
        """Raise EngineDown while the engine takes no work."""
        if not self._alive:
            raise EngineDown("the engine is restarting")
        await self._engine.check()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Run one request; see `Engine.stream`. Raise EngineDied, or PoisonousRequest where the request did it."""
        self.refuse_convicted(request)
        run = Run(request, alone=request.deaths > 0 or self._suspicions(request) > 0)
        await self._probation.start_run(run)
        try:
            # A new request waits for a running engine here: a death before it runs must not count against it.
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
            # Marked at once, not at the watcher's next check, so that `wait_until_available` does not find it alive.
            if self._alive and self._engine is run.engine:
                self._goes_down(InterruptionReason.ENGINE_DIED)
                self._lost.set()
                self._find_suspects()
            if run.convicted:
                raise PoisonousRequest(
                    f"the engine died while it ran this request (deaths: {request.deaths + 1}, "
                    f"limit for its caller: {self._settings.max_deaths_per_request}); do not send it again",
                    engine_deaths=request.deaths + 1,
                ) from error
            raise EngineDied(suspected=run.blamed) from error
        finally:
            self._runs.discard(run)
            self._probation.end_run(run)

    async def _chunks(self, run: Run) -> AsyncGenerator[EngineChunk, None]:
        """Yield the engine's chunks. A run that is alone yields nothing before it has settled.

        Other runs wait for it to settle, and must not have to wait for its client.
        """
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
        """Mark a run as harmless."""
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
                # No suspect caused it, so the engine did, and the death counts after all.
                self._restarts.append(time.monotonic())

    def refuse_convicted(self, request: EngineRequest) -> None:
        """Raise PoisonousRequest for a request that is refused because of other requests of its caller."""
        if request.accountable is not None and not request.continues:
            self.poison.refuse_convicted(request.accountable)

    def _suspicions(self, request: EngineRequest) -> int:
        return self.poison.suspicions(request.accountable) if request.accountable is not None else 0

    def _find_suspects(self) -> None:
        """Handle the first sign of an engine death: suspect the runs that had not settled.

        A run that was suspected before and ran alone is convicted.
        """
        if self._accounted_engine is self._engine:
            return
        self._accounted_engine = self._engine
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
        log.error("request %s killed the engine; refusing it as poisonous", run.request.request_id)

    def _goes_down(self, reason: InterruptionReason) -> None:
        if self._alive:
            self._alive, self._down_since, self._down_because = False, time.monotonic(), reason

    def interruption(self) -> Interruption | None:
        """Return why the engine takes no work; None while it does, and once it was given up."""
        if self._alive or self.given_up.is_set():
            return None
        expected = self._start_seconds
        if expected is not None:
            expected = max(0.0, self._down_since + expected - time.monotonic())
        return Interruption(self._down_because, expected)

    async def wait_until_available(self) -> None:
        """Wait until an engine takes work. Raise EngineDown once it was given up."""
        if self._alive:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._alive or self.given_up.is_set())
        if self.given_up.is_set():
            raise EngineDown("the engine died too often and will not be started again")

    async def close(self) -> None:
        """End the engine and the supervision."""
        await tasks.end(self._watcher)
        if self._alive:
            await self._engine.close()
        else:
            await self._engine.kill()

    async def _watch(self) -> None:
        while not self.given_up.is_set():
            due = time.monotonic() + _CHECK_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _CHECK_SECONDS)
            self._watchdog.forgive(max(0.0, time.monotonic() - due))
            failure = await self._find_failure()
            if failure is not None:
                try:
                    await self._replace(*failure)
                except Exception:
                    log.exception("supervisor failed")
                    await self._give_up()

    async def _find_failure(self) -> tuple[InterruptionReason, str] | None:
        """Return why the engine must be replaced, for streams and as text for the log; None while it works."""
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
        log.error("engine %s; starting another one", happened)
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
                log.error("engine restart failed: %s", type(error).__name__)
                continue
            self.restarts += 1
            self._start_seconds = time.monotonic() - began
            log.warning("engine restarted in %.1f s", self._start_seconds)
            self._steps_seen = -1
            self._watchdog.mark_progress()
            await self._set_alive(True)
            return
        await self._give_up()

    def _may_restart(self, *, counts: bool) -> bool:
        """Return whether another start is allowed, and count it.

        A death that a request is suspected of does not count until all suspects have settled.
        """
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
        log.critical("engine needed more than %d restarts; giving up", self._settings.max_restarts)
        self.given_up.set()
        await self._set_alive(False)

    async def _set_alive(self, alive: bool) -> None:
        async with self._changed:
            self._alive = alive
            self._changed.notify_all()
        await self._on_change(alive)
