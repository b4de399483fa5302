"""Limit how long a constraint may delay the engine. Every token of every request waits for every constraint's mask."""

from __future__ import annotations

ALLOWANCE_SECONDS = 0.25
"""Extra time per request: the first mask of each grammar state is slow (25 ms with a vocabulary of 200,000)."""
SECONDS_PER_CHECK = 0.002
"""Time that each mask or token adds to the budget."""


class MaskTimeBudget:
    """The time that one request's constraint may still use. Once spent, it stays spent."""

    __slots__ = ("is_over", "left_seconds")

    def __init__(self) -> None:
        self.left_seconds = ALLOWANCE_SECONDS
        self.is_over = False

    def spend(self, seconds: float) -> None:
        """Subtract the CPU `seconds` of one mask or token. Unused time is saved up to the allowance."""
        self.left_seconds = min(ALLOWANCE_SECONDS, self.left_seconds + SECONDS_PER_CHECK - seconds)
        self.is_over = self.is_over or self.left_seconds < 0
