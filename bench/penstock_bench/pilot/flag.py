"""One red flag, and from where on it is raised."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """The result of a check."""

    RAISED = "raised"
    CLEAR = "clear"
    UNSEEN = "not observed"


@dataclass(frozen=True, slots=True)
class Flag:
    """One check. `evidence` has the figures, `advice` what to do about them."""

    id: str
    title: str
    state: State
    evidence: str
    advice: str

    @property
    def sentence(self) -> str:
        """Return the evidence as a sentence."""
        return f"{self.evidence[:1].upper()}{self.evidence[1:]}."


@dataclass(frozen=True, slots=True)
class FlagThresholds:
    """From where on a flag is raised. Shares of 1."""

    layer_imbalance: float = 2.0
    """Busiest expert over the mean, in any layer."""
    rank_excess: float = 1.25
    """Busiest rank over an even share: a step takes as long as the busiest rank."""
    burst_over_steady: float = 5.0
    burst_first_token_seconds: float = 1.0
    """Below this (or the stated objective) nobody minds the ratio."""
    kv_usage: float = 0.9
    drafts_accepted: float = 0.5
    thoughts_cut: float = 0.25
    thoughts_unpaid: float = 1.5
    """Thought tokens without a limit over those of the smallest budget that is as right, within noise."""
    deadline_missed: float = 0.01
    deadline_left: float = 0.5
    """Of the time, at p95: so much was not needed, and could have been thought in."""
    calls_lost: float = 0.001
    soak_drift: float = 1.25
    soak_growth: float = 0.05
    """Of the service's memory, from the soak's first quarter to its last."""
    soak_min_seconds: float = 300.0
    prefix_hits: float = 0.5
    """Of the tokens that shared prefixes offer."""
    knee_gain: float = 0.05
    """Of the output rate, from the last but one number of callers to the last: with less, the rest only waits."""
    drafts_callers: int = 32
    """From where on published runs show drafts that lose."""
    drafts_useful: float = 0.6
    """Of the positions that the model computes."""
    drafts_counted: int = 100
    """Fewest drafted tokens of a prompt length: with fewer, chance decides."""
    drafts_kept: float = 0.75
    """Acceptance at the longest prompt over that at the shortest."""
    prefix_never: float = 0.05
    other_work: float = 0.1
    """Of the machine's cores, used by other processes."""
    load_before: float = 0.25
    """Load average over cores, where other processes are not seen."""
    front_end_cores: float = 0.8
    generator_lag_seconds: float = 0.05


CheckResult = tuple[State, str]
"""And its evidence."""


def verdict(raised: object, evidence: str) -> CheckResult:
    """Return the state of a check with its evidence."""
    return (State.RAISED if raised else State.CLEAR), evidence


def unseen(why: str) -> CheckResult:
    """Not looked at, and why."""
    return State.UNSEEN, why
