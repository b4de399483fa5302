"""Run the graded sequence of loads on a service. Each result is kept as its load ends, so that Ctrl-C loses none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
from penstock_bench.load import measure
from penstock_bench.load.knee import Criteria
from penstock_bench.load.measure import Closed, Load, Open, Pattern
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.repeat import Repeat
from penstock_bench.load.run import LoadOptions
from penstock_bench.load.search import KneeSearch, Loads, NoCallEnded
from penstock_bench.load.statistics import Objectives
from penstock_bench.load.workload import Lengths, Thinking, Workload
from penstock_bench.pilot import questions
from penstock_bench.pilot.knee import knee_of
from penstock_bench.pilot.questions import Asked
from penstock_bench.pilot.results import Kind, Knee, Stage
from penstock_bench.pilot.scenario import Scenario
from penstock_bench.pilot.scrape import Watch
from penstock_bench.pilot.stage import stage_of
from penstock_client import AsyncClient, FeatureOff, InvalidRequest, ModelCard

_DRAIN_SECONDS = 120.0
_MIN_RATE = 0.05
_OWN_TOKENS = 128
"""Share of the prompt that is the shared prefix."""

Show = Callable[[str, Load | None], None]
"""A callback for the progress of the running stage."""


@dataclass(frozen=True, slots=True)
class Service:
    """The service to measure, and the parts of it that can be observed from here."""

    clients: Sequence[AsyncClient]
    card: ModelCard
    prompts: Prompts
    front_end: psutil.Process | None
    metrics_url: str | None


@dataclass(frozen=True, slots=True)
class _Ask:
    """The plan of one stage."""

    kind: Kind
    name: str
    pattern: Pattern
    prompt_tokens: int
    output_tokens: int
    seconds: float
    prefix_tokens: int = 0


class Pilot:
    """Runs the stages. `stages` and `asked` have the results so far, whenever it ends."""

    def __init__(self, service: Service, scenario: Scenario, objectives: Objectives, show: Show) -> None:
        self.stages: list[Stage] = []
        self.asked = Asked()
        self._search: KneeSearch | None = None
        self._service, self._scenario, self._objectives, self._show = service, scenario, objectives, show

    async def run(self) -> None:
        """Run all stages, the most harmful ones last. Raises PenstockError if the service fails."""
        scenario = self._scenario
        for callers in scenario.concurrencies:
            await self._closed(
                "concurrency", f"{callers} caller{'s'[: callers > 1]}", callers, scenario.concurrency_seconds
            )
        await self._contexts()
        await self._prefixes()
        peak = max((stage.calls_per_second for stage in self.stages if stage.kind == "concurrency"), default=0.0)
        await self._knee(peak)
        for share in scenario.rate_shares:
            await self._open("rate", f"{share:.0%} of the peak rate", peak * share, scenario.rate_seconds)
        await self._questions()
        await self._burst(peak)
        soak = scenario.soak_share
        await self._open("soak", f"soak at {soak:.0%} of the peak rate", peak * soak, scenario.soak_seconds)

    @property
    def knee(self) -> Knee | None:
        """Return the knee as known so far; None if it was not searched."""
        return None if self._search is None else knee_of(self._search)

    async def _knee(self, peak: float) -> None:
        scenario, service = self._scenario, self._service
        if not scenario.knee_points or not peak:
            return

        async def carry_out(load: Load, title: str) -> None:
            """Run one load of the search and show its progress."""
            self._show(f"knee: {title}", load)
            await measure.carry_out(load, service.front_end)

        workload = self._workload(scenario.prompt_tokens, scenario.output_tokens)
        options = LoadOptions(1.0, 0.0, _DRAIN_SECONDS, seed=1)
        loads = Loads(service.clients, service.prompts, service.front_end, workload, options, scenario.knee_calls)
        criteria = Criteria(self._objectives, tolerance=scenario.knee_tolerance, max_points=scenario.knee_points)
        self._search = KneeSearch(loads, criteria, carry_out)
        # Where no call of the idle service ends well, all other stages say so, too.
        with suppress(NoCallEnded):
            await self._search.run(peak / 2, Repeat(scenario.knee_runs))

    def _workload(self, prompt_tokens: int, output_tokens: int, prefix_tokens: int = 0) -> Workload:
        prompt = max(prompt_tokens, self._service.prompts.min_tokens)
        return Workload(
            Lengths(((prompt, prompt, 1.0),)),
            Lengths(((output_tokens, output_tokens, 1.0),)),
            Thinking((("fast", None, 1.0),)),
            prefixes=1 if prefix_tokens else 0,
            prefix_tokens=prefix_tokens,
        )

    async def _questions(self) -> None:
        self._show("questions", None)
        service, modes = self._service, self._service.card.thinking_modes
        try:
            await questions.ask(
                service.clients[0], self._scenario, modes, self.asked, lambda name: self._show(name, None)
            )
        except (InvalidRequest, FeatureOff) as refused:
            # The other stages do not need it.
            self.asked.about += f". The service refuses to answer them: {refused.message}"

    async def _contexts(self) -> None:
        scenario = self._scenario
        window = self._service.card.context_window_tokens
        for tokens in scenario.contexts:
            if tokens + scenario.context_output_tokens > window:
                return
            name = f"prompts of {tokens:,} tokens"
            pattern = Closed(scenario.context_callers)
            ask = _Ask("context", name, pattern, tokens, scenario.context_output_tokens, scenario.context_seconds)
            await self._measure(ask)

    async def _prefixes(self) -> None:
        scenario = self._scenario
        whole = scenario.prefix_tokens + _OWN_TOKENS
        if whole + scenario.context_output_tokens > self._service.card.context_window_tokens:
            return
        for prefix, name in (
            (0, "prompts without a shared prefix"),
            (scenario.prefix_tokens, "prompts with a shared prefix"),
        ):
            pattern = Closed(scenario.context_callers)
            output, seconds = scenario.context_output_tokens, scenario.context_seconds
            await self._measure(_Ask("prefix", name, pattern, whole, output, seconds, prefix))

    async def _burst(self, peak: float) -> None:
        scenario = self._scenario
        loads = [stage for stage in self.stages if stage.kind == "concurrency"]
        size = scenario.burst_size or 2 * max((stage.concurrency or 1 for stage in loads), default=8)
        rate = max(_MIN_RATE, peak * min(scenario.rate_shares, default=0.5) / 2)
        pattern = Open(rate, size, scenario.burst_every_seconds)
        seconds = scenario.bursts * scenario.burst_every_seconds
        name = f"bursts of {size} calls"
        await self._measure(_Ask("burst", name, pattern, scenario.prompt_tokens, scenario.output_tokens, seconds))

    async def _closed(self, kind: Kind, name: str, callers: int, seconds: float) -> None:
        scenario = self._scenario
        await self._measure(_Ask(kind, name, Closed(callers), scenario.prompt_tokens, scenario.output_tokens, seconds))

    async def _open(self, kind: Kind, name: str, rate: float, seconds: float) -> None:
        scenario = self._scenario
        pattern = Open(max(_MIN_RATE, rate))
        await self._measure(_Ask(kind, name, pattern, scenario.prompt_tokens, scenario.output_tokens, seconds))

    async def _measure(self, ask: _Ask) -> None:
        """Measure one stage. If it is interrupted, keep a part of it."""
        service = self._service
        workload = self._workload(ask.prompt_tokens, ask.output_tokens, ask.prefix_tokens)
        # Each stage has its own seed, so that none finds another one's prompts in the prefix cache.
        least = 2 * ask.pattern.callers if isinstance(ask.pattern, Closed) else 0
        options = LoadOptions(
            ask.seconds, self._scenario.warm_up_seconds, _DRAIN_SECONDS, seed=1 + len(self.stages), min_calls=least
        )
        load = measure.prepare(service.clients, service.prompts, ask.pattern, workload, options)
        watch = Watch(service.metrics_url)
        self._show(ask.name, load)
        try:
            await _beside(watch.run, lambda: measure.carry_out(load, service.front_end))
            await watch.sample()
        finally:
            if load.records:
                stage = stage_of(ask.kind, ask.name, load, self._objectives, watch.seen())
                self.stages.append(stage)


async def _beside(helper: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]]) -> None:
    """Run the helper while the work runs."""
    task = asyncio.ensure_future(helper())
    try:
        await work()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
