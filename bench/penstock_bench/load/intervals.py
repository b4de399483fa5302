"""Compute confidence intervals of a load's figures, and of the difference between two loads.

The latencies of one run are autocorrelated: a call that waits makes the next ones wait. A t interval over single calls
would be far too narrow. Two kinds of samples are nearly independent:

- *batch means* of one run: the window is divided into five batches in order of time, each much longer than a wait.
  Five long batches are better than ten: for an M/M/1 queue, ten cover the true value two points less often;
- *repetitions*: one figure per run. They include the variation between runs, and are the better choice.

The intervals are Student's t, the comparison is Welch's. Both come from SciPy, which the extra `intervals` installs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from penstock_bench.load.calls import OK, Record
from penstock_bench.load.statistics import MEASURES, LoadSummary, Objectives, Spread

CONFIDENCE = 0.95
BATCHES = 5
BATCH_MEANS, REPETITIONS = "batch means", "repetitions"
_MIN_CALLS_PER_BATCH = 10
_MIN_CALLS_PER_TAIL_BATCH = 20
"""Smallest batch for p95: one call is above it."""
MISSING = "no intervals: SciPy is not installed; run `pip install 'penstock-bench[intervals]'`"
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "calls_per_second": True,
    "output_tokens_per_second": True,
    "goodput_share": True,
    "first_token_mean": False,
    "first_token_p95": False,
    "first_answer_mean": False,
    "first_answer_p95": False,
    "per_token_mean": False,
    "end_to_end_mean": False,
    "end_to_end_p95": False,
    "joules_per_output_token": False,
    "knee_calls_per_second": True,
    "objective_calls_per_second": True,
}


def available() -> bool:
    """Tell whether SciPy is installed."""
    return find_spec("scipy") is not None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, and the independent samples that it comes from."""

    value: float
    low: float
    high: float
    method: str
    samples: tuple[float, ...]

    @property
    def relative_half_width(self) -> float:
        """Return half of the interval as a share of the figure; infinite for a figure of 0."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf


@dataclass(frozen=True, slots=True)
class Difference:
    """`second` minus `first`, with an interval that holds for all compared figures together."""

    first: float
    second: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Return whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def estimate(samples: Sequence[float], method: str, confidence: float = CONFIDENCE) -> Estimate | None:
    """Return the mean of independent samples with its t interval. None for fewer than two or for infinite ones."""
    import numpy as np
    from scipy import stats

    if len(samples) < 2 or not all(math.isfinite(sample) for sample in samples):
        return None
    mean, error = float(np.mean(samples)), float(stats.sem(samples))
    half = float(stats.t.ppf((1 + confidence) / 2, len(samples) - 1)) * error
    return Estimate(mean, mean - half, mean + half, method, tuple(map(float, samples)))


def difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Difference | None:
    """Return the difference of two means with Welch's interval. None where a side has fewer than two samples."""
    import numpy as np
    from scipy import stats

    if min(len(first), len(second)) < 2:
        return None
    means = float(np.mean(first)), float(np.mean(second))
    # Not scipy.stats.ttest_ind: it warns about samples that are nearly equal, and counted figures often are.
    errors = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    change, error = means[1] - means[0], sum(errors)
    freedom = sum(one**2 / (len(side) - 1) for one, side in zip(errors, (first, second), strict=True))
    half = float(stats.t.ppf((1 + confidence) / 2, error**2 / freedom)) * math.sqrt(error) if freedom else 0.0
    return Difference(*means, change - half, change + half)


def differences(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], confidence: float = CONFIDENCE
) -> dict[str, Difference]:
    """Compare every figure that both sides have. The intervals hold together with the confidence (Bonferroni)."""
    shared = [name for name in HIGHER_IS_BETTER if min(len(first.get(name, ())), len(second.get(name, ()))) >= 2]
    each = 1 - (1 - confidence) / max(1, len(shared))
    found = {name: difference(first[name], second[name], each) for name in shared}
    return {name: one for name, one in found.items() if one is not None}


def of_one_run(
    records: Sequence[Record], seconds: float, tokens_by_second: Sequence[int], objectives: Objectives
) -> dict[str, Estimate]:
    """Return the intervals of one run by batch means.

    Args:
        records: The calls meant for the window.
        seconds: Length of the window.
        tokens_by_second: Output tokens that arrived in each whole second of the window.
        objectives: What a good call keeps to.

    """
    samples: dict[str, Sequence[float]] = {}
    admitted = sorted((one for one in records if one.outcome == OK), key=lambda record: record.intended)
    for name, read in MEASURES.items():
        values = [value for record in admitted if (value := read(record)) is not None]
        samples[f"{name}_mean"] = batched(values, _mean, _MIN_CALLS_PER_BATCH)
        samples[f"{name}_p95"] = batched(values, lambda batch: Spread.of(batch).p95 or 0.0, _MIN_CALLS_PER_TAIL_BATCH)
    ends = [one.ended for one in admitted if one.ended is not None and 0 <= one.ended < seconds]
    samples["calls_per_second"] = _counted(ends, seconds)
    samples["output_tokens_per_second"] = batched(list(map(float, tokens_by_second)), _mean, 1)
    if objectives.stated:
        kept = [float(objectives.kept_by(one)) for one in sorted(records, key=lambda record: record.intended)]
        samples["goodput_share"] = batched(kept, _mean, _MIN_CALLS_PER_BATCH)
    lost = len(admitted) < len(records)
    return {
        name: one
        for name in HIGHER_IS_BETTER
        # A latency without the lost calls would be too good.
        if not (lost and name.rpartition("_")[0] in MEASURES)
        if (one := estimate(samples.get(name, ()), BATCH_MEANS)) is not None
    }


def of_runs(
    summaries: Sequence[LoadSummary], joules_per_output_token: Sequence[float | None] = ()
) -> dict[str, Estimate]:
    """Return the intervals over independent runs of the same load: one sample from each."""
    samples: dict[str, list[float | None]] = {"joules_per_output_token": list(joules_per_output_token)}
    for name in ("calls_per_second", "output_tokens_per_second", "goodput_share"):
        samples[name] = [getattr(summary, name) for summary in summaries]
    for name in MEASURES:
        spreads: list[Spread] = [getattr(summary, name) for summary in summaries]
        samples[f"{name}_mean"] = [spread.mean for spread in spreads]
        samples[f"{name}_p95"] = [spread.p95 for spread in spreads]
    found = {}
    for name in HIGHER_IS_BETTER:
        known = [value for value in samples.get(name, []) if value is not None]
        one = estimate(known, REPETITIONS) if len(known) == len(summaries) else None
        if one is not None:
            found[name] = one
    return found


def batched(values: Sequence[float], figure: Callable[[Sequence[float]], float], fewest: int) -> tuple[float, ...]:
    """Return the figure of each batch, all of one length; none if they would be shorter than `fewest`.

    Surplus values at the start are dropped.
    """
    size = len(values) // BATCHES
    if size < fewest:
        return ()
    begin = len(values) - size * BATCHES
    return tuple(figure(values[begin + n * size : begin + (n + 1) * size]) for n in range(BATCHES))


def _counted(moments: Sequence[float], seconds: float) -> tuple[float, ...]:
    if len(moments) < BATCHES * _MIN_CALLS_PER_BATCH:
        return ()
    import numpy as np

    counts, _ = np.histogram(moments, bins=BATCHES, range=(0.0, seconds))
    return tuple(float(count) * BATCHES / seconds for count in counts)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
