"""Search for the knee on a running service: run its loads, and repeat the search until the results agree."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil
from penstock_bench.load import intervals, measure, report
from penstock_bench.load.calls import OK
from penstock_bench.load.intervals import REPETITIONS, Estimate
from penstock_bench.load.knee import KNEE, OBJECTIVE, Criteria, Point, Search, lengths, point_of
from penstock_bench.load.measure import Closed, Load, Open
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.repeat import Repeat
from penstock_bench.load.run import LoadOptions
from penstock_bench.load.workload import Workload
from penstock_client import AsyncClient

_SINGLE_CALLS = 3
_SINGLE_SECONDS = 1.0
_RESTART_SHARE = 0.7
"""Start of the next search, as a share of the knee that the last one found."""

KNEE_RATE, OBJECTIVE_RATE = "knee_calls_per_second", "objective_calls_per_second"


class NoCallEnded(Exception):
    """Report an idle service that ended no call well; the message has the outcomes."""


@dataclass(frozen=True, slots=True)
class Loads:
    """Settings of each point: the smallest number of calls in a window (`calls`) and the shortest window."""

    clients: Sequence[AsyncClient]
    prompts: Prompts
    front_end: psutil.Process | None
    workload: Workload
    options: LoadOptions
    calls: int
    min_seconds: float = 0.0


Show = Callable[[Load, str], Awaitable[None]]
"""A function that runs the load and shows its progress."""


@dataclass(slots=True)
class KneeSearch:
    """Running or finished searches; measured points stay valid when they are interrupted."""

    loads: Loads
    criteria: Criteria
    carry_out: Show
    searches: list[Search] = field(default_factory=list)
    call_seconds: float | None = None
    """Seconds of a call on the idle service."""
    warnings: dict[str, None] = field(default_factory=dict)

    async def run(self, start: float | None, repeat: Repeat) -> None:
        """Search until `repeat` has enough. Raises NoCallEnded and PenstockError."""
        self.call_seconds = await self._single_call_seconds()
        rate = start or 1 / self.call_seconds
        while not repeat.enough(len(self.searches), self.intervals()):
            search = Search(self._measure, self.criteria)
            self.searches.append(search)
            await search.run(rate)
            rate = _RESTART_SHARE * search.knee if search.knee else rate

    def intervals(self) -> dict[str, Estimate]:
        """Return the intervals over the finished searches that found the rate; empty for fewer than two."""
        if not intervals.available():
            return {}
        found = {KNEE_RATE: self.knees, OBJECTIVE_RATE: self.objective_rates}
        return {
            name: one for name, rates in found.items() if (one := intervals.estimate(rates, REPETITIONS)) is not None
        }

    @property
    def knees(self) -> list[float]:
        """Return the knees of the finished searches, in calls per second."""
        return [search.knee for search in self.searches if search.knee is not None]

    @property
    def objective_rates(self) -> list[float]:
        """Return the largest rates that kept the objectives."""
        if not self.criteria.objectives.stated:
            return []
        brackets = [search.bracket(OBJECTIVE) for search in self.searches]
        return [one.holds for one in brackets if one.holds is not None and one.fails is not None]

    @property
    def points(self) -> list[Point]:
        """Return all measured points of all searches."""
        return [point for search in self.searches for point in search.points]

    async def _single_call_seconds(self) -> float:
        options = replace(self.loads.options, seconds=_SINGLE_SECONDS, warm_up_seconds=0.0, min_calls=_SINGLE_CALLS)
        load = self._prepare(Closed(1), options)
        await self.carry_out(load, "calls one by one")
        ended = [one.ended - one.sent for one in load.records if one.outcome == OK and one.ended is not None]
        if not ended:
            outcomes = ", ".join(f"{name} {count}" for name, count in load.live.by_outcome.items()) or "none ended"
            raise NoCallEnded(f"no call of this workload ends well on the idle service: {outcomes}")
        return max(1e-6, sorted(ended)[len(ended) // 2])

    async def _measure(self, rate: float, number: int) -> Point:
        warm_up, seconds = lengths(rate, self.loads.calls, self.call_seconds or 0.0, self.loads.min_seconds)
        name = f"{self.loads.options.seed} {len(self.searches)} {number}"
        options = replace(
            self.loads.options, seconds=seconds, warm_up_seconds=warm_up, seed=random.Random(name).randrange(2**31)
        )
        load = self._prepare(Open(rate, fixed_count=True), options)
        await self.carry_out(load, f"search {len(self.searches)}, point {number + 1}: {rate:.3g} calls/s")
        summary = load.summary(self.criteria.objectives)
        self.warnings.update(dict.fromkeys(report.generator_warnings(load, summary)))
        return point_of(rate, load.every, summary)

    def _prepare(self, pattern: Closed | Open, options: LoadOptions) -> Load:
        loads = self.loads
        return measure.prepare(loads.clients, loads.prompts, pattern, loads.workload, options)

    def as_json(self) -> dict[str, Any]:
        """Return all results as plain values. Rates are in calls per second; None: not found."""
        criteria, found = self.criteria, self.intervals()
        each = [
            {
                "knee_calls_per_second": search.knee,
                "knee_bracket": asdict(search.bracket(KNEE)),
                "objective_bracket": asdict(search.bracket(OBJECTIVE)) if criteria.objectives.stated else None,
                "points": [{**asdict(point), **point.judged(criteria)} for point in search.points],
            }
            for search in self.searches
        ]
        made: dict[str, Any] = {
            "load": {
                **report.workload_facts(self.loads.workload),
                "exact": self.loads.options.exact,
                "temperature": self.loads.options.temperature,
                "objectives_seconds": criteria.objectives.stated,
                "share": criteria.share,
            },
            "knee_calls_per_second": mean(self.knees),
            "objective_calls_per_second": mean(self.objective_rates),
            "idle_call_seconds": self.call_seconds,
            "criteria": {name: value for name, value in asdict(criteria).items() if name != "objectives"},
            "intervals": report.intervals_as_json(found),
            "warnings": list(self.warnings),
            "searches": each,
        }
        plain: dict[str, Any] = report.without_nan(made)
        return plain


def mean(values: Sequence[float]) -> float | None:
    """Return None for no values."""
    return sum(values) / len(values) if values else None
