"""Run the candidates of a call concurrently and merge their events, up to the last one with usage and cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from penstock import tasks
from penstock.engine.base import Engine
from penstock.generation.candidate import Candidate, CandidateEvent
from penstock.generation.control import GenerationRun
from penstock.generation.usage import PriceList, Progress, total
from penstock.types import CandidateEnd, Delta, Event, Finished, FinishReason, GenerationPlan, Timing


async def generate(
    engine: Engine, plan: GenerationPlan, prices: PriceList, run: GenerationRun
) -> AsyncGenerator[Event, None]:
    """Yield the events of all candidates, merged; the last one is Finished. Closing it aborts the engine's work."""
    began = time.monotonic()
    count = plan.request.output.candidate_count
    candidates = [Candidate(engine, plan, index, run) for index in range(count)]
    if run.meter is not None:
        run.meter.start(
            lambda: total([candidate.usage() for candidate in candidates]),
            lambda: _progress(candidates),
            goes_on=bool(run.states),
        )
    ends: list[CandidateEnd] = []
    show_thoughts = plan.request.thinking.include_thoughts
    events = candidates[0].events() if count == 1 else _merged(candidates)
    async with aclosing(events) as merged:
        async for event in merged:
            if isinstance(event, CandidateEnd):
                ends.append(event)
            elif show_thoughts or not (isinstance(event, Delta) and event.is_thought):
                yield event
    ends.sort(key=lambda end: end.candidate_index)
    usage = total([end.usage for end in ends])
    drained = any(end.finish_reason is FinishReason.DRAINED for end in ends)
    finished = Finished(
        ends=tuple(ends),
        usage=usage,
        cost=prices.cost(usage),
        timing=_timing(candidates, run.arrived_monotonic, began),
        states=tuple(candidate.state() for candidate in candidates) if drained else (),
    )
    run.hooks.finished(finished)
    if run.meter is not None:
        run.meter.finished = finished
    yield finished


def _progress(candidates: list[Candidate]) -> Progress:
    thinking = [candidate for candidate in candidates if candidate.may_think]
    return Progress(
        has_token=any(candidate.first_token_at is not None for candidate in candidates),
        may_think=bool(thinking),
        thought_budget_tokens=max(candidate.thought_budget_tokens for candidate in thinking or candidates),
    )


async def _merged(candidates: list[Candidate]) -> AsyncGenerator[CandidateEvent, None]:
    """Yield the events of several candidates as they come. The failure of one ends all."""
    # Bounded: a client that reads slowly delays the candidates and does not fill the server's memory.
    queue: asyncio.Queue[CandidateEvent | BaseException] = asyncio.Queue(maxsize=2 * len(candidates))

    async def feed(candidate: Candidate) -> None:
        try:
            async with aclosing(candidate.events()) as events:
                async for event in events:
                    await queue.put(event)
        except Exception as error:
            await queue.put(error)

    feeders = [asyncio.create_task(feed(candidate)) for candidate in candidates]
    try:
        running = len(candidates)
        while running:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            running -= isinstance(event, CandidateEnd)
            yield event
    finally:
        await tasks.end(*feeders)


def _timing(candidates: list[Candidate], arrived: float, began: float) -> Timing:
    """Return the timing of a call. The queue time is the wait for admission, until `began`, plus the engine's own."""
    firsts = [c.first_token_at for c in candidates if c.first_token_at is not None]
    answers = [c.first_answer_at for c in candidates if c.first_answer_at is not None]
    return Timing(
        queue_seconds=began - arrived + max(c.queue_seconds for c in candidates),
        first_token_seconds=min(firsts) - arrived if firsts else None,
        first_answer_seconds=min(answers) - arrived if answers else None,
        total_seconds=time.monotonic() - arrived,
    )
