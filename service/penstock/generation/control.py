"""Control a running generation, and hold what identifies one run of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.errors import BadRequest, FieldViolation
from penstock.generation.early_exit import ProbeConditions, ProbeRun
from penstock.generation.usage import UsageMeter
from penstock.telemetry.hooks import NO_GENERATION_HOOKS, GenerationHooks

T = TypeVar("T")


@dataclass(eq=False)
class GenerationControl:
    """Control a running generation. Interact, Steer and draining write it; every engine step reads it."""

    finish_thinking: bool = False
    thought_budget_tokens: int | None = None
    """A new budget in tokens, counted from the start of the thought; -1 is all that the answer reserve leaves."""
    cancelled: bool = False
    drained: bool = False
    actions: int = 0
    """Number of actions that the client has taken, cancel apart."""
    _waits: set[asyncio.Timeout] = field(default_factory=set)

    def count_action(self, most: int) -> None:
        """Count one action of the client. Raise BadRequest after `most`: each may cost an engine run."""
        if self.actions >= most:
            why = f"at most {most} actions may steer a generation, got more; cancel is still taken"
            raise BadRequest(FieldViolation("action", why, "LIMIT_EXCEEDED"))
        self.actions += 1

    def cancel(self) -> None:
        """End the generation."""
        self.cancelled = True
        self._end_waits()

    def state(self) -> dict[str, Any]:
        """Return plain data of the actions that another process must still take."""
        return {"finish": self.finish_thinking, "budget": self.thought_budget_tokens}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the actions of `state` that nothing newer has replaced."""
        self.finish_thinking = self.finish_thinking or bool(state["finish"])
        if self.thought_budget_tokens is None:
            self.thought_budget_tokens = state["budget"]

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
        conditions: Whether probes of early exit may run.
        begun: The answer's run that AUTO's decision began, of a call with one candidate.
    """

    generation_id: str
    arrived_monotonic: float
    control: GenerationControl = field(default_factory=GenerationControl)
    states: Sequence[Mapping[str, Any]] = ()
    hooks: GenerationHooks = NO_GENERATION_HOOKS
    meter: UsageMeter | None = None
    conditions: ProbeConditions = field(default_factory=ProbeConditions)
    begun: ProbeRun | None = None
