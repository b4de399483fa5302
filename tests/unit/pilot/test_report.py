"""The report's parts: axes, plots, words, HTML and Markdown."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from penstock_bench.pilot.axis import Axis, short
from penstock_bench.pilot.formatting import seconds, usd
from penstock_bench.pilot.render import to_html, to_markdown
from penstock_bench.pilot.report import document
from penstock_bench.pilot.results import Prices, Result, read
from penstock_bench.pilot.svg import Bar, Mark, Series, bars, heat, lines

from tests.unit.pilot.made import experts, result, with_answers, with_stage


def test_axes_have_round_ends_and_few_ticks() -> None:
    axis = Axis.around([3.0, 97.0], 0.0, 100.0)
    assert axis.ticks() == [0, 25, 50, 75, 100]
    assert axis.at(50) == 50
    assert axis.at(-5) == 0
    assert Axis.around([], 0, 1).ticks()[0] == 0
    assert Axis.around([5.0, 5.0], 0, 1, zero=False).high > 5


def test_log_axes_are_of_decades() -> None:
    axis = Axis.around([0.03, 0.0, 4.0], 0.0, 100.0, log=True)
    assert (axis.low, axis.high) == (0.02, 5.0)
    assert axis.ticks() == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert axis.at(0.02) == 0
    assert axis.at(5.0) == pytest.approx(100)
    assert Axis.around([7.0], 0, 1, log=True).high > 7
    wide = Axis.around([1.0, 1e6], 0, 1, log=True)
    assert wide.ticks() == [10.0**n for n in range(7)]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.02, "0.02"), (1500, "1,500"), (32768, "32.8k"), (2e6, "2M"), (951666, "952k")]
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (2.4, "$2.40"), (0.1, "$0.10"), (0.0261, "$0.0261"), (1234.5, "$1,234"), (0.00001, "$1.0e-05")],
)
def test_money_in_words(value: float | None, text: str) -> None:
    assert usd(value) == text


def test_seconds_in_words() -> None:
    assert [seconds(one) for one in (None, 0.0844, 1.0)] == ["lost", "84 ms", "1.00 s"]


def test_plots_are_well_formed_and_escape_what_they_are_told() -> None:
    drawn = [
        lines(
            "a<b",
            [Series("x&y", [(1, 2), (3, 4)], 1, labels=["<p>"], spans=[(1, 3)])],
            "u",
            "v",
            marks=[Mark(3, "<m>")],
        ),
        lines("log", [Series("", [(1, 0.01), (1000, 4)], 2, "dots")], "u", "v", x_log=True, y_log=True),
        lines("empty", [Series("", [], 1)], "u", "v"),
        bars("bars", [[Bar("<a>", 1.0, "<one>", 1), Bar("b", 0.0, "none", 2)], [Bar("c", 3.0, "three", 1)]]),
        heat("heat", [("layer <0>", [0.0, 1.0, 9.0]), ("layer 1", [1.0, 1.0, 1.0])], 2.5),
    ]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        numbers = re.findall(r' (?:x|y|cx|cy|width|height)\d?="([^"]+)"', svg)
        assert all(float(number) >= 0 for number in numbers), svg


def test_every_section_is_in_both_files() -> None:
    made = document(result())
    page, text = to_html(made), to_markdown(made, "pilot.html")
    for words in (
        *("Throughput against latency", "Memory limit", "Cost per million tokens", "Thinking budgets", "Bursts"),
        *("Expert balance", "Speculative decoding", "Prefix cache", "Soak", "All checks", "Method"),
    ):
        assert f"{words}</h2>" in page
        assert f"## {words}\n" in text
    assert page.count("<svg") >= 14
    assert "made &amp; up" in page
    assert "a &lt;CPU&gt;" in page
    assert "None was raised." in page
    assert "None was raised." in text


def test_nothing_comes_from_elsewhere() -> None:
    page = to_html(document(result()))
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", page)


def test_flags_have_evidence_and_advice_in_both_files() -> None:
    made = document(with_answers("24", over_budget=2))
    page, text = to_html(made), to_markdown(made, "pilot.html")
    for words in ("Thoughts exceed their budget", "2 in THINKING 24", "report it as a bug"):
        assert words in page
        assert words in text
    assert 'id="flag-budget_overshoot"' in page


def test_the_summary_says_what_it_costs_and_where_it_ends() -> None:
    said = " ".join(document(result()).summary)
    assert "At 16 callers it gives 300 output tokens a second" in said
    assert "as much as hosted, even when always full" in said
    assert "AUTO costs least" in said
    cheap = " ".join(document(result(prices=Prices(hour=0.36, hosted_input=0.4, hosted_output=2.4))).summary)
    assert "when it is full 9.7% of the time" in cheap
    late = " ".join(document(with_stage("16", goodput_share=0.5)).summary)
    assert "At 1 caller it gives" in late
    assert "keep the objectives for 50% of calls only" in late


@pytest.mark.parametrize(
    "poor",
    [
        result({}, {}, experts=None, experts_not_seen="UNIMPLEMENTED", points=()),
        result(prices=Prices(), kv_cache_tokens=None, metrics_not_seen="no endpoint"),
        with_stage("16", memory_gib={}, engine=None, tokens_by_second=()),
        result(experts=experts(*[(tuple(range(1, 257)), 0.2)] * 60)),
        result(complete=False, answers_complete=False),
    ],
)
def test_whatever_is_missing_there_is_a_report(poor: Result) -> None:
    made = document(poor)
    assert "</html>" in to_html(made)
    assert to_markdown(made, "x.html").startswith("# Pilot of")


HOSTILE = "<script>alert('x')</script> ![seen](http://example.invalid/a.png) a|b"


def hostile() -> Result:
    """Return a result in which every text that comes from the service or the machine is hostile."""
    made = result()
    served = {**made.served, "name": HOSTILE, "engine_version": HOSTILE, "architecture": HOSTILE}
    served["profile"] = [{"name": HOSTILE, "enabled": True, "value": HOSTILE, "reason": HOSTILE}]
    machine = {**made.client_machine, "cpu": HOSTILE}
    return made.model_copy(
        update={"model": HOSTILE, "served": served, "client_machine": machine, "questions": HOSTILE, "command": HOSTILE}
    )


def test_should_escape_what_comes_from_outside_in_both_files() -> None:
    made = document(hostile())
    page, text = to_html(made), to_markdown(made, "pilot.html")
    assert page.count("&lt;script&gt;alert(") >= 6
    assert "<script" not in page
    assert text.count("&lt;script>alert(") >= 6
    assert "<script" not in text
    assert "![seen](" not in text
    assert not re.search(r"(?<!\\)\[(?!pilot\.html\])", text)
    cells = [line for line in text.splitlines() if line.startswith("|") and "alert(" in line]
    assert len(cells) >= 3
    assert not any("a|b" in line for line in cells)


def test_should_make_the_committed_report_from_its_result() -> None:
    """Keep docs/pilot current: `penstock pilot --report docs/pilot/pilot.json` makes it again."""
    folder = Path(__file__).parents[3] / "docs/pilot"
    made = document(read(folder / "pilot.json"))
    assert to_html(made) == (folder / "pilot.html").read_text(encoding="utf-8")
    assert to_markdown(made, "pilot.html") == (folder / "pilot.md").read_text(encoding="utf-8")
