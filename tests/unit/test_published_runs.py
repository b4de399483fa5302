"""The speed model beside published runs: the split, the constants in force, the errors, and the page."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from penstock.engine.sizing.shape import read_shape
from penstock.engine.vllm.cards import CARDS
from penstock_bench.capacity import published, published_floor, published_host
from penstock_bench.capacity.devices import load_devices
from penstock_bench.capacity.knee import FITTED_DEVICES
from penstock_bench.capacity.notes import PUBLISHED_ERRORS
from penstock_bench.capacity.roofline import Assumptions

GROUPS = tomllib.loads(published.RUNS.read_text())["group"]
DOCS = Path(__file__).parents[2] / "docs"
PAGE, GUIDE = DOCS / "maintainers/published-runs.md", DOCS / "how-to/plan.md"
# What the half that was not fitted shows. The goal is a median of 10 %, no error above 25 % below the knee, and every
# range past it. MI300X misses the second, an early engine the third; docs/maintainers/published-runs.md says why.
GOAL_MEDIAN, GOAL_WORST_BELOW_KNEE, WORST_BELOW_KNEE = 0.10, 0.25, 0.47
EARLY = ("vLLM", "https://lambda.ai/inference-models")


@cache
def runs() -> tuple[published.Run, ...]:
    return tuple(published.read_runs(lambda name: read_shape(CARDS[f"Qwen/Qwen3.5-{name}"])))


def held_out() -> list[published.Seen]:
    assumed = published.assumptions(published.shipped())
    return [published.compare_run(run, assumed) for run in runs() if not run.fitted]


def test_groups_are_split_whole_and_both_halves_are_large() -> None:
    named = sorted((one["machine"], one["engine"], one["source"]) for one in GROUPS)
    assert len(set(named)) == len(named)
    fitted = {(run.machine, run.engine, run.source) for run in runs() if run.fitted}
    assert fitted == set(named[::2])
    assert min(sum(run.fitted for run in runs()), sum(not run.fitted for run in runs())) >= 13


def test_every_row_has_a_source_and_says_what_its_source_does_not() -> None:
    for run in runs():
        assert run.source.startswith("https://")
        assert ("acceptance" in run.marks) == (run.setup.drafted > 0)
        assert ("engine" in run.marks) == (not any(letter.isdigit() for letter in run.engine))


def test_a_fit_of_the_fitted_half_gives_the_constants_in_force() -> None:
    assert published.fit([run for run in runs() if run.fitted]) == pytest.approx(published.shipped(), rel=0.01)


def test_the_hosts_time_is_what_servers_with_and_without_async_scheduling_differ_by() -> None:
    overlaps = published_host.read_overlaps(published.RUNS)
    assert min(one.seconds for one in overlaps) > 0
    step, request = published_host.host_seconds(overlaps)
    assert Assumptions().host_seconds == pytest.approx(step, rel=1e-3)
    assert Assumptions().host_sequence_seconds == pytest.approx(request, rel=1e-2)
    measured = {one.source for one in overlaps}
    assert measured.isdisjoint(run.source for run in runs())  # they say nothing of the runs that check the model


def test_the_held_out_half_is_met_as_the_page_says() -> None:
    seen = held_out()
    told = published.summary(seen)
    assert told["median"] <= GOAL_MEDIAN
    assert told["worst_below_knee"] <= WORST_BELOW_KNEE
    assert told["past_knee"] >= 5
    for one in seen:
        low, high = published.bounds(one.planned, one.past_knee, one.run.setup.device)
        assert not one.past_knee or high <= 2.0001 * low, one.run.name
        assert one.in_range or (one.run.engine, one.run.source) == EARLY, one.run.name


def test_all_machines_held_out_but_one_meet_the_goal_below_the_knee() -> None:
    told = published.summary([one for one in held_out() if one.run.machine != "mi300x"])
    assert told["rows"] == 54
    assert told["median"] <= GOAL_MEDIAN
    assert told["worst_below_knee"] <= GOAL_WORST_BELOW_KNEE


def test_the_devices_with_narrow_ranges_are_those_of_the_fitted_half() -> None:
    assert {run.machine for run in runs() if run.fitted} == set(FITTED_DEVICES)
    devices = load_devices()
    (low, high), (near, far) = (published.bounds(100, False, devices[name]) for name in ("mi300x", "mi355x"))
    assert low < near < far < high


def test_the_constants_of_rocm_hold_on_its_devices_only() -> None:
    devices, assumed = load_devices(), Assumptions()
    assert {name for name, device in devices.items() if device.software == "rocm"} == {"mi300x", "mi355x"}
    assert assumed.on(devices["h200"]) == assumed
    on_amd = assumed.on(devices["mi355x"])
    assert on_amd.fixed_seconds(60, True) == pytest.approx(assumed.rocm_fixed * assumed.fixed_seconds(60, True))
    assert on_amd.compute_reached(8) == pytest.approx(assumed.rocm_share * assumed.compute_reached(8))


def test_sglang_runs_as_many_requests_as_its_saturated_runs_show() -> None:
    """Throughput x time per token is the number of requests that decode; a few others wait for their prompts."""
    rows = {
        row["output_tokens_per_second"]: row
        for group in GROUPS
        if "sglang/" in group["source"]
        for row in group["rows"]
    }
    saturated = [
        run for run in runs() if run.fitted and run.concurrency == 1024 and run.running < run.setup.max_sequences
    ]
    assert len(saturated) == 7
    for run in saturated:
        decoding = run.published * rows[run.published]["token_ms"] / 1e3
        assert 0.7 <= decoding / run.running <= 0.85, run.name


def test_the_floor_is_of_settings_that_the_model_cannot_tell_apart() -> None:
    found = published_floor.pairs(runs(), published.RUNS)
    assert len(found) == 20
    differences = {round(one.difference, 3) for one in found}
    # These are of other engines, versions and dates; the others of Qwen3.6 beside Qwen3.5.
    assert {0.03, 0.113, 0.043, 0.287} < differences
    assert max(differences) == 0.287
    for one in found:
        best = (one.first[1] * one.second[1]) ** 0.5
        assert max(abs(best / figure - 1) for figure in (one.first[1], one.second[1])) == pytest.approx(one.floor)
    assert median(one.floor for one in found) < GOAL_MEDIAN


def test_the_factor_of_each_group_leaves_less_than_the_goal() -> None:
    told = published.summary(published_floor.own_factor(held_out()))
    assert told["median"] < 0.04
    assert told["worst_below_knee"] < GOAL_WORST_BELOW_KNEE


def test_the_notes_of_a_plan_tell_each_devices_error() -> None:
    seen = held_out()
    machines = {one.run.machine for one in seen}
    medians = {name: median(abs(one.error) for one in seen if one.run.machine == name) for name in machines}
    assert {name: round(value, 2) for name, value in medians.items()} == PUBLISHED_ERRORS


def test_the_guide_and_the_page_tell_the_figures_of_today() -> None:
    told = published.summary(held_out())
    for page in (GUIDE.read_text(), PAGE.read_text()):
        assert f"{100 * told['median']:.1f} %" in page
    assert f"{len(runs())} published runs" in GUIDE.read_text()
    assert f"| {100 * told['worst_below_knee']:.1f} %;" in PAGE.read_text()
    assert f"| {told['past_knee_in_range']} of {told['past_knee']} |" in PAGE.read_text()


@pytest.mark.full
@pytest.mark.timeout(600)  # it fits the speed model to the published runs
def test_the_page_is_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert page == published.with_table(page, published.table(runs()))
