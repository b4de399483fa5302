"""Asks the engine for its expert counts, once for all who want to know."""

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
# Asking takes the engine a fraction of a millisecond between two steps: callers cannot make it much more often.
_MIN_GAP_SECONDS = 0.05
_GRACE_SECONDS = 10.0


class ExpertSampler:
    """One per server. `run` samples once a second; `load` asks anew where that is too old. All on one event loop."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._history = History()
        self._asking = asyncio.Lock()
        self._steps = -1

    async def run(self, engine: Engine) -> None:
        """As long as the server serves, unless this engine does not count. Between steps nothing is asked."""
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
                log.debug("expert counts were not to be had: %s", error.message)
            await asyncio.sleep(_EVERY_SECONDS)

    def latest(self) -> ExpertLoad | None:
        """Over the default window, as last sampled; from any thread. None where nothing is counted."""
        return self._history.load(self.window_seconds)

    async def load(self, engine: Engine, window_seconds: float | None, *, age_seconds: float = 0.0) -> ExpertLoad:
        """Over the window, from counts that are at most `age_seconds` old: with 0 they hold all that came before.

        Raises `errors.FeatureOff` where the engine does not count, `errors.EngineDown` where it is dead.
        """
        await self._ask(engine, time.monotonic() - age_seconds)
        load = self._history.load(window_seconds or self.window_seconds)
        assert load is not None
        return load

    async def last_known(
        self, engine: Engine, window_seconds: float | None, *, age_seconds: float
    ) -> ExpertLoad | None:
        """As `load`, and while the engine is away, what was known before."""
        with contextlib.suppress(EngineDown, EngineRefused):
            return await self.load(engine, window_seconds, age_seconds=age_seconds)
        return self._history.load(window_seconds or self.window_seconds)

    async def _ask(self, engine: Engine, not_before: float | None = None) -> None:
        """Who comes while another asks waits, and shares an answer that is new enough."""
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
                raise EngineDown("the engine does not answer") from None
            self._history.add(at, counts)
