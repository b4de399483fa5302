"""Resolve the limits of a caller from its policy and the configuration's defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.config.security import TICKS_PER_USD, Quota
from penstock.types import Priority


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Hold the limits of one caller; None is no limit.

    Attributes:
        concurrent_streams: Candidates that may run at once.
        requests_per_minute: Calls of GenerationService.
        tokens_per_minute: Prompt and output tokens.
        usd_ticks_per_day: Cost per UTC day, in ticks of 1e-10 USD.
        max_priority: Highest priority that calls may ask for.
    """

    concurrent_streams: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_ticks_per_day: int | None = None
    max_priority: Priority = Priority.HIGH

    @property
    def holds_use(self) -> bool:
        """Return whether a generation of this caller reserves and settles anything."""
        return any(
            limit is not None for limit in (self.concurrent_streams, self.tokens_per_minute, self.usd_ticks_per_day)
        )


NO_LIMITS = CallerLimits()


def resolve_limits(own: Quota | None, default: Quota) -> CallerLimits:
    """Return the limits that apply; each one that `own` does not set is taken from `default`."""
    merged_values = {name: value for quota in (default, own) if quota for name, value in _set(quota)}
    merged = Quota.model_validate(merged_values)
    usd = merged.usd_per_day
    return CallerLimits(
        concurrent_streams=merged.concurrent_streams,
        requests_per_minute=merged.requests_per_minute,
        tokens_per_minute=merged.tokens_per_minute,
        usd_ticks_per_day=None if usd is None else int(usd * TICKS_PER_USD),
        max_priority=Priority[(merged.max_priority or "high").upper()],
    )


def _set(quota: Quota) -> Iterator[tuple[str, object]]:
    for name in Quota.model_fields:
        if (value := getattr(quota, name)) is not None:
            yield name, value
