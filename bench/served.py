"""Record the result of a job: the times of the text, the number of tokens, and the front end's CPU time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: times in seconds, and the number of messages with tokens."""

    first_token_seconds: float
    last_token_seconds: float
    tokens: int
    messages: int

    @property
    def seconds_per_token(self) -> float:
        return (self.last_token_seconds - self.first_token_seconds) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Served:
    """One run of a job."""

    answers: Sequence[Answered]
    seconds: float
    front_cpu_seconds: float
    client_cpu_seconds: float

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def answered(sent_at: float, arrivals: Sequence[float], tokens: int) -> Answered:
    """Return the result of a request.

    `arrivals` are the times of its messages with tokens, by the clock of `sent_at`.
    """
    return Answered(arrivals[0] - sent_at, arrivals[-1] - sent_at, tokens, len(arrivals))
