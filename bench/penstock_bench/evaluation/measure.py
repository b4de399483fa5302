"""Ask a running service each question in each setting, some at a time, and keep a row of each reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock_bench.evaluation.questions import Question, is_right
from penstock_bench.evaluation.results import DEADLINE_EXCEEDED, Row, total
from penstock_bench.evaluation.settings import FAST, Setting
from penstock_client import (
    AsyncClient,
    DeadlineExceeded,
    Message,
    Overloaded,
    Response,
    ToolCall,
    ToolResult,
)

_MAX_WAITS = 20
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Options of all settings: concurrent calls; limits and tool mode as in the API. None: the server's default."""

    calls: int
    max_output_tokens: int
    answer_reserve_tokens: int | None = None
    tool_mode: Literal["auto", "validated"] = "auto"


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
    """Ask a question. Where its calls are right, give their results to the model and take its answer to these."""
    started = time.monotonic()
    try:
        replies = [await _reply(client, question.messages, question, setting, options)]
        called_right = question.is_called_right(replies[0].tool_calls) if question.tools else None
        if called_right and question.calls:
            turns = [*question.messages, replies[0].message, _results(question, replies[0].tool_calls)]
            replies.append(await _reply(client, turns, question, setting, options))
    except DeadlineExceeded:
        if setting.deadline_seconds is None:
            raise
        return Row.lost(question, setting, DEADLINE_EXCEEDED, started - began, time.monotonic() - started)
    return _row(question, setting, replies, called_right, started - began, time.monotonic() - started)


async def _reply(
    client: AsyncClient, turns: Sequence[Message], question: Question, setting: Setting, options: EvaluationOptions
) -> Response:
    """Return the reply to a conversation; wait and ask again where the service is overloaded.

    A call that was never admitted says nothing about the model.
    """
    more: dict[str, Any] = {"tools": question.tools, "tool_mode": options.tool_mode} if question.tools else {}
    waits = 0
    while True:
        try:
            return await client.generate(
                turns,
                thinking=setting.mode.value,  # type: ignore[arg-type]
                budget=setting.budget_tokens,
                early_exit=setting.early_exit.sign if setting.early_exit else None,  # type: ignore[arg-type]
                early_exit_probability=setting.early_exit.probability if setting.early_exit else None,
                timeout=setting.deadline_seconds,
                answer_reserve=options.answer_reserve_tokens,
                max_output_tokens=options.max_output_tokens,
                temperature=0.0,
                **more,
            )
        except Overloaded as refused:
            waits += 1
            if waits > _MAX_WAITS:
                raise
            await asyncio.sleep(refused.retry_after_seconds or _WAIT_SECONDS)


def _results(question: Question, calls: Sequence[ToolCall]) -> Message:
    """Return the message with the results of right calls, in the order in which the model made them."""
    waiting = list(zip(question.calls, question.results, strict=True))
    given = []
    for call in calls:
        place = next(at for at, (right, _) in enumerate(waiting) if right == (call.name, call.arguments))
        given.append(ToolResult(call.id, waiting.pop(place)[1]))
    return Message.tool(*given)


# One parameter for each part of the row.
def _row(
    question: Question,
    setting: Setting,
    replies: Sequence[Response],
    called_right: bool | None,
    started: float,
    latency: float,
) -> Row:
    """Return the row of a question; its counts are those of all replies."""
    first, last = replies[0], replies[-1]
    outcome, timing = first.thinking_outcome, first.timing
    usages = [reply.usage for reply in replies if reply.usage is not None]
    settings = [reply.effective_settings for reply in replies if reply.effective_settings is not None]
    assert len(usages) == len(settings) == len(replies)  # generate() gives complete replies
    assert timing is not None
    ticks = [None if reply.cost is None else reply.cost.total_usd_ticks for reply in replies]
    return Row(
        setting=setting.name,
        id=question.id,
        kind=question.kind,
        language=question.language,
        form=question.form,
        needs_thought=question.needs_thought,
        right=called_right is not False and is_right(question.answer, last.answer),
        expected_calls=len(question.calls) if question.tools else None,
        called_right=called_right,
        answer=last.answer,
        outcome=outcome.value if outcome is not None else "unknown",
        finish_reason=last.finish_reason.value if last.finish_reason is not None else "unknown",
        thought_tokens=sum(usage.reasoning_tokens for usage in usages),
        answer_tokens=sum(usage.answer_tokens for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        budget_tokens=sum(one.thinking_budget for one in settings),
        reason=settings[0].thinking_reason,
        drafted_tokens=total(usage.drafted_tokens for usage in usages),
        accepted_tokens=total(usage.accepted_tokens for usage in usages),
        usd_ticks=total(ticks),
        started_seconds=started,
        latency_seconds=latency,
        first_token_seconds=timing.first_token_seconds,
        queue_seconds=timing.queue_seconds,
        recomputed_tokens=sum(usage.recomputed_tokens for usage in usages),
        probe_tokens=sum(usage.probe_tokens for usage in usages),
        probes=sum(candidate.probes for reply in replies for candidate in reply.candidates),
    )
