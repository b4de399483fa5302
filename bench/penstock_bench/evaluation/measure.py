"""Ask a running service each question in each setting, some at a time, and keep a row of each reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from penstock_bench.evaluation.questions import Question, is_right
from penstock_bench.evaluation.results import DEADLINE_EXCEEDED, Row
from penstock_bench.evaluation.settings import FAST, Setting
from penstock_client import AsyncClient, DeadlineExceeded, Overloaded, Response

_MAX_WAITS = 20
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Options of all settings: concurrent calls, and token limits as in the API; None is the server's default."""

    calls: int
    max_output_tokens: int
    answer_reserve_tokens: int | None = None


async def measure(
    client: AsyncClient,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    options: EvaluationOptions,
    keep: Callable[[Row], None],
) -> None:
    """Ask all questions and give each row to `keep` as it comes, so that an interrupted evaluation keeps its results.

    The settings run one after another. Raises PenstockError if the service refuses or fails. An answer that misses its
    own deadline is a row, because that is a result.
    """
    began = time.monotonic()
    # Not kept: the first calls warm the engine, and let AUTO measure its speed.
    await _each(
        questions[: options.calls], options.calls, lambda question: _ask(client, question, FAST, options, began)
    )
    for setting in settings:

        async def ask(question: Question, setting: Setting = setting) -> None:
            """Ask one question and store its row."""
            keep(await _ask(client, question, setting, options, began))

        await _each(questions, options.calls, ask)


async def _each(questions: Sequence[Question], calls: int, ask: Callable[[Question], Awaitable[object]]) -> None:
    waiting = iter(questions)

    async def work() -> None:
        """Ask the waiting questions one after another."""
        for question in waiting:
            await ask(question)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(work())
    except ExceptionGroup as failures:
        # One failure cancels the others; raise that one.
        raise failures.exceptions[0] from None


async def _ask(
    client: AsyncClient, question: Question, setting: Setting, options: EvaluationOptions, began: float
) -> Row:
    waits = 0
    while True:
        started = time.monotonic()
        try:
            reply = await client.generate(
                question.messages,
                thinking=setting.mode.value,  # type: ignore[arg-type]
                budget=setting.budget_tokens,
                timeout=setting.deadline_seconds,
                answer_reserve=options.answer_reserve_tokens,
                max_output_tokens=options.max_output_tokens,
                temperature=0.0,
            )
        except Overloaded as refused:
            # No row: a call that was never admitted says nothing about the model.
            waits += 1
            if waits > _MAX_WAITS:
                raise
            await asyncio.sleep(refused.retry_after_seconds or _WAIT_SECONDS)
        except DeadlineExceeded:
            if setting.deadline_seconds is None:
                raise
            return Row.lost(question, setting, DEADLINE_EXCEEDED, started - began, time.monotonic() - started)
        else:
            return _row(question, setting, reply, started - began, time.monotonic() - started)


def _row(question: Question, setting: Setting, reply: Response, started: float, latency: float) -> Row:
    usage, effective, timing, outcome = reply.usage, reply.effective_settings, reply.timing, reply.thinking_outcome
    assert usage is not None  # generate() gives complete replies
    assert effective is not None
    assert timing is not None
    return Row(
        setting=setting.name,
        id=question.id,
        kind=question.kind,
        needs_thought=question.needs_thought,
        right=is_right(question.answer, reply.answer),
        answer=reply.answer,
        outcome=outcome.value if outcome is not None else "unknown",
        finish_reason=reply.finish_reason.value if reply.finish_reason is not None else "unknown",
        thought_tokens=usage.reasoning_tokens,
        answer_tokens=usage.answer_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        budget_tokens=effective.thinking_budget,
        reason=effective.thinking_reason,
        drafted_tokens=usage.drafted_tokens,
        accepted_tokens=usage.accepted_tokens,
        usd_ticks=None if reply.cost is None else reply.cost.total_usd_ticks,
        started_seconds=started,
        latency_seconds=latency,
        first_token_seconds=timing.first_token_seconds,
        queue_seconds=timing.queue_seconds,
    )
