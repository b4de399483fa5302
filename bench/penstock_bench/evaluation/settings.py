"""Define what varies between the runs of an evaluation: mode, budget, deadline, early exit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock_client import ThinkingMode

UNLIMITED = -1
SIGNS = ("marker", "probe")
"""What may end a thought early."""


@dataclass(frozen=True, slots=True)
class Exit:
    """An early exit: its sign, and the probability from which on the thought ends; None is the server's own."""

    sign: str
    probability: float | None = None

    @property
    def name(self) -> str:
        """Return a short name: `marker 0.3` or `probe`."""
        return self.sign if self.probability is None else f"{self.sign} {self.probability:g}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, in tokens and seconds. None is the server's own budget, or no deadline."""

    mode: ThinkingMode
    budget_tokens: int | None = None
    deadline_seconds: float | None = None
    early_exit: Exit | None = None
    """None leaves it to the server with AUTO, and is none with THINKING."""

    @property
    def name(self) -> str:
        """Return a short name, unique in a run: `FAST`, `THINKING 8`, `THINKING unlimited`, `THINKING unlimited probe
        0.9`, `AUTO` or `AUTO 2 s`.
        """
        words = [self.mode.upper()]
        if self.budget_tokens is not None:
            words.append("unlimited" if self.budget_tokens == UNLIMITED else str(self.budget_tokens))
        if self.deadline_seconds is not None:
            words.append(f"{self.deadline_seconds:g} s")
        if self.early_exit is not None:
            words.append(self.early_exit.name)
        return " ".join(words)


FAST = Setting(ThinkingMode.FAST)
THINKING = Setting(ThinkingMode.THINKING, UNLIMITED)
AUTO = Setting(ThinkingMode.AUTO)


def settings_of(
    budgets: Iterable[int], modes: Iterable[str], deadlines: Iterable[float], exits: Iterable[Exit] = ()
) -> list[Setting]:
    """Return the settings: FAST, THINKING at each budget (rising, no limit last), THINKING with each early exit, AUTO,
    AUTO at each deadline.
    """
    chosen = set(modes)
    made: list[Setting] = [FAST] if "fast" in chosen else []
    if "thinking" in chosen:
        rising = sorted(set(budgets), key=lambda budget: (budget == UNLIMITED, budget))
        made += [Setting(ThinkingMode.THINKING, budget) for budget in rising]
        made += [Setting(ThinkingMode.THINKING, UNLIMITED, None, one) for one in exits]
    if "auto" in chosen:
        made += [AUTO, *(Setting(ThinkingMode.AUTO, None, seconds) for seconds in sorted(set(deadlines)))]
    return made
