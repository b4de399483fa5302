"""Define what varies between the runs of an evaluation: mode, budget, deadline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock_client import ThinkingMode

UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, in tokens and seconds. None is the server's own budget, or no deadline."""

    mode: ThinkingMode
    budget_tokens: int | None = None
    deadline_seconds: float | None = None

    @property
    def name(self) -> str:
        """Return a short name, unique in a run: `FAST`, `THINKING 8`, `THINKING unlimited`, `AUTO` or `AUTO 2 s`."""
        words = [self.mode.upper()]
        if self.budget_tokens is not None:
            words.append("unlimited" if self.budget_tokens == UNLIMITED else str(self.budget_tokens))
        if self.deadline_seconds is not None:
            words.append(f"{self.deadline_seconds:g} s")
        return " ".join(words)


FAST = Setting(ThinkingMode.FAST)
THINKING = Setting(ThinkingMode.THINKING, UNLIMITED)
AUTO = Setting(ThinkingMode.AUTO)


def settings_of(budgets: Iterable[int], modes: Iterable[str], deadlines: Iterable[float]) -> list[Setting]:
    """Return the settings: FAST, THINKING at each budget (rising, no limit last), AUTO, AUTO at each deadline."""
    chosen = set(modes)
    made: list[Setting] = [FAST] if "fast" in chosen else []
    if "thinking" in chosen:
        rising = sorted(set(budgets), key=lambda budget: (budget == UNLIMITED, budget))
        made += [Setting(ThinkingMode.THINKING, budget) for budget in rising]
    if "auto" in chosen:
        made += [AUTO, *(Setting(ThinkingMode.AUTO, None, seconds) for seconds in sorted(set(deadlines)))]
    return made
