"""The scripted engine behind an admission queue, on a simulated clock: a known service curve without any waiting.

So many slots, first come first served; a call holds its slot for a fixed number of steps, and all streams step at the
same moments, as the scripted engine's do. The capacity is slots / (steps * step_seconds) calls per second.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock_bench.load.calls import OK, Record
from penstock_bench.load.knee import Point, lengths, point_of
from penstock_bench.load.measure import Open
from penstock_bench.load.statistics import LoadSummary, Objectives, summarize
from penstock_bench.load.workload import Work


@dataclass(frozen=True)
class Scripted:
    slots: int
    steps: int
    step_seconds: float

    @property
    def capacity(self) -> float:
        return self.slots / (self.steps * self.step_seconds)

    def serve(self, arrivals: Iterable[float]) -> list[Record]:
        free = [-math.inf] * self.slots
        records = []
        for at in sorted(arrivals):
            began = max(at, heapq.heappop(free))
            step = math.floor(began / self.step_seconds + 1e-9)
            first = (step + 1) * self.step_seconds
            ended = (step + self.steps) * self.step_seconds
            heapq.heappush(free, ended)
            record = Record(Work(100), at, at, OK, first_token=first, first_answer=first, last_token=ended, ended=ended)
            record.prompt_tokens, record.answer_tokens = 100, self.steps
            records.append(record)
        return records


@dataclass(frozen=True)
class Loads:
    """Hold what `bench knee` asks of a service, answered by the simulation."""

    service: Scripted
    objectives: Objectives = field(default_factory=Objectives)
    calls: int = 1000
    seed: int = 0

    async def measure(self, rate: float, number: int) -> Point:
        warm_up, seconds = lengths(rate, self.calls, self.service.steps * self.service.step_seconds)
        seed = random.Random(f"{self.seed} {number}").randrange(2**31)
        times = Open(rate, fixed_count=True).times(warm_up, seconds, seed)
        records = self.service.serve(at for some in times for at in some)
        return point_of(rate, records, self.summary(records, seconds))

    def summary(self, records: list[Record], seconds: float) -> LoadSummary:
        tokens = sum(one.answer_tokens for one in records if one.ended is not None and 0 <= one.ended < seconds)
        return summarize(records, seconds, 0, tokens, self.objectives)
