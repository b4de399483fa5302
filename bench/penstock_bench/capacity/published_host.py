"""Compute the time for which devices wait for the host in a step, where the engine does not overlap the two.

Source: published measurements of one server with and without asynchronous scheduling, in published-runs.toml.
"""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Overlap:
    """One server with and without asynchronous scheduling: seconds of a step of `concurrency` requests."""

    server: str
    source: str
    concurrency: int
    without: float
    overlapped: float

    @property
    def seconds(self) -> float:
        """Return the seconds by which a step without asynchronous scheduling is longer."""
        return self.without - self.overlapped


def read_overlaps(path: Path) -> list[Overlap]:
    """Return all servers of the file's `host` tables."""
    return [_overlap(row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["host"]]


def _overlap(row: dict[str, Any]) -> Overlap:
    if "step_ms" in row:
        without, overlapped = (milliseconds / 1e3 for milliseconds in row["step_ms"])
    else:
        pairs = zip(row["tokens"], row["rate"], strict=True)
        without, overlapped = (row["concurrency"] * tokens / rate for tokens, rate in pairs)
    return Overlap(row["server"], row["source"], row["concurrency"], without, overlapped)


def host_seconds(overlaps: list[Overlap]) -> tuple[float, float]:
    """Return the seconds of the host per step, and for each request in it.

    The first is the median of all servers at one request. The second is the median over the servers that were measured
    at more requests, too.
    """
    alone = {one.source: one.seconds for one in overlaps if one.concurrency == 1}
    more = [
        (one.seconds - alone[one.source]) / (one.concurrency - 1)
        for one in overlaps
        if one.concurrency > 1 and one.source in alone
    ]
    return statistics.median(alone.values()), statistics.median(more)


def lines(path: Path) -> Iterator[str]:
    """Return the page's part, in Markdown."""
    overlaps = read_overlaps(path)
    yield "| server | at once | step without, ms | step with, ms | difference, ms |"
    yield "|---|---|---|---|---|"
    for one in overlaps:
        figures = (f"{seconds * 1e3:.2f}" for seconds in (one.without, one.overlapped, one.seconds))
        yield f"| [{one.server}]({one.source}) | {one.concurrency} | {' | '.join(figures)} |"
    step, request = host_seconds(overlaps)
    yield ""
    yield (
        f"`host_seconds` is the median at one request, {step * 1e3:.2f} ms; `host_sequence_seconds` is "
        f"{request * 1e6:.0f} us, of the one server that was measured at more requests."
    )
