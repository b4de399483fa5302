"""Report results as numbers, as text, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.generation.percentiles import percentile

from bench.served import Served

_CEILING, _OURS = "in_process", "penstock"
_PEERS = ("openai", "vllm_grpc")
Results = dict[str, dict[int, dict[str, float]]]
_COLUMNS = {
    "tokens_per_second": "tok/s",
    "first_token_ms_p50": "TTFT p50 ms",
    "first_token_ms_p99": "p99",
    "per_token_ms_p50": "per token p50 ms",
    "per_token_ms_p99": "p99",
    "front_cpu_us_per_token": "front-end us/token",
    "messages_per_token": "messages/token",
    "client_cpu_us_per_token": "client us/token",
}


@dataclass(frozen=True, slots=True)
class Round:
    turn: int
    streams: int
    contender: str
    served: Served


def summary(measured: Sequence[Round]) -> Results:
    """Return the figures by contender and streams.

    Throughput is the median of the rounds; CPU and latencies are over all requests.
    """
    results: Results = {}
    for name in dict.fromkeys(one.contender for one in measured):
        own = [one for one in measured if one.contender == name]
        counts = dict.fromkeys(one.streams for one in own)
        results[name] = {count: _figures([one.served for one in own if one.streams == count]) for count in counts}
    return results


def _figures(runs: Sequence[Served]) -> dict[str, float]:
    answers = [answer for run in runs for answer in run.answers]
    tokens = sum(run.tokens for run in runs)
    firsts = [answer.first_token_seconds * 1e3 for answer in answers]
    paces = [answer.seconds_per_token * 1e3 for answer in answers]
    return {
        "tokens": tokens,
        "tokens_per_second": statistics.median(run.tokens_per_second for run in runs),
        "first_token_ms_p50": percentile(firsts, 50),
        "first_token_ms_p99": percentile(firsts, 99),
        "per_token_ms_p50": percentile(paces, 50),
        "per_token_ms_p99": percentile(paces, 99),
        "front_cpu_us_per_token": sum(run.front_cpu_seconds for run in runs) / tokens * 1e6,
        "messages_per_token": sum(answer.messages for answer in answers) / tokens,
        "client_cpu_us_per_token": sum(run.client_cpu_seconds for run in runs) / tokens * 1e6,
    }


def judged(measured: Sequence[Round]) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Return the ratios by streams, and the same as lines of text beside their goals.

    Each ratio is the median over rounds, and compares two results of one round.
    """
    runs = {(one.turn, one.streams, one.contender): one.served for one in measured}
    counts = list(dict.fromkeys(one.streams for one in measured))
    turns = list(dict.fromkeys(one.turn for one in measured))
    here = {one.contender for one in measured}
    peers = [name for name in _PEERS if name in here]

    def ratio(name: str, others: Sequence[str], what: Callable[[Served], float]) -> dict[int, float]:
        """Return the ratio to the best peer: the one with the lowest median over all rounds.

        The lowest one of each round would change by chance.
        """
        found: dict[int, float] = {}
        for count in counts if others else ():
            own, *theirs = ([what(runs[turn, count, who]) for turn in turns] for who in (name, *others))
            best = min(theirs, key=statistics.median)
            found[count] = statistics.median(mine / other for mine, other in zip(own, best, strict=True))
        return found

    ratios: dict[str, dict[int, float]] = {
        "throughput to in_process": ratio(_OURS, [_CEILING], lambda run: run.tokens_per_second),
        "median time to first token to the best peer": ratio(_OURS, peers, _first_token),
    }
    goals = (">= 0.97 at 64 streams", "<= 1.05")
    lines = []
    for (name, found), goal in zip(ratios.items(), goals, strict=True):
        values = ", ".join(f"{value:.2f} at {count}" for count, value in found.items()) or "no peer was measured"
        lines.append(f"{name}: {values}; goal: {goal}")
    return ratios, lines


def _first_token(run: Served) -> float:
    return percentile([answer.first_token_seconds for answer in run.answers], 50)


def table(results: Results, labels: Mapping[str, str]) -> str:
    heads = ["", *_COLUMNS.values()]
    rows = [heads]
    for count in next(iter(results.values())):
        rows.append([f"{count} stream{'s' if count > 1 else ''}", *[""] * len(_COLUMNS)])
        for name, by_count in results.items():
            rows.append([f"  {labels[name]}", *(f"{by_count[count][column]:.4g}" for column in _COLUMNS)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def plot(results: Results, labels: Mapping[str, str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "tokens_per_second": "tokens per second",
        "first_token_ms_p50": "time to first token, median ms",
        "per_token_ms_p50": "time per token, median ms",
        "front_cpu_us_per_token": "front-end CPU per token, us",
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (column, title) in zip(axes.flat, panels.items(), strict=True):
        for name, by_count in results.items():
            axis.plot(list(by_count), [figures[column] for figures in by_count.values()], "o-", label=labels[name])
        axis.set_title(title)
        axis.set_xlabel("streams")
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(next(iter(results.values()))), [str(count) for count in next(iter(results.values()))])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
