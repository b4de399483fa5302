"""One generation over engine runs: the thought is closed where it must be, and the stream goes on as if nothing was.

A continuation is a new engine run whose prompt is the original prompt plus every token already kept. Closing a thought
(at the budget, before the deadline, after a stray end of turn) and going on without a re-opened think section are all
that one thing; the engine's own way to close a thought at the budget is used where it has one, and checked here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from penstock.engine import Engine
from penstock.planning import Plan
from penstock.split import SplitSettings, Splitter, Verdict
from penstock.types import (
    CandidateEnd,
    Delta,
    EngineChunk,
    EngineRequest,
    EngineStop,
    Event,
    Finished,
    FinishReason,
    ThinkingOutcome,
    ThoughtEnded,
    Timing,
    Usage,
)
from penstock.usage import PriceList, total

_FINISH_OF_VERDICT = {
    Verdict.EOS: FinishReason.STOP,
    Verdict.STOP_TOKEN: FinishReason.STOP_TOKEN,
    Verdict.STOP_STRING: FinishReason.STOP_STRING,
    Verdict.MAX_OUTPUT_TOKENS: FinishReason.MAX_OUTPUT_TOKENS,
}
# Share of the time that the answer is expected to need which is kept free before the deadline.
_DEADLINE_PACE_MARGIN = 1.25
# Distinct random streams for the runs of one candidate: a continuation must not draw the same numbers again.
_SEED_STRIDE = 0x9E3779B1
CandidateEvent = Delta | ThoughtEnded | CandidateEnd


class Candidate:
    """One candidate of a call: its splitter, and the engine runs that feed it."""

    def __init__(self, engine: Engine, plan: Plan, generation_id: str, index: int) -> None:
        self._engine = engine
        self._plan = plan
        self._id = f"{generation_id}-{index}"
        self._index = index
        self._runs = 0
        self._run_prompt_tokens = 0
        self._run_is_new = False
        self._banned: tuple[int, ...] = ()
        self._cached_tokens = 0
        self._recomputed_tokens = 0
        # The engine counts drafts per run and tells at its end: a run that was cut short leaves the call uncounted.
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._runs_counted = 0
        self.queue_seconds = 0.0
        self.first_token_at: float | None = None
        self.first_answer_at: float | None = None
        self._outcome: ThinkingOutcome | None = None if plan.in_thought or plan.may_open else ThinkingOutcome.DISABLED
        output = plan.request.output
        self._splitter = Splitter(
            SplitSettings(
                markers=engine.card.markers,
                eos_ids=engine.card.eos_ids,
                thought_budget_tokens=plan.budget.thought_tokens,
                max_output_tokens=plan.budget.max_output_tokens,
                stop_strings=output.stop_strings,
                stop_token_ids=frozenset(output.stop_token_ids),
            ),
            engine.tokenizer.token_bytes,
            candidate_index=index,
            in_thought=plan.in_thought,
            may_open=plan.may_open,
        )

    async def events(self) -> AsyncGenerator[CandidateEvent, None]:
        """Deltas, the end of the thought, and last the end. Closing it aborts the engine's work."""
        splitter = self._splitter
        if splitter.in_thought and self._plan.budget.thought_tokens == 0:
            splitter.close_thought(self._plan.closing_ids)
            yield self._thought_ended(ThinkingOutcome.BUDGET_REACHED)
        while True:
            verdict = Verdict.GO_ON
            async with aclosing(self._engine.stream(self._engine_request())) as chunks:
                async for chunk in chunks:
                    self._note(chunk)
                    was_thinking = splitter.in_thought
                    verdict = splitter.push(chunk.token_ids, chunk.logprobs)
                    if verdict is Verdict.GO_ON and chunk.stop is not None:
                        verdict = self._verdict_of_stop(chunk.stop)
                    outcome = self._closed_by(verdict, was_thinking)
                    for event in self._due(verdict, outcome):
                        yield event
                    if outcome is ThinkingOutcome.DEADLINE or verdict is not Verdict.GO_ON:
                        break
            if verdict in _FINISH_OF_VERDICT:
                yield self._end(_FINISH_OF_VERDICT[verdict])
                return
            if verdict is Verdict.REOPENED:
                assert self._engine.card.markers is not None
                self._banned = (self._engine.card.markers.open_id,)

    def _engine_request(self) -> EngineRequest:
        """The next run: what is left of the budgets, after everything that the model must see."""
        plan, splitter, output = self._plan, self._splitter, self._plan.request.output
        left = plan.budget.max_output_tokens - splitter.output_tokens
        markers = (1 if splitter.in_thought else 0) + (2 if plan.may_open and not splitter.output_tokens else 0)
        forces = self._engine.card.forces_budget and len(plan.closing_ids) == 1
        seed = plan.sampling.seed
        if seed is not None:
            seed = (seed + self._index + self._runs * _SEED_STRIDE) % 2**63
        self._runs += 1
        self._run_is_new = True
        prompt = plan.context.prompt_token_ids + tuple(splitter.context_ids)
        self._run_prompt_tokens = len(prompt)
        return EngineRequest(
            request_id=f"{self._id}-{self._runs}",
            prompt_token_ids=prompt,
            max_tokens=left + markers,
            min_tokens=max(0, min(output.min_tokens - splitter.output_tokens, left)),
            sampling=replace(plan.sampling, seed=seed),
            thought_budget_tokens=(
                plan.budget.thought_tokens - splitter.thought_tokens if splitter.in_thought and forces else None
            ),
            stop_token_ids=output.stop_token_ids,
            top_logprobs=output.top_logprobs,
            structured=output.structured,
            banned_token_ids=self._banned,
            cache_salt=plan.request.context.cache_salt,
        )

    def _note(self, chunk: EngineChunk) -> None:
        if self._run_is_new:
            self._run_is_new = False
            if self._runs == 1:
                self._cached_tokens = chunk.cached_tokens
                self.queue_seconds = chunk.queue_seconds or 0.0
            else:
                self._recomputed_tokens += self._run_prompt_tokens - chunk.cached_tokens
        if chunk.drafted_tokens is not None and chunk.accepted_tokens is not None:
            self._drafted_tokens += chunk.drafted_tokens
            self._accepted_tokens += chunk.accepted_tokens
            self._runs_counted += 1
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()

    def _verdict_of_stop(self, stop: EngineStop) -> Verdict:
        """The engine ended by itself where the splitter saw no reason to."""
        if self._splitter.in_thought:
            return Verdict.CLOSE_THOUGHT_AFTER_EOS if self._room_for_answer() else Verdict.MAX_OUTPUT_TOKENS
        return {EngineStop.LENGTH: Verdict.MAX_OUTPUT_TOKENS, EngineStop.STOP_TOKEN: Verdict.STOP_TOKEN}.get(
            stop, Verdict.EOS
        )

    def _room_for_answer(self) -> bool:
        return self._splitter.output_tokens < self._plan.budget.max_output_tokens

    def _closed_by(self, verdict: Verdict, was_thinking: bool) -> ThinkingOutcome | None:
        """Closes the thought where the verdict or the clock demands it, and says how it ended if it just did."""
        splitter, plan = self._splitter, self._plan
        if verdict is Verdict.CLOSE_THOUGHT_AT_BUDGET:
            splitter.close_thought(plan.closing_ids)
            return ThinkingOutcome.BUDGET_REACHED
        if verdict is Verdict.CLOSE_THOUGHT_AFTER_EOS:
            splitter.close_thought(plan.closing_ids)
            return ThinkingOutcome.NATURAL_END
        if verdict is Verdict.MAX_OUTPUT_TOKENS and splitter.in_thought:
            return ThinkingOutcome.MAX_OUTPUT_TOKENS
        if splitter.in_thought:
            if verdict is Verdict.GO_ON and self._must_answer_now():
                splitter.close_thought(plan.closing_ids)
                return ThinkingOutcome.DEADLINE
            return None
        if self._outcome is None and (was_thinking or splitter.marker_tokens):
            spent = splitter.thought_tokens >= plan.budget.thought_tokens
            return ThinkingOutcome.BUDGET_REACHED if spent else ThinkingOutcome.NATURAL_END
        return None

    def _must_answer_now(self) -> bool:
        plan = self._plan
        if not plan.closes_before_deadline or plan.deadline_monotonic is None or self.first_token_at is None:
            return False
        now = time.monotonic()
        own = (now - self.first_token_at) / max(1, self._splitter.output_tokens - 1)
        pace = max(own, plan.seconds_per_token or 0.0)
        return plan.deadline_monotonic - now < plan.budget.answer_reserve_tokens * pace * _DEADLINE_PACE_MARGIN

    def _due(self, verdict: Verdict, outcome: ThinkingOutcome | None) -> list[CandidateEvent]:
        """Deltas of this step, with the end of the thought between the two kinds."""
        events: list[CandidateEvent] = list(self._splitter.take(final=verdict in _FINISH_OF_VERDICT))
        if outcome is not None:
            thoughts = sum(isinstance(event, Delta) and event.is_thought for event in events)
            events.insert(thoughts, self._thought_ended(outcome))
        if self.first_answer_at is None and self._splitter.answer_tokens:
            self.first_answer_at = time.monotonic()
        return events

    def _thought_ended(self, outcome: ThinkingOutcome) -> ThoughtEnded:
        self._outcome = outcome
        return ThoughtEnded(self._index, outcome, self._splitter.thought_tokens)

    def _end(self, reason: FinishReason) -> CandidateEnd:
        splitter = self._splitter
        counted = self._runs_counted == self._runs
        return CandidateEnd(
            candidate_index=self._index,
            finish_reason=reason,
            outcome=self._outcome or ThinkingOutcome.DISABLED,
            usage=Usage(
                prompt_tokens=len(self._plan.context.prompt_token_ids),
                cached_tokens=self._cached_tokens,
                thought_tokens=splitter.thought_tokens,
                answer_tokens=splitter.answer_tokens,
                marker_tokens=splitter.marker_tokens,
                drafted_tokens=self._drafted_tokens if counted else None,
                accepted_tokens=self._accepted_tokens if counted else None,
                recomputed_tokens=self._recomputed_tokens,
            ),
            matched_stop=splitter.matched_stop,
        )


async def generate(
    engine: Engine, plan: Plan, prices: PriceList, generation_id: str, arrived_monotonic: float
) -> AsyncGenerator[Event, None]:
    """All candidates of a call, merged; the last event is Finished. Closing it aborts the engine's work."""
    count = plan.request.output.candidate_count
    candidates = [Candidate(engine, plan, generation_id, index) for index in range(count)]
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
    yield Finished(tuple(ends), usage, prices.cost(usage), _timing(candidates, arrived_monotonic))


async def _merged(candidates: list[Candidate]) -> AsyncGenerator[CandidateEvent, None]:
    """Events of several candidates as they come. A failure of one ends all."""
    # Bounded: a caller that reads slowly slows the candidates' readers, not the server's memory.
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
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)


def _timing(candidates: list[Candidate], arrived: float) -> Timing:
    firsts = [c.first_token_at for c in candidates if c.first_token_at is not None]
    answers = [c.first_answer_at for c in candidates if c.first_answer_at is not None]
    return Timing(
        queue_seconds=max(c.queue_seconds for c in candidates),
        first_token_seconds=min(firsts) - arrived if firsts else None,
        first_answer_seconds=min(answers) - arrived if answers else None,
        total_seconds=time.monotonic() - arrived,
    )
