"""The knee and the largest rate that holds an objective, on services whose curves are known."""

from __future__ import annotations

import pytest
from penstock_bench.load.calls import REFUSED
from penstock_bench.load.knee import KNEE, OBJECTIVE, Criteria, Point, Search, point_of
from penstock_bench.load.statistics import Objectives

from tests.unit.load.simulated import Loads, Scripted

SERVICES = [
    Scripted(slots=8, steps=64, step_seconds=0.02),
    Scripted(slots=32, steps=100, step_seconds=0.01),
    Scripted(slots=1, steps=10, step_seconds=0.05),
    Scripted(slots=200, steps=20, step_seconds=0.03),
]


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES, ids=str)
@pytest.mark.parametrize("start_share", [0.01, 0.3, 4.0])
async def test_the_knee_is_within_5_percent_of_the_known_capacity(service: Scripted, start_share: float) -> None:
    for seed in range(5):
        search = Search(Loads(service, seed=seed).measure, Criteria())
        await search.run(start_share * service.capacity)
        assert search.knee == pytest.approx(service.capacity, rel=0.05), seed
        bracket = search.bracket(KNEE)
        assert bracket.rate == pytest.approx(service.capacity, rel=0.1), seed


async def test_an_objective_holds_up_to_the_rate_where_waits_reach_it() -> None:
    """An end-to-end limit just above the service time forbids nearly all waiting; the knee is the same as without."""
    service = Scripted(slots=8, steps=64, step_seconds=0.02)
    objectives = Objectives(end_to_end=service.steps * service.step_seconds * 1.1)
    loads = Loads(service, objectives)
    search = Search(loads.measure, Criteria(objectives))
    await search.run(service.capacity / 10)
    objective = search.bracket(OBJECTIVE)
    assert objective.holds is not None
    assert objective.fails is not None
    assert search.knee == pytest.approx(service.capacity, rel=0.05)
    assert objective.fails <= objective.holds * 1.05
    assert objective.holds < 0.95 * service.capacity
    # With many more calls, the share that keeps the limit crosses 95 % about where the search said.
    exact = Loads(service, objectives, calls=20_000, seed=99)
    below, above = [
        (await exact.measure(rate, 0)).kept_share for rate in (objective.holds * 0.85, objective.fails * 1.15)
    ]
    assert below is not None
    assert above is not None
    assert below > 0.95 > above


async def test_a_rate_that_no_service_holds_ends_without_a_knee() -> None:
    service = Scripted(slots=1, steps=10, step_seconds=0.05)
    objectives = Objectives(first_token=1e-6)
    search = Search(Loads(service, objectives, calls=50).measure, Criteria(objectives, max_points=30))
    await search.run(1.0)
    assert search.bracket(OBJECTIVE).holds is None
    assert search.knee is None or search.bracket(OBJECTIVE).rate is None
    assert len(search.points) <= 30


async def test_the_search_never_measures_more_points_than_allowed() -> None:
    search = Search(Loads(SERVICES[0], calls=100).measure, Criteria(tolerance=1e-9, max_points=7))
    await search.run(1.0)
    assert len(search.points) == 7


async def test_an_interrupted_search_keeps_what_it_knows() -> None:
    loads = Loads(SERVICES[0])

    async def measure(rate: float, number: int) -> Point:
        if number == 3:
            raise KeyboardInterrupt
        return await loads.measure(rate, number)

    search = Search(measure, Criteria())
    with pytest.raises(KeyboardInterrupt):
        await search.run(1.0)
    assert [point.calls_per_second for point in search.points] == [1.0, 2.0, 4.0]
    assert search.bracket(KNEE).holds == 4.0


def test_refused_calls_do_not_hold() -> None:
    service = SERVICES[0]
    records = service.serve([n / service.capacity * 2 for n in range(400)])
    for record in records[::10]:
        record.outcome, record.ended = REFUSED, record.intended
    seconds = 400 / service.capacity * 2
    point = point_of(service.capacity / 2, records, Loads(service).summary(records, seconds))
    assert point.unserved_share == pytest.approx(0.1)
    assert point.growth_share < 0.05
    assert not point.keeps_up(Criteria(max_growth=1.0))
