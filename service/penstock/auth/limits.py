"""What a caller may use, resolved: the callers file's word, else the configuration's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.config.security import TICKS_PER_USD, Quota
from penstock.types import Priority


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """None is no limit. Cost in ticks of 1e-10 USD."""

    concurrent_streams: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_ticks_per_day: int | None = None
    max_priority: Priority = Priority.HIGH

    @property
    def holds_use(self) -> bool:
        """There is something to hold and to settle when a generation of this caller's runs."""
        return any(
            limit is not None for limit in (self.concurrent_streams, self.tokens_per_minute, self.usd_ticks_per_day)
        )


NO_LIMITS = CallerLimits()


def resolve_limits(own: Quota | None, default: Quota) -> CallerLimits:
    """Each limit by itself: an entry that sets one leaves the others as they are."""
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
