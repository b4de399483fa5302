"""The pilot's report in a real browser: plots and red flags are there to be seen, in light, in dark, and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from penstock_bench.pilot.render import to_html
from penstock_bench.pilot.report import document

from tests.browser.chromium import complaints, measure
from tests.unit.pilot.made import experts, result
from tests.unit.pilot.test_planned import as_planned, compared

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("chromium")
COMMITTED = ROOT / "docs/pilot/pilot.html"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: every plot, and a red flag."""
    page = tmp_path_factory.mktemp("report") / "pilot.html"
    page.write_text(to_html(document(result(experts=experts(((70, 10, 10, 10), 0.7))))), encoding="utf-8")
    return page


def check(seen: dict[str, Any], plots: int) -> None:
    assert len(seen["plots"]) >= plots
    for plot in seen["plots"]:
        assert plot["width"] > 250, plot
        assert plot["marks"] > 0, plot
        assert plot["seen"] >= 0.5 * plot["marks"], plot
        assert plot["outside"] == [], plot
        assert plot["overprinted"] == [], plot
        assert all("rgb" in colour for colour in plot["colours"]), plot
    assert len(seen["flags"]) == seen["raised"]
    for flag in seen["flags"]:
        assert flag["seen"]
        assert flag["title"] in flag["text"]
        assert "What to do:" in flag["text"]
    assert seen["resources"] == []
    assert seen["content_width"] <= seen["width"]


def test_plots_and_red_flags_are_seen(made: Path, tmp_path: Path) -> None:
    seen = measure(made, tmp_path)
    check(seen, plots=14)
    assert [flag["id"] for flag in seen["flags"]] == ["flag-expert_imbalance"]
    assert {"Red flags", "Throughput against latency", "Cost per million tokens"} <= set(seen["headings"])
    assert min(plot["smallest_text"] for plot in seen["plots"]) > 9


def test_dark_is_dark_and_has_other_colours(made: Path, tmp_path: Path) -> None:
    light, dark = measure(made, tmp_path), measure(made, tmp_path, dark=True)
    check(dark, plots=14)
    brightness = [sum(map(int, seen["background"][4:-1].split(","))) for seen in (light, dark)]
    assert brightness[0] > 600
    assert brightness[1] < 150
    assert light["plots"][0]["colours"] != dark["plots"][0]["colours"]


def test_a_narrow_window_shows_it_all(made: Path, tmp_path: Path) -> None:
    check(measure(made, tmp_path, width=500), plots=14)


def test_the_browser_has_nothing_to_complain_of(made: Path, tmp_path: Path) -> None:
    assert complaints(made, tmp_path) == []


@pytest.mark.parametrize("width", [500, 1200])
def test_the_plan_is_seen_beside_what_was_measured(tmp_path: Path, width: int) -> None:
    pilot = as_planned(0.9)
    page = tmp_path / "planned.html"
    page.write_text(to_html(document(pilot.model_copy(update={"plan": compared(pilot)}))), encoding="utf-8")
    seen = measure(page, tmp_path, width=width)
    check(seen, plots=12)
    assert "Plan and measurement" in seen["headings"]
    titles = {plot["title"] for plot in seen["plots"]}
    assert {"Measured figures over planned ones", "Measured, and predicted from all other stages"} <= titles


def test_the_committed_report_shows_its_plots_and_flags(tmp_path: Path) -> None:
    seen = measure(COMMITTED, tmp_path)
    check(seen, plots=13)
    assert {"Pilot of penstock-demo", "Plan and measurement"} <= set(seen["headings"])
