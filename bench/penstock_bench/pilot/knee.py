"""Convert the searches for the knee to the result."""

from __future__ import annotations

from penstock_bench.load.knee import KNEE, OBJECTIVE, Criteria, Point
from penstock_bench.load.search import KNEE_RATE, KneeSearch, mean
from penstock_bench.pilot.results import Knee, KneePoint


def knee_of(search: KneeSearch) -> Knee | None:
    """Return the result so far; None before any rate was measured. Brackets are of the last search with a point."""
    measured = [one for one in search.searches if one.points]
    if not measured:
        return None
    criteria, last = search.criteria, measured[-1]
    known, objective = last.bracket(KNEE), last.bracket(OBJECTIVE)
    interval = search.intervals().get(KNEE_RATE)
    stated = bool(criteria.objectives.stated)
    return Knee(
        calls_per_second=mean(search.knees),
        interval_95=None if interval is None else (interval.low, interval.high),
        holds=known.holds,
        fails=known.fails,
        objective_holds=objective.holds if stated else None,
        objective_fails=objective.fails if stated else None,
        objective_share=criteria.share,
        points=tuple(_point(point, criteria) for point in search.points),
    )


def _point(point: Point, criteria: Criteria) -> KneePoint:
    same = {name: getattr(point, name) for name in KneePoint.model_fields if hasattr(point, name)}
    return KneePoint(**{**same, **point.judged(criteria)})
