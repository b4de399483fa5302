"""Define a red flag, and the limits at which flags are raised."""

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
    """One check. `evidence` has the figures, `advice` the action to take."""

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
    """The limits at which flags are raised. Shares are in [0, 1]."""

    layer_imbalance: float = 2.0
    """Load of the busiest expert divided by the mean, in any layer."""
    rank_excess: float = 1.25
    """Load of the busiest rank divided by an even share: a step takes as long as the busiest rank."""
    burst_over_steady: float = 5.0
    burst_first_token_seconds: float = 1.0
    """Seconds (or the stated objective) below which the ratio does not matter."""
    kv_usage: float = 0.9
    drafts_accepted: float = 0.5
    thoughts_cut: float = 0.25
    thoughts_unpaid: float = 1.5
    """Thought tokens without a limit, divided by those of the smallest budget with the same accuracy, within noise."""
    deadline_missed: float = 0.01
    deadline_left: float = 0.5
    """Share of the time that is left at p95, which AUTO could have used for thought."""
    calls_lost: float = 0.001
    soak_drift: float = 1.25
    soak_growth: float = 0.05
    """Growth of the service's memory from the soak's first quarter to its last, as a share."""
    soak_min_seconds: float = 300.0
    prefix_hits: float = 0.5
    """Share of the tokens of shared prefixes that come from the cache."""
    knee_gain: float = 0.05
    """Growth of the output rate from the last but one number of callers to the last: below, callers only wait."""
    drafts_callers: int = 32
    """Number of callers from which drafts slow down published runs."""
    drafts_useful: float = 0.6
    """Share of the computed positions that become output."""
    drafts_counted: int = 100
    """Smallest number of drafted tokens of a prompt length: with fewer, the share is random."""
    drafts_kept: float = 0.75
    """Acceptance at the longest prompt divided by that at the shortest."""
    prefix_never: float = 0.05
    other_work: float = 0.1
    """Share of the machine's cores that other processes use."""
    load_before: float = 0.25
    """Load average divided by cores, if other processes are not observed."""
    front_end_cores: float = 0.8
    generator_lag_seconds: float = 0.05


CheckResult = tuple[State, str]
"""The state of a check and its evidence."""


def verdict(raised: object, evidence: str) -> CheckResult:
    """Return the state of a check with its evidence."""
    return (State.RAISED if raised else State.CLEAR), evidence


def unseen(why: str) -> CheckResult:
    """Return the state of a check that was not possible, with the reason."""
    return State.UNSEEN, why
