"""Find the knee of a service, and the largest rate that keeps an objective, by bisection over the arrival rate.

Below the knee, a service ends as many calls as arrive. Above it, the number of running calls grows while the load
lasts. Each point is one open load with a fixed number of arrivals (a Poisson process given its count), so that a random
count is not mistaken for overload. A point holds if

- the running calls grew over the window by at most `max_growth` of the calls that arrived in it, not counting random
  variation (three standard deviations of a Poisson count, at both ends), and
- at most `max_unserved` of the calls were refused, failed or lost; and for the objective's rate also
- at least `share` of the calls kept all stated objectives.

The rate is doubled from the start until one fails (or halved until one holds). Then the bracket is divided at its
geometric mean until its ends differ by at most `tolerance`. The knee is the largest number of calls per second that any
point ended: where the line "as many ended as arrived" meets the level that the service reaches under more load. The
bracket shows the same by arrivals, but a single window near the capacity holds or fails by chance.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from penstock_bench.load.calls import OK, REFUSED, Record
from penstock_bench.load.statistics import LoadSummary, Objectives

_MIN_RATE = 0.001
_WINDOW_CALLS, _WARM_UP_CALLS = 20, 3
"""Lengths of the window and of its warm-up, in durations of one call, so that the running calls have settled."""
KNEE, OBJECTIVE = "knee", "objective"


@dataclass(frozen=True, slots=True)
class Criteria:
    """The criteria that a rate must meet; shares are in [0, 1]."""

    objectives: Objectives = field(default_factory=Objectives)
    share: float = 0.95
    max_growth: float = 0.02
    max_unserved: float = 0.01
    tolerance: float = 0.05
    max_points: int = 24


@dataclass(frozen=True, slots=True)
class Point:
    """One rate with its results: calls per second, seconds, and shares of the calls that arrived in the window."""

    calls_per_second: float
    served_calls_per_second: float
    output_tokens_per_second: float
    calls: int
    seconds: float
    growth_share: float
    chance_share: float
    """Return the random variation of the number of running calls without overload."""
    unserved_share: float
    kept_share: float | None
    first_token_p50: float | None
    first_token_p95: float | None
    first_answer_p95: float | None
    end_to_end_p50: float | None
    end_to_end_p95: float | None

    def keeps_up(self, criteria: Criteria) -> bool:
        """Return whether the service ended as many calls as arrived."""
        grown = self.growth_share > criteria.max_growth + self.chance_share
        return not grown and self.unserved_share <= criteria.max_unserved

    def keeps_objectives(self, criteria: Criteria) -> bool:
        """Return whether it also kept the objectives for the wanted share of calls."""
        return self.keeps_up(criteria) and self.kept_share is not None and self.kept_share >= criteria.share

    def judged(self, criteria: Criteria) -> dict[str, bool | None]:
        """Return both by name; None for objectives that are not stated."""
        stated = bool(criteria.objectives.stated)
        return {
            "keeps_up": self.keeps_up(criteria),
            "keeps_objectives": self.keeps_objectives(criteria) if stated else None,
        }


def point_of(calls_per_second: float, every: Sequence[Record], summary: LoadSummary) -> Point:
    """Return the point of a load. `every` has all its calls, including those of the warm-up."""
    seconds = summary.seconds
    admitted = [record for record in every if record.outcome != REFUSED]
    before, after = _under_way(admitted, 0.0), _under_way(admitted, seconds)
    unserved = summary.calls - summary.outcomes.get(OK, 0)
    calls = max(1, summary.calls)
    return Point(
        calls_per_second=calls_per_second,
        served_calls_per_second=summary.calls_per_second,
        output_tokens_per_second=summary.output_tokens_per_second,
        calls=summary.calls,
        seconds=seconds,
        growth_share=(after - before) / calls,
        chance_share=3 * math.sqrt(2 * before) / calls,
        unserved_share=unserved / calls,
        kept_share=summary.goodput_share,
        first_token_p50=summary.first_token.p50,
        first_token_p95=summary.first_token.p95,
        first_answer_p95=summary.first_answer.p95,
        end_to_end_p50=summary.end_to_end.p50,
        end_to_end_p95=summary.end_to_end.p95,
    )


def _under_way(records: Sequence[Record], moment: float) -> int:
    """Count the calls that were meant to be sent before the moment and had not ended at it."""
    return sum(one.intended < moment and (one.ended is None or one.ended > moment) for one in records)


@dataclass(frozen=True, slots=True)
class Bracket:
    """A bracket: the largest rate that held, and the smallest one above it that did not. None: not found."""

    holds: float | None
    fails: float | None

    @property
    def rate(self) -> float | None:
        """Return the geometric mean; None until both ends are known."""
        return None if self.holds is None or self.fails is None else math.sqrt(self.holds * self.fails)


def lengths(rate: float, calls: int, call_seconds: float, min_seconds: float = 0.0) -> tuple[float, float]:
    """Return the seconds of warm-up and window that a point needs.

    Args:
        rate: Calls per second.
        calls: Fewest calls in the window.
        call_seconds: Duration of a call on an idle service.
        min_seconds: Shortest window.

    """
    window = max(calls / rate, _WINDOW_CALLS * call_seconds, min_seconds)
    return max(window / 4, _WARM_UP_CALLS * call_seconds), window


Measure = Callable[[float, int], Awaitable[Point]]
"""A function that puts a load of `rate` calls per second on the service. `number` is the point's, from 0."""


@dataclass(slots=True)
class Search:
    """A running or finished search; `points` stay valid when it is interrupted."""

    measure: Measure
    criteria: Criteria
    points: list[Point] = field(default_factory=list)

    async def run(self, start: float) -> None:
        """Find both rates from a first guess. Raises what `measure` raises."""
        if self.criteria.objectives.stated:
            await self._bisect(OBJECTIVE, start)
        await self._bisect(KNEE, start)

    def bracket(self, what: str) -> Bracket:
        """Return what is known now of the `knee` or the `objective`."""
        held = Point.keeps_up if what == KNEE else Point.keeps_objectives
        fails = min((p.calls_per_second for p in self.points if not held(p, self.criteria)), default=None)
        holds = [p.calls_per_second for p in self.points if held(p, self.criteria)]
        below = [rate for rate in holds if fails is None or rate < fails]
        return Bracket(max(below, default=None), fails)

    @property
    def knee(self) -> float | None:
        """Return the knee in calls per second; None until a point below and one above it are known."""
        if self.bracket(KNEE).rate is None:
            return None
        return max(point.served_calls_per_second for point in self.points)

    async def _bisect(self, what: str, start: float) -> None:
        while len(self.points) < self.criteria.max_points:
            rate = self._next_rate(self.bracket(what), start)
            if rate is None:
                return
            self.points.append(await self.measure(rate, len(self.points)))

    def _next_rate(self, known: Bracket, start: float) -> float | None:
        if known.holds is None or known.fails is None:
            if known.holds is not None:
                return known.holds * 2
            if known.fails is not None:
                return known.fails / 2 if known.fails / 2 >= _MIN_RATE else None
            return start
        return known.rate if known.fails / known.holds > 1 + self.criteria.tolerance else None
