"""Sample the engine's expert counts, once for all who ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from penstock.engine.base import Engine
from penstock.engine.expert_load.statistics import ExpertLoad, History
from penstock.errors import EngineDown, EngineRefused, FeatureOff

log = logging.getLogger(__name__)
_EVERY_SECONDS = 1.0
# A sample takes the engine a fraction of a millisecond between two steps; callers cannot cause many more.
_MIN_GAP_SECONDS = 0.05
_GRACE_SECONDS = 10.0


class ExpertSampler:
    """Sample once per second in `run`; `load` samples again where that is too old. Lives on one event loop."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._history = History()
        self._asking = asyncio.Lock()
        self._steps = -1

    async def run(self, engine: Engine) -> None:
        """Sample until cancelled, unless this engine does not count."""
        while True:
            try:
                steps, newest = engine.load().steps, self._history.newest
                if newest is not None and steps == self._steps > 0:
                    if not self._asking.locked():
                        self._history.add(time.monotonic(), newest[1])
                else:
                    await self._ask(engine)
                    self._steps = steps
            except FeatureOff:
                return
            except (EngineDown, EngineRefused) as error:
                log.debug("expert counts not available: %s", error.message)
            await asyncio.sleep(_EVERY_SECONDS)

    def latest(self) -> ExpertLoad | None:
        """Return the load over the default window as last sampled, from any thread; None where nothing is counted."""
        return self._history.load(self.window_seconds)

    async def load(self, engine: Engine, window_seconds: float | None, *, age_seconds: float = 0.0) -> ExpertLoad:
        """Return the load over the window, from counts at most `age_seconds` old; 0 samples now.

        Raise FeatureOff where the engine does not count, EngineDown where it is dead.
        """
        await self._ask(engine, time.monotonic() - age_seconds)
        load = self._history.load(window_seconds or self.window_seconds)
        assert load is not None
        return load

    async def last_known(
        self, engine: Engine, window_seconds: float | None, *, age_seconds: float
    ) -> ExpertLoad | None:
        """Return the load as `load` does, or the last known one while the engine is down."""
        with contextlib.suppress(EngineDown, EngineRefused):
            return await self.load(engine, window_seconds, age_seconds=age_seconds)
        return self._history.load(window_seconds or self.window_seconds)

    async def _ask(self, engine: Engine, not_before: float | None = None) -> None:
        """Sample the engine. Concurrent callers wait for one sample and share it where it is new enough."""
        not_before = time.monotonic() if not_before is None else not_before
        async with self._asking:
            last = self._history.newest
            if last is not None:
                if last[0] >= not_before:
                    return
                await asyncio.sleep(last[0] + _MIN_GAP_SECONDS - time.monotonic())
            at = time.monotonic()
            try:
                async with asyncio.timeout(_GRACE_SECONDS):
                    counts = await engine.expert_counts()
            except TimeoutError:
                raise EngineDown("the engine did not answer in time; retry later") from None
            self._history.add(at, counts)
