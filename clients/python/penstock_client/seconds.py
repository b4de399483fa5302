"""Read times that callers give in seconds."""

from __future__ import annotations

import math
from typing import SupportsFloat

from google.protobuf.duration_pb2 import Duration

MAX_SECONDS = 315_576_000_000
"""Most seconds that a protobuf Duration holds: ten thousand years."""


def call_seconds(timeout: float | None, default: float | None = None) -> float | None:
    """Return the seconds that a call may take; None without a limit, also for an infinite timeout.

    Raises:
        TypeError: The timeout is no number.
        ValueError: The timeout is NaN.
    """
    given = default if timeout is None else seconds_of("timeout", timeout)
    return None if given == math.inf else given


def duration_of(name: str, seconds: float | None) -> Duration | None:
    """Return the message for seconds; None for None, which leaves the choice to the server.

    Raises:
        TypeError: `seconds` is no number.
        ValueError: `seconds` is NaN, or more than a message holds.
    """
    if seconds is None:
        return None
    number = seconds_of(name, seconds)
    if abs(number) > MAX_SECONDS:
        raise ValueError(f"{name} must be at most {MAX_SECONDS:,} seconds, got {seconds}")
    made = Duration()
    made.FromNanoseconds(round(number * 1e9))
    return made


def seconds_of(name: str, seconds: object) -> float:
    """Return the seconds. Raises TypeError for what is no number, and ValueError for NaN."""
    if isinstance(seconds, bool) or not isinstance(seconds, SupportsFloat):
        raise TypeError(f"{name} must be a number of seconds, got {seconds!r}")
    number = float(seconds)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number of seconds, got NaN")
    return number
