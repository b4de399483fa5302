"""How long a constraint may hold up the engine. Every token of everybody waits for every constraint's mask."""

from __future__ import annotations

ALLOWANCE_SECONDS = 0.25
"""Once per request: the first look at each place of a grammar is dear (25 ms with a vocabulary of 200,000)."""
SECONDS_PER_CHECK = 0.002


class MaskTimeBudget:
    """Counts what one request's constraint has cost; over for good once it is spent."""

    __slots__ = ("is_over", "left_seconds")

    def __init__(self) -> None:
        self.left_seconds = ALLOWANCE_SECONDS
        self.is_over = False

    def spend(self, seconds: float) -> None:
        """`seconds` of CPU for one mask or one token. Saves up to the allowance, never more."""
        self.left_seconds = min(ALLOWANCE_SECONDS, self.left_seconds + SECONDS_PER_CHECK - seconds)
        self.is_over = self.is_over or self.left_seconds < 0
