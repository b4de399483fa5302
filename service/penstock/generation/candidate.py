"""One candidate of a call over engine runs: the thought is closed where it must be, deaths of the engine are survived.

A continuation is a new engine run whose prompt is the original prompt plus every token already kept. Closing a thought
(at the budget, before the deadline, because the caller said so, after a stray end of turn), a changed budget, going on
without a re-opened think section or an end that comes before the minimum, and going on after the engine died are all
that one thing. The engine's own way to close a thought at the budget is used where it has one, and checked here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from penstock.engine.base import Engine
from penstock.errors import ConstraintLost, EngineDied, EngineDown, EngineRefused
from penstock.generation.output_parser import OutputParser, ParserSettings, StepAction
from penstock.telemetry.hooks import NO_CANDIDATE_HOOKS, CandidateHooks, Cause
from penstock.types import (
    CandidateEnd,
    Continued,
    Delta,
    EngineChunk,
    EngineRequest,
    EngineStop,
    FinishReason,
    GenerationPlan,
    Interrupted,
    ThinkingOutcome,
    ThoughtEnded,
    Usage,
)

_FINISH_OF = {
    StepAction.EOS: FinishReason.STOP,
    StepAction.STOP_TOKEN: FinishReason.STOP_TOKEN,
    StepAction.STOP_STRING: FinishReason.STOP_STRING,
    StepAction.MAX_OUTPUT_TOKENS: FinishReason.MAX_OUTPUT_TOKENS,
    StepAction.CANCELLED: FinishReason.CANCELLED,
    StepAction.DRAINED: FinishReason.DRAINED,
}
_OUTCOME_OF = {
    StepAction.CLOSE_THOUGHT_AT_BUDGET: ThinkingOutcome.BUDGET_REACHED,
    StepAction.CLOSE_THOUGHT_AFTER_EOS: ThinkingOutcome.NATURAL_END,
    StepAction.CLOSE_THOUGHT_BY_CLIENT: ThinkingOutcome.FINISHED_BY_CLIENT,
    StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE: ThinkingOutcome.DEADLINE,
}
# Of a thought that the end of the output cuts. One that is drained goes on elsewhere: no event says that it is over.
_CUT_OF = {
    StepAction.MAX_OUTPUT_TOKENS: ThinkingOutcome.MAX_OUTPUT_TOKENS,
    StepAction.CANCELLED: ThinkingOutcome.CANCELLED,
}
_CAUSE_OF = {
    StepAction.CLOSE_THOUGHT_AT_BUDGET: Cause.BUDGET,
    StepAction.CLOSE_THOUGHT_AFTER_EOS: Cause.END_OF_TURN,
    StepAction.CLOSE_THOUGHT_BY_CLIENT: Cause.CLIENT,
    StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE: Cause.DEADLINE,
    StepAction.BUDGET_CHANGED: Cause.BUDGET_CHANGED,
    StepAction.REOPENED: Cause.REOPENED,
    StepAction.TOO_SHORT: Cause.TOO_SHORT,
    StepAction.ENGINE_RAN_OUT: Cause.STRAY_MARKERS,
}
# Share of the time that the answer is expected to need which is kept free before the deadline.
_DEADLINE_PACE_MARGIN = 1.25
# Distinct random streams for the runs of one candidate: a continuation must not draw the same numbers again.
_SEED_STRIDE = 0x9E3779B1
# A thought that is closed, a stray marker: a few runs may add nothing. More in a row would go on for ever.
_MAX_RUNS_WITHOUT_TOKENS = 8
CandidateEvent = Delta | ThoughtEnded | Interrupted | Continued | CandidateEnd
T = TypeVar("T")


@dataclass(eq=False)
class GenerationControl:
    """What is wanted of a running generation; read at every engine step, written by Interact and by draining."""

    finish_thinking: bool = False
    thought_budget_tokens: int | None = None
    """A new budget, counted from the start of the thought; -1 is as much as leaves the reserve."""
    cancelled: bool = False
    drained: bool = False
    _waits: set[asyncio.Timeout] = field(default_factory=set)

    def cancel(self) -> None:
        """End the generation; it is not wanted any more."""
        self.cancelled = True
        self._end_waits()

    def drain(self) -> None:
        """End the generation here; it goes on elsewhere."""
        self.drained = True
        self._end_waits()

    @property
    def ends(self) -> bool:
        """Whether the generation is to end before its time."""
        return self.cancelled or self.drained

    async def unless_it_ends(self, begin: Callable[[], Awaitable[T]]) -> T | None:
        """Return what is waited for, or None as soon as the generation is to end.

        For what may take long without an engine step: the queue, a long prompt, an engine that restarts.
        """
        if self.ends:
            return None
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    return await begin()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            return None

    def _end_waits(self) -> None:
        for wait in self._waits:
            wait.reschedule(0.0)


class Candidate:
    """One candidate: its splitter, and the engine runs that feed it."""

    def __init__(
        self,
        engine: Engine,
        plan: GenerationPlan,
        generation_id: str,
        index: int,
        control: GenerationControl,
        state: Mapping[str, Any] | None = None,
        hooks: CandidateHooks = NO_CANDIDATE_HOOKS,
    ) -> None:
        self._engine = engine
        self._hooks = hooks
        self._cause = Cause.START
        self._plan = plan
        self._id = f"{generation_id}-{index}"
        self._index = index
        self._control = control
        self._runs = 0
        self._run_prompt_tokens = 0
        self._run_gave_tokens = True
        self._run_began_at = 0
        self._runs_without_tokens = 0
        self._deaths = 0
        self._banned: tuple[int, ...] = ()
        self._markers_are_banned = False
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
        # Set once it is over. Of several candidates some may be when the others are drained.
        self._ended: tuple[FinishReason, str] | None = None
        output = plan.request.output
        self._parser = OutputParser(
            ParserSettings(
                markers=engine.card.markers,
                eos_ids=engine.card.eos_ids,
                thought_budget_tokens=plan.budget.thought_tokens,
                max_output_tokens=plan.budget.max_output_tokens,
                min_output_tokens=output.min_tokens,
                stop_strings=output.stop_strings,
                stop_token_ids=frozenset(output.stop_token_ids),
                trims_answer_start=output.structured is None,
            ),
            engine.tokenizer.token_bytes,
            candidate_index=index,
            in_thought=plan.in_thought,
            may_open=plan.may_open,
        )
        if state is not None:
            self._restore(state)

    def state(self) -> dict[str, Any]:
        """All that a candidate of another process needs to go on with this one; plain data."""
        return {
            "split": self._parser.state(),
            "outcome": self._outcome.value if self._outcome else None,
            "runs": self._runs,
            "banned": self._banned,
            "tokens": [self._cached_tokens, self._recomputed_tokens],
            "ended": [self._ended[0].value, self._ended[1]] if self._ended else None,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._cause = Cause.RESUME
        self._parser.restore(state["split"])
        self._outcome = ThinkingOutcome(state["outcome"]) if state["outcome"] else None
        self._runs, self._banned = state["runs"], tuple(state["banned"])
        self._markers_are_banned = bool(self._banned)
        self._cached_tokens, self._recomputed_tokens = state["tokens"]
        if state.get("ended"):  # Servers of an earlier version did not say.
            reason, matched_stop = state["ended"]
            self._ended = FinishReason(reason), matched_stop

    async def events(self) -> AsyncGenerator[CandidateEvent, None]:
        """Deltas, the end of the thought, interruptions, and last the end. Closing it aborts the engine's work.

        Raises PoisonousRequest for a request that engines die on, EngineDown where there will be no engine again.
        """
        if self._parser.in_thought and self._parser.thought_budget_tokens == 0:
            self._parser.close_thought(self._plan.closing_ids)
            yield self._thought_ended(ThinkingOutcome.BUDGET_REACHED)
        while self._ended is None:
            async for event in self._await_engine():
                yield event
            request = None if self._control.ends else self._next_run()
            if request is None:
                break
            action, chunk, run_end, suspected = StepAction.GO_ON, None, "cancelled", False
            try:
                async with aclosing(self._engine.stream(request)) as chunks:
                    given = await self._control.unless_it_ends(partial(anext, chunks, None))
                    while given is not None:
                        chunk = given
                        self._note(chunk)
                        action, events = self._process_chunk(chunk)
                        for event in events:
                            yield event
                        if action is not StepAction.GO_ON:
                            break
                        given = await anext(chunks, None)
                run_end = self._run_end(action, chunk)
            except EngineDown as error:
                run_end, suspected = "engine_died", isinstance(error, EngineDied) and error.suspected
            except ConstraintLost:
                run_end = "constraint_lost"
            finally:
                self._hooks.run_ended(run_end, chunk)
            if action in _FINISH_OF:
                yield self._end(_FINISH_OF[action])
                return
            self._go_on_after(run_end, action, suspected=suspected)
        for event in self._end_between_runs():
            yield event

    def _end_between_runs(self) -> list[CandidateEvent]:
        """Tell what is left where no run goes on: it is cancelled or drained, the window is full, or it was over."""
        if self._ended is not None:
            # Another server ended and counted it.
            return [self._end_of(*self._ended)]
        early = self._early_end()
        action = StepAction.MAX_OUTPUT_TOKENS if early is StepAction.GO_ON else early
        return [*self._events_for(action, was_thinking=self._parser.in_thought), self._end(_FINISH_OF[action])]

    def _run_end(self, action: StepAction, chunk: EngineChunk | None) -> str:
        """Name how a run ended for the trace; without a chunk, it was given up while it was waited for."""
        return (action if chunk is not None else self._early_end()).name.lower()

    def _go_on_after(self, run_end: str, action: StepAction, *, suspected: bool) -> None:
        """Prepare the continuation of a run that ended so. Raises EngineRefused for an engine that makes none."""
        if self._control.ends:
            return
        self._check_progress()
        if run_end == "engine_died":
            # Whether this run is suspected of the death is the supervisor's to say.
            self._deaths = self._deaths + 1 if suspected else 0
            self._cause = Cause.ENGINE_DEATH
            return
        if run_end == "constraint_lost":
            # What came before holds: the next run begins after it, with the constraint advanced so far.
            self._cause = Cause.CONSTRAINT_LOST
            return
        self._cause = _CAUSE_OF.get(action, Cause.START)
        if action is StepAction.TOO_SHORT and self._markers_are_banned and not self._run_counted:
            raise EngineRefused("the engine ends the answer before its minimum")
        if action in (StepAction.REOPENED, StepAction.TOO_SHORT, StepAction.ENGINE_RAN_OUT):
            self._ban_markers()

    def _ban_markers(self) -> None:
        """Markers have no place in the rest of the answer: neither a second thought nor strays that cost tokens.

        Those that the caller named as stops may still come, and end it. Then every token of a run counts, so that the
        engine's own minimum is ours.
        """
        markers = self._engine.card.markers
        if markers is not None:
            stops = self._plan.request.output.stop_token_ids
            self._banned = tuple(i for i in (markers.open_id, markers.close_id) if i not in stops)
            self._markers_are_banned = True

    @property
    def _may_open_thought(self) -> bool:
        """Whether the next run may begin with the one and only thought."""
        return self._parser.may_think and not self._markers_are_banned

    @property
    def _run_counted(self) -> bool:
        """Whether this run gave any token that counts."""
        return self._parser.output_tokens > self._run_began_at

    def _next_run(self) -> EngineRequest | None:
        """What is left of the budgets, after everything that the model must see; None where the window is full."""
        plan, parser, output = self._plan, self._parser, self._plan.request.output
        left = plan.budget.max_output_tokens - parser.output_tokens
        # A thought's own closing marker, and before it the opening one where the model may still write that.
        most = left + (1 if parser.in_thought else 2 if parser.may_think else 0)
        forces = self._engine.card.forces_budget and len(plan.closing_ids) == 1
        context, constrained = self._context_beside(left), 0
        if output.structured is not None and not parser.in_thought:
            constrained = len(context) - parser.answer_start
        seed = plan.sampling.seed
        if seed is not None:
            seed = (seed + self._index + self._runs * _SEED_STRIDE) % 2**63
        self._runs += 1
        self._run_gave_tokens = False
        self._run_began_at = parser.output_tokens
        prompt = plan.context.prompt_token_ids + tuple(context)
        self._run_prompt_tokens = len(prompt)
        most = min(most, plan.context.window_tokens - len(prompt))
        if most < 1:
            return None
        request = EngineRequest(
            request_id=f"{self._id}-{self._runs}",
            prompt_token_ids=prompt,
            max_tokens=most,
            min_tokens=max(0, min(output.min_tokens - parser.output_tokens, left, most)),
            sampling=replace(plan.sampling, seed=seed),
            thought_budget_tokens=(
                parser.thought_budget_tokens - parser.thought_tokens if parser.in_thought and forces else None
            ),
            # A run that begins in a thought knows nothing of the caller's stops: they end the answer only, and the
            # splitter finds them there. Where a thought can no longer be opened, the engine's minimum holds them back.
            stop_token_ids=() if parser.in_thought or self._may_open_thought else output.stop_token_ids,
            top_logprobs=output.top_logprobs,
            structured=output.structured,
            constrained_prompt_tokens=constrained,
            banned_token_ids=self._banned,
            cache_salt=plan.request.context.cache_salt,
            caller_id=plan.request.caller_id,
            deaths=self._deaths,
            accountable=plan.accountable,
            continues=parser.output_tokens > 0,
        )
        headers = self._hooks.run_began(self._cause, request)
        return replace(request, trace_headers=headers) if headers else request

    def _context_beside(self, left: int) -> list[int]:
        """All tokens after the prompt, with room for `left` more.

        The plan counts the markers around the thought, and not the strays that a model may write into its answer: where
        the window has no place for those, they are left out.
        """
        parser, context, markers = self._parser, self._parser.context_ids, self._engine.card.markers
        room = self._plan.context.window_tokens - len(self._plan.context.prompt_token_ids)
        if markers is None or parser.in_thought or len(context) + left <= room:
            return context
        strays = (markers.open_id, markers.close_id)
        return context[: parser.answer_start] + [i for i in context[parser.answer_start :] if i not in strays]

    def _check_progress(self) -> None:
        """Count runs in a row that added no token to the output, so that every generation ends."""
        self._runs_without_tokens = 0 if self._run_counted else self._runs_without_tokens + 1
        if self._runs_without_tokens > _MAX_RUNS_WITHOUT_TOKENS:
            raise EngineRefused(f"{self._runs_without_tokens} engine runs in a row gave no token")

    async def _await_engine(self) -> AsyncGenerator[CandidateEvent, None]:
        """Wait until the engine takes work, and say so before and after where it does not at once."""
        interruption = self._engine.interruption()
        if interruption is None or self._control.ends:
            await self._control.unless_it_ends(self._engine.wait_until_available)
            return
        began = time.monotonic()
        yield Interrupted(self._index, interruption.reason, interruption.expected_seconds)
        with self._hooks.waiting_for_engine():
            await self._control.unless_it_ends(self._engine.wait_until_available)
        if not self._control.ends:
            yield Continued(self._index, time.monotonic() - began)

    def _note(self, chunk: EngineChunk) -> None:
        if not self._run_gave_tokens:
            self._run_gave_tokens = True
            self._hooks.run_answered(chunk)
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
            self._hooks.first_token(is_thought=self._parser.in_thought)

    def _process_chunk(self, chunk: EngineChunk) -> tuple[StepAction, list[CandidateEvent]]:
        """One engine step: what must happen next, and what there is to say."""
        parser = self._parser
        was_thinking = parser.in_thought
        action = parser.push(chunk.token_ids, chunk.logprobs)
        if action is StepAction.GO_ON and chunk.stop is not None:
            action = self._action_of_stop(chunk.stop)
        if action is StepAction.GO_ON:
            action = self._apply_control()
        return action, self._events_for(action, was_thinking=was_thinking)

    def _events_for(self, action: StepAction, *, was_thinking: bool) -> list[CandidateEvent]:
        """Tell what there is to say once this verdict is known, and close the thought where it must be."""
        parser = self._parser
        goes_on = action is StepAction.GO_ON  # as nearly every step does: nothing to look up then
        outcome = None if goes_on else _OUTCOME_OF.get(action)
        ends = not goes_on and action in _FINISH_OF
        if outcome is not None:
            parser.close_thought(self._plan.closing_ids)
        elif ends and parser.in_thought:
            outcome = _CUT_OF.get(action)
        elif self._outcome is None and not parser.in_thought and (was_thinking or parser.marker_tokens):
            spent = parser.thought_tokens >= parser.thought_budget_tokens
            outcome = ThinkingOutcome.BUDGET_REACHED if spent else ThinkingOutcome.NATURAL_END
        # A drained candidate goes on elsewhere: a character or stop string under way must not be cut short here.
        events: list[CandidateEvent] = list(parser.pop_deltas(final=ends and action is not StepAction.DRAINED))
        if outcome is not None:
            thoughts = sum(isinstance(event, Delta) and event.is_thought for event in events)
            events.insert(thoughts, self._thought_ended(outcome))
        if self.first_answer_at is None and parser.answer_tokens:
            self.first_answer_at = time.monotonic()
            self._hooks.first_answer_token()
        return events

    def _action_of_stop(self, stop: EngineStop) -> StepAction:
        """The engine ended by itself where the splitter saw no reason to."""
        if self._parser.in_thought:
            room = self._parser.output_tokens < self._plan.budget.max_output_tokens
            return StepAction.CLOSE_THOUGHT_AFTER_EOS if room else StepAction.MAX_OUTPUT_TOKENS
        if stop is EngineStop.LENGTH:
            # Stray markers in the answer count for the engine and not for the caller: there may be some left to give.
            # A run without markers that gave nothing that counts is the last one, so that this always ends.
            gave = self._run_counted or not self._markers_are_banned
            room = gave and self._parser.output_tokens < self._plan.budget.max_output_tokens
            return StepAction.ENGINE_RAN_OUT if room else StepAction.MAX_OUTPUT_TOKENS
        return StepAction.STOP_TOKEN if stop is EngineStop.STOP_TOKEN else StepAction.EOS

    def _apply_control(self) -> StepAction:
        """What the caller, the clock or a draining server want before the next token."""
        control, parser, plan = self._control, self._parser, self._plan
        if control.ends or not parser.in_thought:
            return self._early_end()
        if control.finish_thinking:
            return StepAction.CLOSE_THOUGHT_BY_CLIENT
        if self._must_answer_now():
            return StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE
        budget = control.thought_budget_tokens
        if budget is None:
            return StepAction.GO_ON
        most = plan.budget.max_output_tokens - plan.budget.answer_reserve_tokens
        budget = most if budget == -1 else min(budget, most)
        if budget == parser.thought_budget_tokens:
            return StepAction.GO_ON
        parser.thought_budget_tokens = budget
        return StepAction.CLOSE_THOUGHT_AT_BUDGET if parser.thought_tokens >= budget else StepAction.BUDGET_CHANGED

    def _early_end(self) -> StepAction:
        if self._control.cancelled:
            return StepAction.CANCELLED
        return StepAction.DRAINED if self._control.drained else StepAction.GO_ON

    def _must_answer_now(self) -> bool:
        plan = self._plan
        if not plan.closes_before_deadline or plan.deadline_monotonic is None or self.first_token_at is None:
            return False
        now = time.monotonic()
        own = (now - self.first_token_at) / max(1, self._parser.output_tokens - 1)
        pace = max(own, plan.seconds_per_token or 0.0)
        return plan.deadline_monotonic - now < plan.timed_answer_tokens * pace * _DEADLINE_PACE_MARGIN

    def _thought_ended(self, outcome: ThinkingOutcome) -> ThoughtEnded:
        self._outcome = outcome
        self._hooks.thought_ended(outcome, self._parser.thought_tokens)
        return ThoughtEnded(self._index, outcome, self._parser.thought_tokens)

    def usage(self) -> Usage:
        """What was used so far."""
        parser, counted = self._parser, self._runs_counted == self._runs
        return Usage(
            # A generation that ended before it reached an engine has computed nothing.
            prompt_tokens=len(self._plan.context.prompt_token_ids) if self._runs else 0,
            cached_tokens=self._cached_tokens,
            thought_tokens=parser.thought_tokens,
            answer_tokens=parser.answer_tokens,
            marker_tokens=parser.marker_tokens,
            drafted_tokens=self._drafted_tokens if counted else None,
            accepted_tokens=self._accepted_tokens if counted else None,
            recomputed_tokens=self._recomputed_tokens,
        )

    def _cut_outcome(self, reason: FinishReason) -> ThinkingOutcome:
        if not self._parser.in_thought:
            return ThinkingOutcome.DISABLED
        is_full = reason is FinishReason.MAX_OUTPUT_TOKENS
        return ThinkingOutcome.MAX_OUTPUT_TOKENS if is_full else ThinkingOutcome.CANCELLED

    def _end(self, reason: FinishReason) -> CandidateEnd:
        if reason is not FinishReason.DRAINED:
            self._ended = reason, self._parser.matched_stop
        end = self._end_of(reason, self._parser.matched_stop)
        self._hooks.ended(end)
        return end

    def _end_of(self, reason: FinishReason, matched_stop: str) -> CandidateEnd:
        return CandidateEnd(
            candidate_index=self._index,
            finish_reason=reason,
            outcome=self._outcome or self._cut_outcome(reason),
            usage=self.usage(),
            matched_stop=matched_stop,
        )
