"""Supervise the engine: detect that it died or hangs, end its processes, start another one, and let streams continue.

It is an `Engine` itself, so that its users need not know: a stream whose engine died raises EngineDown; its candidate
waits in `wait_until_available` and continues with a new run. Runs that had produced only a few tokens when the engine
died are suspected and retried alone (see `probation`), others are noted (see `notes`), so that a request which kills
engines is found at the second death, and others are not blamed. Its caller's requests of the same kind are then refused
for a while (see `poison`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from penstock import tasks
from penstock.config.schema import SupervisionSettings
from penstock.engine.base import Engine, EngineLoad, Interruption, Tokenizer
from penstock.engine.expert_load.statistics import Continued, ExpertCounts
from penstock.engine.notes import Notes
from penstock.engine.poison import PoisonMemory
from penstock.engine.probation import SETTLING_SECONDS, SETTLING_STEPS, Death, Probation, Run
from penstock.errors import EngineDied, EngineDown, PoisonousRequest
from penstock.types import EngineChunk, EngineRequest, Image, InterruptionReason, ModelCard, StructuredOutput

log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 60.0
_GATHER_SECONDS = 0.2
"""Seconds after a restart in which the runs that go on ask to start, before the first one does: they have an order."""


class KillableEngine(Engine, Protocol):
    """Define an engine that can be ended without its cooperation."""

    async def kill(self) -> None:
        """End all processes of the engine at once; its streams raise EngineDown."""
        ...


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
        self._counted: list[Death] = []
        self.poison = PoisonMemory(settings.poison_seconds)
        self._probation = Probation()
        self._runs: set[Run] = set()
        self._notes = Notes(settings.poison_seconds)
        self._accounted_engine: KillableEngine | None = None
        self._death = Death()
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
        note = self._notes.of(request)
        run = Run(request, alone=note is not None or request.deaths > 0 or self._suspicions(request) > 0, note=note)
        if note is not None:
            note.run = run
        try:
            await self._probation.start_run(run)
            # A new request waits for a running engine here: a death before it runs must not count against it.
            await self.wait_until_available()
            self.refuse_convicted(request)
            self._take_over_note(run)
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
            self._probation.forget(run)
            if run.note is not None and run.note.run is run:
                run.note.run = None

    def _take_over_note(self, run: Run) -> None:
        """Give a new request the note of its caller's run that left: it may kill at the same place.

        Not one with which it would be near its place together with another run: a death there would tell nothing.
        """
        if run.note is None and not run.request.continues:
            run.note = self._notes.take_over(run, lambda note: not self._probation.meets_another(note))
            if run.note is not None:
                run.note.run = run
                self._probation.watch(run)

    async def _chunks(self, run: Run) -> AsyncGenerator[EngineChunk, None]:
        """Yield the engine's chunks. A run that is alone yields nothing before it has settled.

        Other runs wait for it to settle, and must not have to wait for its client.
        """
        held: list[EngineChunk] = []
        async with aclosing(run.engine.stream(run.request)) as chunks:
            with self._watchdog.waiting() as wait:
                async for chunk in chunks:
                    run.add(chunk)
                    if chunk.stop is not None:
                        self._finish(run)  # now: a caller reads no further than this chunk
                    elif not run.passed:
                        self._check(run)
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

    def _check(self, run: Run) -> None:
        """Settle a run that has given enough chunks, and pass one that is beyond its place."""
        if run.chunks == 1 and not run.alone:
            self._check_later(run, self._engine.load().steps)
        if run.chunks >= SETTLING_STEPS:
            self._settle(run)

    def _check_later(self, run: Run, first_step: int) -> None:
        asyncio.get_running_loop().call_later(SETTLING_SECONDS, self._settle_by_steps, run, first_step)

    def _settle_by_steps(self, run: Run, first_step: int) -> None:
        """Settle a run whose client reads slowly by the engine's own steps since its first chunk."""
        if run.settled or run not in self._runs:
            return
        load = run.engine.load()
        is_idle = load.running_requests + load.waiting_requests == 0
        if is_idle or load.steps - first_step >= SETTLING_STEPS * load.ranks:
            self._settle(run)
        else:
            self._check_later(run, first_step)

    def _finish(self, run: Run) -> None:
        """Handle that the engine ended a run by itself. One that gave less than at the death keeps its note."""
        self._settle(run)
        if run.note is None:
            return
        if run.tokens > run.note.place:
            self._pass(run)
        elif not run.blamed:
            run.note.answered = True
            if run.note.suspected and run.note.settled and run.request.accountable is not None:
                self.poison.acquit(run.request.accountable)

    def _settle(self, run: Run) -> None:
        """Mark a run as harmless, except near its place."""
        if run.blamed:
            return
        if not run.settled:
            run.settled = True
            self._probation.end_run(run)
        if run.is_beyond:
            self._pass(run)

    def _pass(self, run: Run) -> None:
        """Take back what a run is suspected of."""
        if run.passed or run.blamed:
            return
        run.passed = True
        self._probation.forget(run)
        note = run.note
        if note is not None:
            self._notes.drop(run)
        if run.request.deaths == 0 and (note is None or not note.suspected):
            return
        if run.request.accountable is not None:
            self.poison.acquit(run.request.accountable)
        death = note.deaths[-1] if note is not None and note.suspected else None
        if death is not None:
            death.suspects -= 1
            if death.suspects == 0 and not death.is_explained:
                # No suspect caused it, so the engine did, and the death counts after all.
                self._count(death)

    def refuse_convicted(self, request: EngineRequest) -> None:
        """Raise PoisonousRequest for a request that is refused because of other requests of its caller."""
        if request.accountable is not None:
            self.poison.refuse_convicted(request.accountable, continues=request.continues)

    def _suspicions(self, request: EngineRequest) -> int:
        return self.poison.suspicions(request.accountable) if request.accountable is not None else 0

    def _find_suspects(self) -> None:
        """Handle the first sign of an engine death: suspect the runs that had not settled, or were near their place.

        One that met a death before, and is the only suspect, is convicted. All others are noted.
        """
        if self._accounted_engine is self._engine:
            return
        self._accounted_engine = self._engine
        runs = [run for run in self._runs if run.engine is self._engine]
        suspects = [run for run in runs if run.is_suspect]
        self._death = Death(len(suspects))
        for run in suspects:
            run.blamed = True
        if len(suspects) == 1 and self._deaths_of(suspects[0]) >= self._settings.max_deaths_per_request:
            self._convict(suspects[0])
            return
        for run in suspects:
            if run.request.accountable is not None:
                self.poison.suspect(run.request.accountable)
        self._notes.record(runs, self._death)

    def _deaths_of(self, run: Run) -> int:
        """Return the deaths that a suspect of the last one is suspected of."""
        noted = run.note.evidence if run.note is not None else 0
        return max(noted, run.request.deaths, self._suspicions(run.request)) + 1

    def _convict(self, run: Run) -> None:
        run.convicted = True
        for death in (*self._notes.convict(run), self._death):
            death.is_explained = True
            if death in self._counted:
                self._counted.remove(death)
        if run.request.accountable is not None:
            self.poison.convict(run.request.accountable)
        log.error("request %s killed the engine; refusing it as poisonous", run.request.request_id)

    def _goes_down(self, reason: InterruptionReason) -> None:
        if self._alive:
            self._alive, self._down_since, self._down_because = False, time.monotonic(), reason
            self._probation.close()

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
            # `wait_for` of Python 3.11 would lose a cancellation that comes with the death.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._lost.wait()
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
        death = self._death
        log.error("engine %s; starting another one", happened)
        await self._set_alive(False)
        await self._engine.kill()
        failures = 0
        while self._may_restart(death):
            if failures:
                await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, self._settings.backoff_seconds * 2 ** (failures - 1)))
            began = time.monotonic()
            try:
                self._engine = await self._start()
            except Exception as error:
                failures += 1
                death = Death()
                log.error("engine restart failed: %s", type(error).__name__)
                continue
            self.restarts += 1
            self._start_seconds = time.monotonic() - began
            log.warning("engine restarted in %.1f s", self._start_seconds)
            self._steps_seen = -1
            self._watchdog.mark_progress()
            await self._set_alive(True)
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._let_runs_start, self._engine)
            return
        await self._give_up()

    def _let_runs_start(self, engine: KillableEngine) -> None:
        if self._alive and self._engine is engine:
            self._probation.open()

    def _may_restart(self, death: Death) -> bool:
        """Return whether another start is allowed, and count the death.

        One that a request is suspected of does not count until all suspects have passed, and none counts that a request
        is convicted of.
        """
        oldest = time.monotonic() - self._settings.restart_window_seconds
        self._counted = [one for one in self._counted if one.counted_at is not None and one.counted_at > oldest]
        if death.suspects > 0 or death.is_explained:
            return len(self._counted) <= self._settings.max_restarts
        if len(self._counted) >= self._settings.max_restarts:
            return False
        self._count(death)
        return True

    def _count(self, death: Death) -> None:
        death.counted_at = time.monotonic()
        self._counted.append(death)

    async def _give_up(self) -> None:
        log.critical("engine needed more than %d restarts; giving up", self._settings.max_restarts)
        self.given_up.set()
        self._probation.open()
        await self._set_alive(False)

    async def _set_alive(self, alive: bool) -> None:
        async with self._changed:
            self._alive = alive
            self._changed.notify_all()
        await self._on_change(alive)
