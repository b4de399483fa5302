"""Define what is known of a call before its message is read: caller, deadline, telemetry."""

from __future__ import annotations

import time
from dataclasses import dataclass

from penstock.auth.identity import Principal
from penstock.telemetry.hooks import NO_CALL_HOOKS, CallHooks

# Seconds that a status needs to reach its client, and the most that is reserved for it.
_STATUS_SECONDS, _MAX_STATUS_SECONDS = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One call's identity, deadline and telemetry; the interceptor makes it and each method gets it.

    Attributes:
        caller: Who calls, already authorized for the method.
        arrived_monotonic: When the request was whole, in seconds of time.monotonic().
        deadline_monotonic: The client's deadline on the same clock; None where it set none.
        hooks: Telemetry of this call.
    """

    caller: Principal
    arrived_monotonic: float
    deadline_monotonic: float | None
    hooks: CallHooks = NO_CALL_HOOKS

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, below 0 after it; None where there is none."""
        return None if self.deadline_monotonic is None else self.deadline_monotonic - time.monotonic()

    def status_margin_seconds(self, lag_seconds: float) -> float:
        """Return how long before the deadline the server ends the call, so that its status arrives.

        20 ms, more while the event loop is late, and never more than a tenth of the time that the call was given.
        """
        if self.deadline_monotonic is None:
            return 0.0
        margin = min(_STATUS_SECONDS + 2 * lag_seconds, _MAX_STATUS_SECONDS)
        return max(0.0, min(margin, (self.deadline_monotonic - self.arrived_monotonic) / 10))
