"""Compute how far published figures of one and the same setting differ: no model without the source does better."""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock_bench.capacity.acceptance import load_acceptance

if TYPE_CHECKING:
    from penstock_bench.capacity.published import Run, Seen
    from penstock_bench.capacity.roofline import Assumptions

_LOW = "prose"
"""Name of the list of accepted drafts that is compared with the default list, `coding`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two published figures, in output tokens per second, of runs that the model cannot tell apart."""

    setting: str
    first: tuple[str, float]
    second: tuple[str, float]

    @property
    def difference(self) -> float:
        """Return by what share the larger figure is above the smaller one."""
        figures = (self.first[1], self.second[1])
        return max(figures) / min(figures) - 1

    @property
    def floor(self) -> float:
        """Return the larger of the two errors of the best figure for both: their geometric mean."""
        return math.sqrt(1 + self.difference) - 1


def pairs(runs: Sequence[Run], path: Path) -> list[Pair]:
    """Return all pairs: rows of two groups with one setting, and the file's `repeat` tables."""
    found = [
        Pair(_setting(one), (_who(one), one.published), (_who(other), other.published))
        for number, one in enumerate(runs)
        for other in runs[number + 1 :]
        if _setting(one) == _setting(other) and one.setup == other.setup
    ]
    repeats = tomllib.loads(path.read_text(encoding="utf-8")).get("repeat", [])
    return found + [
        Pair(
            f"{one['setting']}, {one['concurrency']} at once",
            *((f"[{name}]({one['source']})", figure) for name, figure in one["output_tokens_per_second"].items()),
        )
        for one in repeats
    ]


def _setting(run: Run) -> str:
    return f"{run.name.replace(f', {run.engine}', '')}, {run.concurrency:,} at once"


def _who(run: Run) -> str:
    return f"[{run.engine}]({run.source})"


def own_factor(seen: Sequence[Seen]) -> list[Seen]:
    """Return the runs with the model's figures multiplied by the median factor of each run's own group."""
    groups: dict[int, list[Seen]] = {}
    for one in seen:
        groups.setdefault(one.run.group, []).append(one)
    factors = {
        number: statistics.median(one.run.published / one.planned for one in group) for number, group in groups.items()
    }
    return [replace(one, planned=one.planned * factors[one.run.group]) for one in seen]


def acceptance_ratios(runs: Sequence[Run], assumed: Assumptions) -> list[float]:
    """Return, for each run with drafts, the model's figure with the list `coding` over that with `prose`."""
    from penstock_bench.capacity.published import planned

    low = replace(assumed, acceptance=load_acceptance()[_LOW].shares)
    return [
        planned(run, assumed).output_tokens_per_second(run.mix) / planned(run, low).output_tokens_per_second(run.mix)
        for run in runs
        if run.setup.drafted
    ]


def lines(runs: Sequence[Run], assumed: Assumptions, path: Path) -> Iterator[str]:
    """Return the page's part, in Markdown."""
    found = pairs(runs, path)
    yield "| setting | one figure, tok/s | the other, tok/s | difference | smallest possible error |"
    yield "|---|---|---|---|---|"
    for one in found:
        (first, low), (second, high) = one.first, one.second
        figures = f"{low:,.0f} ({first}) | {high:,.0f} ({second})"
        yield f"| {one.setting} | {figures} | {one.difference:.1%} | {one.floor:.1%} |"
    floors = [one.floor for one in found]
    yield f"| **median of {len(found)}** | | | | {statistics.median(floors):.1%} |"
    yield f"| **largest** | | | | {max(floors):.1%} |"
    held_out = [run for run in runs if not run.fitted]
    ratios = acceptance_ratios(held_out, assumed)
    middle = statistics.median(ratios)
    yield ""
    yield (
        f"{len(ratios)} of the {len(held_out)} runs held out use drafts, and no source states how many were accepted. "
        f"With the list `coding`, the plan is {middle:.2f} times as fast (median of these runs) as with `{_LOW}`. A "
        f"figure in the middle is then up to {math.sqrt(middle) - 1:.0%} away from either."
    )
