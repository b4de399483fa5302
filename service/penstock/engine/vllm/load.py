"""Measure the engine's load from the statistics that vLLM reports after every step."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

from penstock.engine.base import EngineLoad

_SMOOTHING = 0.1  # weight of the newest step: the mean follows a change of load within about twenty steps


class LoadMeter:
    """The newest counts and two running means. Written and read on the event loop only."""

    def __init__(self) -> None:
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._steps = 0
        self._preemptions = 0
        self._prefix_queried_tokens = self._prefix_hit_tokens = 0
        self._accepted_by_position: tuple[int, ...] = ()
        self._running: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._kv_usage: dict[int, float] = {}
        self._seconds_per_token: float | None = None
        self._first_token_seconds: float | None = None

    def load(self) -> EngineLoad:
        """Return the counts: sums over data-parallel ranks, and the KV cache usage of the fullest rank."""
        return EngineLoad(
            running_requests=sum(self._running.values()),
            waiting_requests=sum(self._waiting.values()),
            kv_cache_usage=max(self._kv_usage.values(), default=0.0),
            seconds_per_token=self._seconds_per_token,
            first_token_seconds=self._first_token_seconds,
            steps=self._steps,
            ranks=max(1, len(self._running)),
            preemptions=self._preemptions,
            prefix_queried_tokens=self._prefix_queried_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            accepted_by_position=self._accepted_by_position,
        )

    def scheduled(self, stats: Any, rank: int) -> None:
        """Record the scheduler's statistics of one step of one rank."""
        self._steps += 1
        self._running[rank] = stats.num_running_reqs
        self._waiting[rank] = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self._kv_usage[rank] = stats.kv_cache_usage
        self._prefix_queried_tokens += stats.prefix_cache_stats.queries
        self._prefix_hit_tokens += stats.prefix_cache_stats.hits
        if (speculation := stats.spec_decoding_stats) is not None:
            self.drafted_tokens += speculation.num_draft_tokens
            self.accepted_tokens += speculation.num_accepted_tokens
            here = speculation.num_accepted_tokens_per_pos
            before = self._accepted_by_position or (0,) * len(here)
            self._accepted_by_position = tuple(map(sum, zip(before, here, strict=True)))

    def stepped(self, stats: Any) -> None:
        """Record one step's times. With MTP a step gives a stream several tokens: intervals are divided by tokens."""
        self._preemptions += stats.num_preempted_reqs
        firsts = stats.time_to_first_tokens_iter
        if firsts:
            self._first_token_seconds = _mean(self._first_token_seconds, sum(firsts) / len(firsts))
        intervals, tokens = stats.inter_token_latencies_iter, stats.num_generation_tokens - len(firsts)
        if intervals and tokens > 0:
            self._seconds_per_token = _mean(self._seconds_per_token, sum(intervals) / tokens)

    def logger(self, vllm_config: Any, engine_index: int = 0) -> StatLoggerBase:
        """Return a stat logger. This method is a `StatLoggerFactory` for `AsyncLLM`."""
        return _Logger(self, engine_index)


class _Logger(StatLoggerBase):  # type: ignore[misc] # vLLM's types are not followed
    def __init__(self, meter: LoadMeter, rank: int) -> None:
        self._meter = meter
        self._rank = rank

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Record vLLM's statistics of one step."""
        if scheduler_stats is not None:
            self._meter.scheduled(scheduler_stats, self._rank)
        if iteration_stats is not None:
            self._meter.stepped(iteration_stats)

    def log_engine_initialized(self) -> None:
        """Do nothing: `start` reports the start."""


class NoPrometheus(PrometheusStatLogger):  # type: ignore[misc] # vLLM's types are not followed
    """Take the place of vLLM's Prometheus metrics where no endpoint shows them: they cost time at each step."""

    def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
        """Register no metrics."""

    def record(self, *stats: Any, **more: Any) -> None:
        """Record nothing."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Record nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Record nothing."""

    def log_engine_initialized(self) -> None:
        """Record nothing."""


def _mean(before: float | None, new: float) -> float:
    return new if before is None else before + _SMOOTHING * (new - before)
