"""Run one load and compute its figures, with the resources that the service's processes used meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
from penstock_bench.load import energy
from penstock_bench.load.arrivals import ScheduledCall, bursts, drawn, poisson, poisson_of_count
from penstock_bench.load.calls import UNFINISHED, Record
from penstock_bench.load.energy import EnergyMeter
from penstock_bench.load.processes import FRONT_END, Used, Watch, machine_busy_seconds
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.run import Live, LoadOptions, Run
from penstock_bench.load.statistics import LoadSummary, Objectives, summarize
from penstock_bench.load.workload import Workload
from penstock_client import AsyncClient

_STEP_SECONDS = 0.2
_ENERGY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop of `callers`, each with one call at a time."""

    callers: int

    @property
    def name(self) -> str:
        """Return the name of the pattern for reports."""
        return f"closed loop, {self.callers} callers"


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals (calls per second), bursts (seconds between them), or both.

    With `fixed_count`, warm-up and window have exactly as many Poisson arrivals as their length times the rate.
    """

    calls_per_second: float = 0.0
    burst_calls: int = 0
    burst_every_seconds: float = 10.0
    fixed_count: bool = False

    def times(self, warm_up_seconds: float, seconds: float, seed: int) -> list[Iterator[float]]:
        """Return when calls are meant to be sent, one iterator for each kind of arrival."""
        rng, rate, found = random.Random(seed), self.calls_per_second, list[Iterator[float]]()
        if rate and self.fixed_count:
            for begin, end in ((-warm_up_seconds, 0.0), (0.0, seconds)):
                found.append(poisson_of_count(round(rate * (end - begin)), begin, end, rng))
        elif rate:
            found.append(poisson(rate, -warm_up_seconds, rng))
        if self.burst_calls:
            found.append(bursts(self.burst_calls, self.burst_every_seconds, -warm_up_seconds))
        return found

    @property
    def name(self) -> str:
        """Return the name of the pattern for reports."""
        parts = [f"Poisson, {self.calls_per_second:g} calls/s"] if self.calls_per_second else []
        if self.burst_calls:
            parts.append(f"bursts of {self.burst_calls} every {self.burst_every_seconds:g} s")
        return "open loop, " + " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded arrivals at `speed` times their rate."""

    trace: tuple[ScheduledCall, ...]
    speed: float = 1.0

    @property
    def name(self) -> str:
        """Return the name of the pattern for reports."""
        return f"trace of {len(self.trace)} calls at {self.speed:g} times its pace"


Pattern = Closed | Open | Replay


@dataclass(slots=True)
class Load:
    """A running or finished load; its content stays valid when it is interrupted."""

    pattern: Pattern
    workload: Workload
    options: LoadOptions
    run: Run
    used: dict[int, Used] = field(default_factory=dict)
    energy: EnergyMeter | None = None
    """CPU and memory of each process over the window; None if the service is not on this machine."""
    machine_busy_seconds: float | None = None
    """CPU seconds of all processes of this machine over the window; None if the service is elsewhere."""
    interrupted: bool = False
    """Whether it was interrupted: calls that ran then are not counted against the service."""

    @property
    def live(self) -> Live:
        """Return the counters of the load while it runs."""
        return self.run.live

    @property
    def records(self) -> Sequence[Record]:
        """Return the calls meant for the window."""
        return [record for record in self.every if record.intended >= 0]

    @property
    def every(self) -> Sequence[Record]:
        """Return all calls, including those of the warm-up."""
        return [record for record in self.run.records if not (self.interrupted and record.outcome == UNFINISHED)]

    @property
    def seconds(self) -> float:
        """Return the length of the window, as far as it was reached."""
        return max(1e-6, min(self.run.end_seconds, self.run.clock.now()))

    @property
    def output_tokens(self) -> int:
        """Return the output tokens that arrived in the window."""
        return self.live.window_thought_tokens + self.live.window_answer_tokens

    @property
    def front_end_cpu_seconds_per_token(self) -> float | None:
        """Return the front end's CPU seconds per output token; None if it was not observed or no token came."""
        seconds = [one.cpu_seconds for one in self.used.values() if one.role == FRONT_END]
        return sum(seconds) / self.output_tokens if seconds and self.output_tokens else None

    @property
    def other_cores(self) -> float | None:
        """Return the cores that other processes of this machine used; None if the service is not observed on it."""
        if self.machine_busy_seconds is None or not self.used:
            return None
        ours = sum(one.cpu_seconds for one in self.used.values())
        return max(0.0, self.machine_busy_seconds - ours) / self.seconds

    @property
    def joules_per_output_token(self) -> float | None:
        """Return the energy of this machine per output token; None where nothing reports it or no token came."""
        joules = self.energy.total_joules if self.energy is not None else None
        return joules / self.output_tokens if joules is not None and self.output_tokens else None

    def summary(self, objectives: Objectives) -> LoadSummary:
        """Return the figures of the load."""
        live = self.live
        tokens = (live.window_thought_tokens, live.window_answer_tokens)
        return summarize(self.every, self.seconds, *tokens, objectives)


def prepare(
    clients: Sequence[AsyncClient], prompts: Prompts, pattern: Pattern, workload: Workload, options: LoadOptions
) -> Load:
    """Return a load whose clock has started, and nothing else."""
    return Load(pattern, workload, options, Run(clients, prompts, options))


async def carry_out(load: Load, front_end: psutil.Process | None) -> None:
    """Run the load to its end. The processes are measured over the window alone, without warm-up and last calls."""
    # The use of this machine says nothing about a service elsewhere.
    load.energy = energy.find() if front_end is not None else None
    watching = asyncio.create_task(_watch(load, Watch(front_end)))
    load.interrupted = True
    try:
        await _send(load)
        load.interrupted = False
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _send(load: Load) -> None:
    pattern, run, workload = load.pattern, load.run, load.workload
    if isinstance(pattern, Closed):
        await run.closed_loop(pattern.callers, workload)
    elif isinstance(pattern, Replay):
        await run.replay(pattern.trace, pattern.speed)
    else:
        # Separate generators: the times do not depend on the draws for the calls.
        times = pattern.times(load.options.warm_up_seconds, load.options.seconds, load.options.seed + 1)
        works = random.Random(load.options.seed + 2)
        await run.open_loop(drawn(times, load.options.seconds, lambda: workload.draw(works)))


async def _watch(load: Load, watch: Watch) -> None:
    await load.run.clock.reach(0.0)
    busy = machine_busy_seconds()
    try:
        await _watch_window(load, watch)
    finally:
        if load.energy is not None:  # only if the service was found here
            load.machine_busy_seconds = machine_busy_seconds() - busy


async def _watch_window(load: Load, watch: Watch) -> None:
    with watch.window() as used:
        load.used = used
        if load.energy is not None:
            load.energy.begin()
        sampled = 0.0
        # In steps: the end may not be decided yet.
        while (now := load.run.clock.now()) < load.run.end_seconds:
            await load.run.clock.reach(min(load.run.end_seconds, now + _STEP_SECONDS))
            if load.energy is not None and now >= sampled + _ENERGY_SECONDS:
                load.energy.sample()
                sampled = now
        if load.energy is not None:
            load.energy.sample()
