"""How much of what carries nothing is put up with on one connection."""

from __future__ import annotations

from penstock.http2.frames import ConnectionFault, ErrorCode

RESET_WEIGHT = 10
"""Of a call that had no answer yet (CVE-2023-44487)."""
# Frames that cost work and carry none: a burst, and what is forgiven in a second, beside four for each DATA frame sent.
_MOST_IDLE_FRAMES = 20_000
_FORGIVEN_PER_SECOND = 2_000
_FORGIVEN_PER_FRAME = 4
_MOST_PING_STRIKES = 10
_LEAST_PING_SECONDS = 5.0


class Patience:
    """Times are time.monotonic()'s; `sent` is how many DATA frames went out so far."""

    def __init__(self, now: float) -> None:
        self._idle_frames = 0
        self._looked_at, self._sent_then = now, 0
        self._pinged_at, self._sent_at_ping = 0.0, 0
        self._ping_strikes = 0

    def idle_frame(self, weight: int = 1) -> None:
        """Raises ConnectionFault."""
        self._idle_frames += weight
        if self._idle_frames > _MOST_IDLE_FRAMES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def pinged(self, now: float, sent: int) -> None:
        """Raises ConnectionFault where nothing went on that pings may measure."""
        self.idle_frame()
        if sent > self._sent_at_ping:
            self._ping_strikes = 0
        elif now - self._pinged_at < _LEAST_PING_SECONDS:
            self._ping_strikes += 1
            if self._ping_strikes > _MOST_PING_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._pinged_at, self._sent_at_ping = now, sent

    def forgive(self, now: float, sent: int) -> None:
        """What time and honest work excuse."""
        forgiven = _FORGIVEN_PER_SECOND * (now - self._looked_at) + _FORGIVEN_PER_FRAME * (sent - self._sent_then)
        self._idle_frames = max(0, self._idle_frames - int(forgiven))
        self._looked_at, self._sent_then = now, sent
