"""Retry calls that the server refused with a time to wait, at most as many times as the user allows."""

from __future__ import annotations

import logging
import random
import time

from penstock_client.errors import PenstockError

log = logging.getLogger("penstock_client")
log.addHandler(logging.NullHandler())


def checked_retries(retries: int) -> int:
    """Return the number of retries.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below 0.
    """
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an int, got {retries!r}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    return retries


class Retries:
    """The attempts of one call. A refusal with RetryInfo generated nothing, so nothing is billed twice."""

    def __init__(self, most: int, timeout: float | None, method: str) -> None:
        self._left = most
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._method = method

    def wait_seconds(self, failure: PenstockError) -> float | None:
        """Return the seconds to wait before the next attempt; None if the call is not to be retried."""
        wait = failure.retry_after_seconds
        if wait is None or self._left <= 0:
            return None
        wait *= random.uniform(1.0, 1.2)  # not all callers at once
        if self._ends_at is not None and time.monotonic() + wait >= self._ends_at:
            return None
        self._left -= 1
        log.info("%s refused (%s); retrying in %.2f s", self._method, failure.reason or failure.code, wait)
        return wait

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline of the call, over all attempts; None without a deadline."""
        return None if self._ends_at is None else max(0.001, self._ends_at - time.monotonic())
