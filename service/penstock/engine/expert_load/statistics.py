"""Compute the load of experts over a time window, from growing counts that are kept for an hour."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import add, sub

LONGEST_WINDOW_SECONDS = 3600.0
_HOT = 2.0  # times the mean load
# Samples are kept so densely that the start of a window is off by at most half of this share of its length.
_SPACING = 1 / 32
_MAX_LOADS = 64  # Results kept per sample, for callers who ask the same.


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Count the tokens of each expert since the start, by index of the MoE layer; all layers have as many experts.

    `ranks` is the number of parallel ranks over which whole experts are distributed: 1 where each rank has a slice of
    each.
    """

    experts_per_token: int
    ranks: int
    layers: Mapping[int, array[int]]

    def __add__(self, other: ExpertCounts) -> ExpertCounts:
        sums = {i: array("q", map(add, mine, other.layers[i])) for i, mine in self.layers.items()}
        return replace(self, layers=sums)

    def __sub__(self, other: ExpertCounts) -> ExpertCounts:
        rests = {i: array("q", map(sub, mine, other.layers[i])) for i, mine in self.layers.items()}
        return replace(self, layers=rests)

    @property
    def experts(self) -> int:
        """Return the number of experts per layer."""
        return len(next(iter(self.layers.values()), ()))


class Continued:
    """Add up counts over several engines. What a dead one counted since it was last asked is lost."""

    def __init__(self) -> None:
        self._engine: object = None
        self._earlier: ExpertCounts | None = None
        self._total: ExpertCounts | None = None

    def total(self, engine: object, counts: ExpertCounts) -> ExpertCounts:
        """Return the counts of this engine plus those of the engines before it."""
        if engine is not self._engine:
            self._engine, self._earlier = engine, self._total
        self._total = counts if self._earlier is None else counts + self._earlier
        return self._total


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Hold the load of one MoE layer. Without tokens all is even: imbalance and entropy 1, no hot expert."""

    layer_index: int
    counts: array[int]
    imbalance: float
    """Tokens of the busiest expert divided by the mean."""
    normalized_entropy: float
    """Entropy of the shares divided by its maximum: 1 is even, 0 is one expert for all tokens."""
    hot_experts: tuple[int, ...]
    """Experts with more than twice the mean, busiest first."""


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Hold the load over `window_seconds`. `token_count` is the number of tokens of a layer (the most of any)."""

    window_seconds: float
    token_count: int
    ranks: int
    layers: tuple[LayerLoad, ...]


def measure(counts: ExpertCounts, seconds: float) -> ExpertLoad:
    """Return the load that counts over some seconds amount to."""
    layers = tuple(_layer(index, tokens) for index, tokens in sorted(counts.layers.items()))
    most = max((sum(layer.counts) for layer in layers), default=0)
    return ExpertLoad(seconds, most // counts.experts_per_token, counts.ranks, layers)


def _layer(index: int, counts: array[int]) -> LayerLoad:
    total = sum(counts)
    if not total:
        return LayerLoad(index, counts, 1.0, 1.0, ())
    mean = total / len(counts)
    entropy = -sum(count / total * math.log(count / total) for count in counts if count)
    hot = [expert for expert, count in enumerate(counts) if count > _HOT * mean]
    hot.sort(key=lambda expert: -counts[expert])
    even = math.log(len(counts)) if len(counts) > 1 else 0.0
    return LayerLoad(index, counts, max(counts) / mean, min(1.0, entropy / even) if even else 1.0, tuple(hot))


def busiest_rank_share(counts: array[int], ranks: int) -> float:
    """Return the share of tokens on the busiest of `ranks` ranks (1 to the number of experts), in [0, 1].

    Each rank has consecutive experts, the first ranks one more where the division has a remainder: vLLM's own
    placement, before EPLB moves any. Without tokens it is an even share.
    """
    total = sum(counts)
    if not total:
        return 1 / ranks
    each, more = divmod(len(counts), ranks)
    starts = [rank * each + min(rank, more) for rank in range(ranks + 1)]
    return max(sum(counts[start:end]) for start, end in pairwise(starts)) / total


class History:
    """Keep past counts, densely for recent times and sparsely for earlier ones.

    A window of any length finds its start within a few percent; an hour takes about 250 samples. Written by one thread,
    read by any.
    """

    def __init__(self) -> None:
        self._moments: tuple[tuple[float, ExpertCounts], ...] = ()
        self._loads: dict[float, ExpertLoad] = {}

    @property
    def newest(self) -> tuple[float, ExpertCounts] | None:
        """Return the time (time.monotonic()) and the counts of the newest sample."""
        return self._moments[-1] if self._moments else None

    def add(self, at_monotonic: float, counts: ExpertCounts) -> None:
        """Add a sample."""
        moments = [*self._moments, (at_monotonic, counts)]
        while len(moments) > 2 and moments[1][0] <= at_monotonic - LONGEST_WINDOW_SECONDS:
            del moments[0]
        kept = moments[:1]
        for (when, was), (after, _) in pairwise(moments[1:]):
            if after - kept[-1][0] > (at_monotonic - when) * _SPACING:
                kept.append((when, was))
        self._loads = {}
        self._moments = (*kept, moments[-1]) if len(moments) > 1 else tuple(kept)

    def load(self, window_seconds: float) -> ExpertLoad | None:
        """Return the load of the window that ends with the newest sample; None without samples."""
        moments, loads = self._moments, self._loads
        if not moments:
            return None
        now, newest = moments[-1]
        began, oldest = _nearest(moments, now - window_seconds)
        if began not in loads:
            if len(loads) >= _MAX_LOADS:
                loads.clear()
            loads[began] = measure(newest - oldest, now - began)
        return loads[began]


def _nearest(moments: tuple[tuple[float, ExpertCounts], ...], when: float) -> tuple[float, ExpertCounts]:
    """Return the sample nearest to a time, but not the newest one where there is another: a window needs a length."""
    place = bisect_left(moments, when, hi=max(0, len(moments) - 2), key=lambda moment: moment[0])
    before = moments[max(0, place - 1)]
    return before if when - before[0] < moments[place][0] - when else moments[place]
