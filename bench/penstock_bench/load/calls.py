"""Make one call and measure it by the caller's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock_bench.load.workload import Work
from penstock_client import (
    AnswerDelta,
    AsyncClient,
    DeadlineExceeded,
    Overloaded,
    PenstockError,
    Response,
    ThoughtDelta,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
)
from penstock_client.messages import MessageLike

_TOKENS = AnswerDelta | ThoughtDelta | ToolCallStarted | ToolCallArguments | ToolCallFinished
OK, REFUSED, DEADLINE, FAILED, UNFINISHED = "ok", "refused", "deadline", "failed", "unfinished"


@dataclass(slots=True)
class Record:
    """The record of one call. Times are in seconds from the start of the window; None for an event that never came.

    Outcomes: ok; refused (the service was overloaded and said so); deadline (the call's own); failed (any other error);
    unfinished (cancelled at the end of the run).
    """

    work: Work
    intended: float
    sent: float
    outcome: str = UNFINISHED
    error: str = ""
    retry_after: float | None = None
    first_token: float | None = None
    first_answer: float | None = None
    last_token: float | None = None
    ended: float | None = None
    longest_gap: float = 0.0
    """Longest time between two events with tokens."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    thought_tokens: int = 0
    answer_tokens: int = 0
    tool_tokens: int = 0
    """Tokens of tool calls."""
    budget_tokens: int | None = None
    thinking_outcome: str = ""
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    queue_seconds: float = 0.0
    usd_ticks: int | None = None
    image_tokens: int = 0
    tool_calls: int = 0
    turn: int = 0
    """Position in its conversation, from 0."""

    @property
    def output_tokens(self) -> int:
        """Return the output tokens of the call: thought, answer and tool calls."""
        return self.thought_tokens + self.answer_tokens + self.tool_tokens

    @property
    def seconds_per_token(self) -> float | None:
        """Return the seconds between first and last token, per token after the first."""
        if self.first_token is None or self.last_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)


class Clock:
    """A clock in seconds from the start of the window; negative during the warm-up."""

    def __init__(self, warm_up_seconds: float) -> None:
        self._zero = time.perf_counter() + warm_up_seconds

    def now(self) -> float:
        """Return the seconds since the start of the measured window; negative during the warm-up."""
        return time.perf_counter() - self._zero

    async def reach(self, seconds: float) -> None:
        """Wait until `moment`. Return at once if it has passed."""
        await asyncio.sleep(max(0.0, seconds - self.now()))


Heard = Callable[[float, int, bool], None]
"""A callback for tokens as they come: their time, their number, and whether they are thought."""


# The call, its record and its callback; made once for each call, in one place.
async def call(
    client: AsyncClient,
    record: Record,
    messages: Sequence[MessageLike],
    options: Mapping[str, Any],
    clock: Clock,
    heard: Heard,
) -> Response:
    """Make the call and fill in the record. Raises nothing but cancellation, which leaves it unfinished."""
    stream = client.stream(list(messages), **options)
    try:
        async with stream:
            async for event in stream:
                if isinstance(event, _TOKENS) and event.token_count:
                    _note(record, clock.now(), isinstance(event, AnswerDelta))
                    heard(record.last_token or 0.0, event.token_count, isinstance(event, ThoughtDelta))
        record.outcome = OK
    except Overloaded as error:
        record.outcome, record.retry_after = REFUSED, error.retry_after_seconds
    except DeadlineExceeded:
        record.outcome = DEADLINE
    except PenstockError as error:
        record.outcome = FAILED
        record.error = error.reason or (error.code.name if error.code is not None else type(error).__name__)
    finally:
        record.ended = clock.now()
        _bill(record, stream.response)
    return stream.response


def _note(record: Record, now: float, is_answer: bool) -> None:
    if record.first_token is None:
        record.first_token = now
    elif record.last_token is not None:
        record.longest_gap = max(record.longest_gap, now - record.last_token)
    if record.first_answer is None and is_answer:
        record.first_answer = now
    record.last_token = now


def _bill(record: Record, response: Response) -> None:
    candidate = response.candidate(0)
    record.thought_tokens, record.answer_tokens = candidate.reasoning_tokens, candidate.answer_tokens
    record.tool_calls = len(candidate.tool_calls)
    record.thinking_outcome = response.thinking_outcome.value if response.thinking_outcome is not None else ""
    if response.effective_settings is not None:
        record.budget_tokens = response.effective_settings.thinking_budget
    if response.usage is not None:
        usage = response.usage
        record.prompt_tokens, record.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        record.image_tokens, record.tool_tokens = usage.image_tokens, usage.tool_tokens
        record.drafted_tokens, record.accepted_tokens = usage.drafted_tokens, usage.accepted_tokens
    if response.timing is not None:
        record.queue_seconds = response.timing.queue_seconds
    record.usd_ticks = None if response.cost is None else response.cost.total_usd_ticks
