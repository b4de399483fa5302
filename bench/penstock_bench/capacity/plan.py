"""Compute a plan from one setup, one mix of requests and a range of concurrencies. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock_bench.capacity.calibrate import Fit
from penstock_bench.capacity.cost import BreakEven, Hosted, ServingCost, break_even, cost
from penstock_bench.capacity.knee import knee
from penstock_bench.capacity.memory import Memory, Setup, plan_memory
from penstock_bench.capacity.pareto import Choice, frontier
from penstock_bench.capacity.roofline import Assumptions, Roofline, Step
from penstock_bench.capacity.speed import Correction, Mix, Point, ceiling, concurrencies, point


@dataclass(frozen=True, slots=True)
class Decision:
    """A feature that the service would switch on or off, with the reason: a line of its profile."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The input of a plan. No costs are computed if `usd_per_device_hour` is None."""

    mix: Mix
    context_tokens: int
    concurrency: tuple[int, ...] = ()
    usd_per_device_hour: float | None = None
    price_source: str = ""
    hosted: Hosted | None = None
    acceptance_source: str = "assumed; --acceptance"
    interactivity: float | None = None
    """Wanted output tokens per second of each user; None: not given."""


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The result of `penstock plan`."""

    setup: Setup
    decisions: tuple[Decision, ...]
    wanted: Wanted
    assumed: Assumptions
    memory: Memory
    fit: Fit | None
    prefill: Step
    points: tuple[Point, ...]
    costs: tuple[ServingCost, ...]
    break_even: BreakEven | None
    knee: int | None
    """Concurrency above which response times grow faster than throughput; None if nothing fits."""
    drafts_lose_from: int | None
    frontier: tuple[Choice, ...]

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths for which the plan says how many fit."""
        steps = {self.wanted.mix.total_tokens, self.wanted.context_tokens, 32_768, 131_072, self.setup.window_tokens}
        return tuple(sorted(tokens for tokens in steps if tokens <= self.setup.window_tokens))

    @property
    def usd_per_hour(self) -> float | None:
        """Return the price of all devices in USD per hour; None if no price is known."""
        price = self.wanted.usd_per_device_hour
        return None if price is None else price * self.setup.count


def make_plan(
    setup: Setup,
    decisions: tuple[Decision, ...],
    wanted: Wanted,
    assumed: Assumptions,
    fitted: Callable[[Memory], Fit] | None = None,
) -> CapacityPlan:
    """Compute the plan; `fitted` calibrates its speed. Raises `ConfigError` if the layout is not possible."""
    memory = plan_memory(setup)
    fit = fitted(memory) if fitted else None
    correction = fit.correction if fit else Correction()
    mix = wanted.mix
    most = ceiling(setup, memory, mix.total_tokens)
    asked = concurrencies(most, wanted.concurrency) if memory.fits else ()
    points = tuple(point(setup, memory, assumed, mix, number, correction) for number in asked)
    hourly = None if wanted.usd_per_device_hour is None else wanted.usd_per_device_hour * setup.count
    costs = () if hourly is None else tuple(cost(one, mix, hourly) for one in points)
    possible = [one for one in points if one.fits]
    best = max(possible, key=lambda one: one.requests_per_second, default=None)
    even = None
    if best is not None and hourly is not None and wanted.hosted is not None:
        even = break_even(best, mix, hourly, wanted.hosted)
    prefill = Roofline(setup, memory.cache, assumed).prefill(mix.input_tokens)
    curve = [point(setup, memory, assumed, mix, number, correction) for number in concurrencies(most)] if most else []
    return CapacityPlan(
        setup=setup,
        decisions=decisions,
        wanted=wanted,
        assumed=assumed,
        memory=memory,
        fit=fit,
        prefill=prefill,
        points=points,
        costs=costs,
        break_even=even,
        knee=knee((one.concurrency, one.requests_per_second) for one in curve),
        drafts_lose_from=_drafts_lose_from(setup, assumed, mix, correction, curve),
        frontier=frontier(setup, assumed, mix, hourly, correction),
    )


def _drafts_lose_from(
    setup: Setup, assumed: Assumptions, mix: Mix, correction: Correction, curve: list[Point]
) -> int | None:
    """Return the first concurrency of the curve at which the machine is faster without drafts, or None."""
    if not setup.drafted:
        return None
    plain = replace(setup, drafted=0)
    memory = plan_memory(plain)
    for one in curve:
        without = point(plain, memory, assumed, mix, one.concurrency, correction)
        if without.requests_per_second > one.requests_per_second:
            return one.concurrency
    return None
