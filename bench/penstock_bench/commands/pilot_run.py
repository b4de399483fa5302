"""Run one pilot: connect, find out what can be observed, run the stages, and show progress."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from penstock.cli.failures import ended
from penstock_bench.commands.bench_service import connected
from penstock_bench.commands.progress import line

if TYPE_CHECKING:
    from pathlib import Path

    from penstock_bench.load.measure import Load
    from penstock_bench.load.statistics import Objectives
    from penstock_bench.pilot.results import Experts, Result
    from penstock_bench.pilot.scenario import Scenario
    from penstock_bench.pilot.sequence import Pilot
    from penstock_client import ModelCard
    from rich.console import Console

_TERMINAL_SECONDS = 0.25
_ASK_SECONDS = 10.0


class PilotRun:
    """One pilot. It has a result to write whenever it ends."""

    def __init__(self, scenario: Scenario, objectives: Objectives, quick: bool, notes: Console) -> None:
        self._scenario, self._objectives, self._quick, self._notes = scenario, objectives, quick, notes
        self._began = time.monotonic()
        self._now: tuple[str, Load | None] = ("starting", None)
        self._card: ModelCard | None = None
        self._machine: dict[str, Any] = {}
        self._pilot: Pilot | None = None
        self._complete = False
        self._not_local: str | None = None
        self._not_scraped: str | None = "no endpoint was given (--metrics)"
        self._cache: dict[str, int | None] = {}
        self._experts: Experts | None = None
        self._no_experts: str | None = "the pilot ended before it was asked for"

    def measure(self, target: str, tls: bool | Path | None, metrics: str | None, pid: int | None) -> int:
        """Measure. Return the exit code, which is not 0 if Ctrl-C or a failure ended it early."""
        return ended(self._measure(target, tls, metrics, pid), target, tls)

    async def _measure(self, target: str, tls: bool | Path | None, metrics: str | None, pid: int | None) -> None:
        from penstock_bench.commands.expert_load import asking
        from penstock_bench.load.machine import client_machine
        from penstock_bench.pilot import experts
        from penstock_bench.pilot.sequence import Pilot, Service

        self._machine = client_machine()
        async with AsyncExitStack() as stack:
            there = await stack.enter_async_context(connected(target, tls, 1, pid))
            self._card, self._not_local = there.card, there.not_local
            if there.not_local is None:
                self._machine["gpus"] = await asyncio.to_thread(_gpus)
            service = Service(there.clients, there.card, there.prompts, there.front_end, metrics)
            await self._scrape(metrics)
            self._pilot = Pilot(service, self._scenario, self._objectives, self._show)
            showing = asyncio.create_task(self._keep_showing())
            stack.callback(showing.cancel)
            await self._pilot.run()
            ask = await stack.enter_async_context(asking(target, tls, _ASK_SECONDS))
            seconds = time.monotonic() - self._began
            self._experts, self._no_experts = await experts.observe(ask, seconds)
            self._complete = True

    async def _scrape(self, url: str | None) -> None:
        from penstock_bench.pilot.scrape import NotSeen, scrape

        if url is None:
            return
        try:
            found = await scrape(url)
        except NotSeen as error:
            raise typer.BadParameter(str(error), param_hint="--metrics") from None
        self._not_scraped = None
        capacity = found.values.get("penstock_sequences_capacity")
        self._cache = {
            "kv_cache_tokens": found.whole("kv_cache_size_tokens"),
            "cache_block_tokens": found.whole("block_size"),
            "capacity_sequences": None if capacity is None else round(capacity),
        }

    def _show(self, name: str, load: Load | None) -> None:
        if not self._notes.is_terminal and name.partition(":")[0] != self._now[0].partition(":")[0]:
            self._notes.out(f"{time.monotonic() - self._began:6.1f} s  {name.partition(':')[0]} ...", highlight=False)
        self._now = (name, load)

    async def _keep_showing(self) -> None:
        if not self._notes.is_terminal:
            return
        with self._notes.status("starting") as status:
            while True:
                name, load = self._now
                minutes = (time.monotonic() - self._began) / 60
                status.update(f"{minutes:.1f} min  {name}" + (f": {line(load)}" if load is not None else ""))
                await asyncio.sleep(_TERMINAL_SECONDS)

    def result(self, target: str) -> Result | None:
        """Return the result without prices; None if nothing was measured."""
        from penstock_bench.load.machine import model_facts
        from penstock_bench.pilot.results import Prices, Result, points_of

        if self._pilot is None or self._card is None or not (self._pilot.stages or self._pilot.asked.rows):
            return None
        stages, asked = tuple(self._pilot.stages), self._pilot.asked
        return Result(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(["penstock", *sys.argv[1:]]),
            quick=self._quick,
            complete=self._complete,
            target=target,
            seconds=time.monotonic() - self._began,
            client_machine=self._machine,
            processes_not_seen=self._not_local,
            metrics_not_seen=self._not_scraped,
            model=self._card.model,
            served=model_facts(self._card),
            objectives_seconds=self._objectives.stated,
            **self._cache,
            stages=stages,
            knee=self._pilot.knee,
            questions=asked.about,
            answers=asked.answers(),
            answers_complete=asked.complete,
            experts=self._experts,
            experts_not_seen=self._no_experts,
            prices=Prices(),
            points=points_of(stages),
        )


def _gpus() -> list[dict[str, Any]]:
    """Return this machine's GPUs as plain values, for the plan; empty where nvidia-smi finds none."""
    from dataclasses import asdict

    from penstock_bench.gpu_check.cards import NoGpu, find

    try:
        return [asdict(card) for card in find()]
    except NoGpu:
        return []
