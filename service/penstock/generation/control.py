"""Control a running generation, and hold what identifies one run of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.generation.usage import UsageMeter
from penstock.telemetry.hooks import NO_GENERATION_HOOKS, GenerationHooks

T = TypeVar("T")


@dataclass(eq=False)
class GenerationControl:
    """Control a running generation. Interact and draining write it; every engine step reads it."""

    finish_thinking: bool = False
    thought_budget_tokens: int | None = None
    """A new budget in tokens, counted from the start of the thought; -1 is all that the answer reserve leaves."""
    cancelled: bool = False
    drained: bool = False
    _waits: set[asyncio.Timeout] = field(default_factory=set)

    def cancel(self) -> None:
        """End the generation."""
        self.cancelled = True
        self._end_waits()

    def drain(self) -> None:
        """End the generation here, so that another server continues it."""
        self.drained = True
        self._end_waits()

    @property
    def ends(self) -> bool:
        """Return whether the generation must end early."""
        return self.cancelled or self.drained

    async def unless_it_ends(self, begin: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of `begin`, or None as soon as the generation must end.

        For waits that may take long without an engine step: the queue, a long prompt, an engine that restarts.
        """
        if self.ends:
            return None
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    return await begin()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            return None

    def _end_waits(self) -> None:
        for wait in self._waits:
            wait.reschedule(0.0)


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRun:
    """One run of a generation: its id, and what steers, watches and counts it.

    Attributes:
        arrived_monotonic: When the request arrived, in seconds of time.monotonic().
        states: Of a drained call's `Finished`, one for each candidate: it continues there. Empty for a new call.
        meter: Filled in while it runs; None where nobody reads it.
    """

    generation_id: str
    arrived_monotonic: float
    control: GenerationControl = field(default_factory=GenerationControl)
    states: Sequence[Mapping[str, Any]] = ()
    hooks: GenerationHooks = NO_GENERATION_HOOKS
    meter: UsageMeter | None = None
