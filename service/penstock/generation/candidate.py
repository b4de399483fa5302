"""Run one candidate of a call over its engine runs: close the thought where required, and survive engine deaths.

A continuation is a new engine run whose prompt is the original prompt plus every token kept so far. It is used to close
a thought (at the budget, at a stop pattern, before the deadline, for the client, after a stray end of turn), to change
the budget, to go on without a re-opened think section or an end below the minimum, and to go on after an engine death.
Where the engine can close a thought at the budget itself, that is used and checked here.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from penstock.engine.base import Engine
from penstock.errors import ConstraintLost, EngineDied, EngineDown, EngineRefused, GenerationNotFound
from penstock.generation.control import GenerationRun
from penstock.generation.early_exit import AnswerProbe, as_answer, logprobs_needed, probe_request
from penstock.generation.output_parser import OutputParser, ParserSettings, StepAction, ThoughtMark
from penstock.generation.tool_planning import tool_call_parser, tool_call_token
from penstock.telemetry.hooks import Cause
from penstock.types import (
    CandidateEnd,
    Continued,
    Delta,
    EarlyExitReport,
    EngineChunk,
    EngineRequest,
    EngineStop,
    FinishReason,
    GenerationPlan,
    Interrupted,
    ThinkingOutcome,
    ThoughtEnded,
    ToolEvent,
    Usage,
)

_FINISH_OF = {
    StepAction.EOS: FinishReason.STOP,
    StepAction.STOP_TOKEN: FinishReason.STOP_TOKEN,
    StepAction.STOP_STRING: FinishReason.STOP_STRING,
    StepAction.MAX_OUTPUT_TOKENS: FinishReason.MAX_OUTPUT_TOKENS,
    StepAction.CALLS_MADE: FinishReason.TOOL_CALLS,
    StepAction.CANCELLED: FinishReason.CANCELLED,
    StepAction.DRAINED: FinishReason.DRAINED,
}
_OUTCOME_OF = {
    StepAction.CLOSE_THOUGHT_AT_BUDGET: ThinkingOutcome.BUDGET_REACHED,
    StepAction.CLOSE_THOUGHT_AT_PATTERN: ThinkingOutcome.STOP_PATTERN,
    StepAction.CLOSE_THOUGHT_CONVERGED: ThinkingOutcome.CONVERGED,
    StepAction.CLOSE_THOUGHT_AFTER_EOS: ThinkingOutcome.NATURAL_END,
    StepAction.CLOSE_THOUGHT_BY_CLIENT: ThinkingOutcome.FINISHED_BY_CLIENT,
    StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE: ThinkingOutcome.DEADLINE,
}
# Reasons to end that are TOOL_CALLS where the output has a complete call.
_ENDS_BY_MODEL = (FinishReason.STOP, FinishReason.STOP_TOKEN, FinishReason.STOP_STRING)
# Outcomes of a thought that the end of the output cuts. A drained one continues elsewhere, so no event reports its end.
_CUT_OF = {
    StepAction.MAX_OUTPUT_TOKENS: ThinkingOutcome.MAX_OUTPUT_TOKENS,
    StepAction.CANCELLED: ThinkingOutcome.CANCELLED,
}
_CAUSE_OF = {
    StepAction.CLOSE_THOUGHT_AT_BUDGET: Cause.BUDGET,
    StepAction.CLOSE_THOUGHT_AT_PATTERN: Cause.STOP_PATTERN,
    StepAction.CLOSE_THOUGHT_CONVERGED: Cause.CONVERGED,
    StepAction.CLOSE_THOUGHT_AFTER_EOS: Cause.END_OF_TURN,
    StepAction.CLOSE_THOUGHT_BY_CLIENT: Cause.CLIENT,
    StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE: Cause.DEADLINE,
    StepAction.CLOSE_THOUGHT_FOR_CALL: Cause.TOOL_CALL,
    StepAction.BUDGET_CHANGED: Cause.BUDGET_CHANGED,
    StepAction.REOPENED: Cause.REOPENED,
    StepAction.MARKER_IN_CALL: Cause.TOOL_CALL,
    StepAction.STOP_IN_CALL: Cause.TOOL_CALL,
    StepAction.TOO_SHORT: Cause.TOO_SHORT,
    StepAction.ENGINE_RAN_OUT: Cause.STRAY_MARKERS,
}
# After the first stray marker the model spells them in plain tokens: each one would cost a continuation.
_BANS_MARKERS = (
    StepAction.REOPENED,
    StepAction.MARKER_IN_CALL,
    StepAction.TOO_SHORT,
    StepAction.ENGINE_RAN_OUT,
)
# Multiple of the answer's expected time that is kept free before the deadline.
_DEADLINE_PACE_MARGIN = 1.25
# Distance between the seeds of a candidate's runs: a continuation must not draw the same random numbers again.
_SEED_STRIDE = 0x9E3779B1
# A few runs in a row may add no token (a closed thought, a stray marker). More of them would never end.
_MAX_RUNS_WITHOUT_TOKENS = 8
CandidateEvent = Delta | ToolEvent | ThoughtEnded | Interrupted | Continued | CandidateEnd


class Candidate:
    """Run one candidate: parse the tokens of its engine runs and start continuations."""

    def __init__(
        self,
        engine: Engine,
        plan: GenerationPlan,
        index: int,
        run: GenerationRun,
    ) -> None:
        self._engine = engine
        self._hooks = run.hooks.candidate(index)
        self._cause = Cause.START
        self._plan = plan
        self._id = f"{run.generation_id}-{index}"
        self._index = index
        self._control = run.control
        self._runs = 0
        self._run_prompt_tokens = 0
        self._run_gave_tokens = True
        self._run_began_at = 0
        self._runs_without_tokens = 0
        self._deaths = plan.deaths
        # Of AUTO's decision, which the first candidate counts for all.
        self._decision_tokens = plan.probe_tokens if index == 0 else 0
        self._banned: tuple[int, ...] = ()
        self._markers_are_banned = False
        self._was_too_short = False
        self._cached_tokens = 0
        self._recomputed_tokens = 0
        # The engine reports drafts at the end of a run: after a run that was cut short, the call has no draft counts.
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._runs_counted = 0
        self.queue_seconds = 0.0
        self.first_token_at: float | None = None
        self.first_answer_at: float | None = None
        self._outcome: ThinkingOutcome | None = None if plan.in_thought or plan.may_open else ThinkingOutcome.DISABLED
        # Set at the end. When a call is drained, some of its candidates may have ended already.
        self._ended: tuple[FinishReason, str] | None = None
        self._exit = plan.early_exit
        self._conditions = run.conditions
        self._probe = AnswerProbe(engine, plan, plan.early_exit, run.conditions) if plan.early_exit else None
        # Where the thought ends if the probe under way converges, and what came after it, which is not sent until then.
        self._mark: ThoughtMark | None = None
        self._held: list[CandidateEvent] = []
        self._answering = run.begun if index == 0 else None
        self._forgotten_tokens = 0
        self._parser = OutputParser(
            self._parser_settings(),
            engine.tokenizer.token_bytes,
            in_thought=plan.in_thought,
            may_open=plan.may_open,
            tools=tool_call_parser(plan, engine.card),
        )
        if run.states:
            try:
                self._restore(run.states[index])
            except (KeyError, TypeError, ValueError) as error:
                raise GenerationNotFound("resume_token is of another version of the service") from error

    def _parser_settings(self) -> ParserSettings:
        plan, card, output = self._plan, self._engine.card, self._plan.request.output
        return ParserSettings(
            markers=card.markers,
            eos_ids=card.eos_ids,
            thought_budget_tokens=plan.budget.thought_tokens,
            max_output_tokens=plan.budget.max_output_tokens,
            min_output_tokens=output.min_tokens,
            stop_strings=output.stop_strings,
            stop_token_ids=frozenset(output.stop_token_ids),
            trims_answer_start=plan.structured is None,
            tool_call_id=tool_call_token(self._engine.tokenizer) if plan.max_tool_calls else None,
            stop_patterns=plan.request.thinking.stop_patterns,
            marker_logprob=math.log(plan.early_exit.marker_probability) if plan.early_exit else None,
            is_greedy=plan.sampling.temperature == 0,
            gives_logprobs=output.top_logprobs is not None,
            top_logprobs=output.top_logprobs,
            candidate_index=self._index,
            call_id_prefix=f"call_{self._id}-",
        )

    def state(self) -> dict[str, Any]:
        """Return plain data from which another process can continue this candidate."""
        return {
            "split": self._parser.state(),
            "outcome": self._outcome.value if self._outcome else None,
            "runs": self._runs,
            "banned": self._banned,
            "tokens": [self._cached_tokens, self._recomputed_tokens],
            "ended": [self._ended[0].value, self._ended[1]] if self._ended else None,
            "control": self._control.state(),
            "probe": self._probe.state() if self._probe is not None else None,
            "decision_tokens": self._decision_tokens + self._forgotten_tokens,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._cause = Cause.RESUME
        self._parser.restore(state["split"])
        self._outcome = ThinkingOutcome(state["outcome"]) if state["outcome"] else None
        self._runs, self._banned = state["runs"], tuple(state["banned"])
        self._markers_are_banned = bool(self._banned)
        self._cached_tokens, self._recomputed_tokens = state["tokens"]
        if "control" in state:  # not in those of earlier versions
            self._control.restore(state["control"])
        self._decision_tokens = state.get("decision_tokens", 0)
        if self._probe is not None and state.get("probe") is not None:
            self._probe.restore(state["probe"])
        if state["ended"]:
            reason, matched_stop = state["ended"]
            self._ended = FinishReason(reason), matched_stop

    async def events(self) -> AsyncGenerator[CandidateEvent, None]:
        """Yield deltas, the end of the thought, interruptions, and the end.

        To close the iterator aborts the engine's work. Raise PoisonousRequest for a request that killed engines,
        EngineDown where no engine will run again.
        """
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    yield event
        finally:
            if self._probe is not None:
                await self._probe.end()
            if self._answering is not None:
                await self._answering.close()

    async def _events(self) -> AsyncGenerator[CandidateEvent, None]:
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
                async with aclosing(self._stream(request)) as chunks:
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
            await self._go_on_after(run_end, action, suspected=suspected)
        for event in self._end_between_runs():
            yield event

    def _stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Return the chunks of a run; of a probe that converged it is under way already."""
        answering, self._answering = self._answering, None
        return self._engine.stream(request) if answering is None else answering.rest()

    def _end_between_runs(self) -> list[CandidateEvent]:
        """Return the last events where no run follows: cancelled, drained, window full, or ended before."""
        if self._ended is not None:
            # It ended, and was counted, on another server.
            return [self._end_of(*self._ended)]
        early = self._early_end()
        action = StepAction.MAX_OUTPUT_TOKENS if early is StepAction.GO_ON else early
        events = self._release() + self._events_for(action, was_thinking=self._parser.in_thought)
        return [*events, self._end(_FINISH_OF[action])]

    def _run_end(self, action: StepAction, chunk: EngineChunk | None) -> str:
        """Return how a run ended, for the trace. Without a chunk it was given up before its first token."""
        return (action if chunk is not None else self._early_end()).name.lower()

    async def _go_on_after(self, run_end: str, action: StepAction, *, suspected: bool) -> None:
        """Prepare the continuation after a run. Raise EngineRefused where the engine makes no progress."""
        if self._control.ends:
            return
        if run_end == "engine_died":
            # The supervisor decides whether this run is suspected of the death, or the probe beside it.
            if self._probe is not None and await self._probe.caused_death():
                suspected = True
            self._deaths = self._deaths + 1 if suspected else 0
            self._cause = Cause.ENGINE_DEATH
            return
        self._check_progress()
        if run_end == "constraint_lost":
            # The tokens before are valid: the next run starts after them, with the constraint advanced that far.
            self._cause = Cause.CONSTRAINT_LOST
            return
        self._cause = _CAUSE_OF.get(action, Cause.START)
        if action is StepAction.TOO_SHORT:
            if self._was_too_short and self._markers_are_banned and not self._run_counted:
                raise EngineRefused("the engine ends the answer before its minimum")
            self._was_too_short = True
        if action in _BANS_MARKERS:
            self._ban_markers()

    def _ban_markers(self) -> None:
        """Ban think markers in the rest of the answer: a second thought, and stray markers that cost tokens.

        Markers that the caller named as stops are still allowed, and end the answer. From then on every token of a run
        counts, so that the engine's minimum equals the caller's.
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
    def _engine_stops(self) -> bool:
        """Whether the next run gets the caller's stops, to which the engine's minimum applies then.

        They end the answer only, where the parser finds them: not the thought, and not tool calls. After an end below
        the minimum the engine gets them in any case: else it would draw the same stop again.
        """
        if self._parser.in_thought or self._may_open_thought:
            return False
        is_below = self._parser.output_tokens < self._plan.request.output.min_tokens
        return not self._plan.max_tool_calls or (self._was_too_short and is_below)

    @property
    def _run_counted(self) -> bool:
        """Whether this run gave any token that counts."""
        return self._parser.output_tokens > self._run_began_at

    def _next_run(self) -> EngineRequest | None:
        """Return the next engine request, with what is left of the budgets; None where the window is full."""
        if self._answering is not None:
            self._runs += 1
            return self._begun(self._answering.request)
        plan, parser, output = self._plan, self._parser, self._plan.request.output
        left = plan.budget.max_output_tokens - parser.output_tokens
        # One more for the thought's closing marker, and one for the opening marker where the model may still write it.
        most = left + (1 if parser.in_thought else 2 if parser.may_think else 0)
        context, constrained = self._context_beside(left), 0
        if plan.structured is not None and not parser.in_thought:
            constrained = len(context) - parser.answer_start
        stops, seed = output.stop_token_ids, plan.sampling.seed
        if seed is not None:
            seed = (seed + self._index + self._runs * _SEED_STRIDE) % 2**63
        self._runs += 1
        prompt = plan.context.prompt_token_ids + tuple(context)
        most = min(most, plan.context.window_tokens - len(prompt))
        if most < 1:
            return None
        parser.engine_exits = self._exit is not None and self._exits_in_engine
        request = EngineRequest(
            request_id=f"{self._id}-{self._runs}",
            prompt_token_ids=prompt,
            max_tokens=most,
            min_tokens=max(0, min(output.min_tokens - parser.output_tokens, left, most)),
            sampling=replace(plan.sampling, seed=seed),
            thought_budget_tokens=(
                parser.thought_budget_tokens - parser.thought_tokens
                if parser.in_thought and self._forces_budget
                else None
            ),
            exit_probability=self._exit.marker_probability if self._exit and parser.engine_exits else None,
            thought_start=len(plan.context.prompt_token_ids),
            stop_token_ids=stops if self._engine_stops else (),
            top_logprobs=self._top_logprobs(),
            structured=plan.structured,
            constrained_prompt_tokens=constrained,
            banned_token_ids=(*self._banned, *sorted(self._engine.card.image_token_ids)),
            images=plan.context.images,
            cache_salt=plan.request.context.cache_salt,
            caller_id=plan.request.caller_id,
            deaths=self._deaths,
            accountable=plan.accountable,
            continues=parser.output_tokens > 0,
        )
        return self._begun(request)

    def _begun(self, request: EngineRequest) -> EngineRequest:
        """Note the start of a run, and return its request with the trace's headers."""
        self._run_gave_tokens = False
        self._run_began_at = self._parser.output_tokens
        self._run_prompt_tokens = len(request.prompt_token_ids)
        headers = self._hooks.run_began(self._cause, request)
        return replace(request, trace_headers=headers) if headers else request

    @property
    def _forces_budget(self) -> bool:
        """Whether the engine closes the thought at its budget: it forces the marker alone, without a message."""
        return self._engine.card.forces_budget and len(self._plan.closing_ids) == 1

    @property
    def _exits_in_engine(self) -> bool:
        """Whether the engine ends the next run's thought where the marker is likely. It needs a budget for that.

        It reads the probability after penalties, biases and the minimum have changed it, the service before.
        """
        if not (self._parser.in_thought and self._forces_budget and self._engine.card.forces_exit):
            return False
        sampling = self._plan.sampling
        changes = (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias)
        is_changed = any(changes) or sampling.repetition_penalty not in (None, 1.0)
        return not is_changed and not self._plan.request.output.min_tokens

    def _top_logprobs(self) -> int | None:
        """Return how many alternatives the engine tells: the caller's, and those that show the closing marker.

        Where the engine ends the thought itself, the marker that it forced tells its own probability and rank.
        """
        asked = self._plan.request.output.top_logprobs
        if self._exit is None or not self._parser.may_think:
            return asked
        return max(asked or 0, 0 if self._parser.engine_exits else logprobs_needed(self._exit))

    def _context_beside(self, left: int) -> list[int]:
        """Return all tokens after the prompt, such that `left` more fit.

        The plan reserves room for the markers around the thought, but not for stray markers in the answer: these are
        left out where the window has no room for them.
        """
        parser, context, markers = self._parser, self._parser.context_ids, self._engine.card.markers
        room = self._plan.context.window_tokens - len(self._plan.context.prompt_token_ids)
        if markers is None or parser.in_thought or len(context) + left <= room:
            return context
        strays = (markers.open_id, markers.close_id)
        return context[: parser.answer_start] + [i for i in context[parser.answer_start :] if i not in strays]

    def _check_progress(self) -> None:
        """Count consecutive runs without a new output token. Raise EngineRefused at the limit, to end at last."""
        self._runs_without_tokens = 0 if self._run_counted else self._runs_without_tokens + 1
        if self._runs_without_tokens > _MAX_RUNS_WITHOUT_TOKENS:
            raise EngineRefused(f"{self._runs_without_tokens} consecutive engine runs produced no token")

    async def _await_engine(self) -> AsyncGenerator[CandidateEvent, None]:
        """Wait until the engine takes work; report an interruption and its end where it does not at once."""
        for event in self._release():
            yield event
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
        """Parse one engine step. Return the next action and the events to send."""
        probe = self._probe
        if probe is None or not self._parser.in_thought:
            return self._process(chunk)
        # A place for a probe may be inside a step.
        action, events = StepAction.GO_ON, list[CandidateEvent]()
        for piece in self._lines_of(chunk):
            action, more = self._process_beside(probe, piece)
            events += more
            if action is not StepAction.GO_ON:
                break
        return action, events

    def _lines_of(self, chunk: EngineChunk) -> Iterator[EngineChunk]:
        """Yield a chunk in pieces, each of which ends with a line or with the chunk."""
        ids, token_bytes = chunk.token_ids, self._engine.tokenizer.token_bytes
        ends = [at for at, token_id in enumerate(ids[:-1], 1) if b"\n" in token_bytes(token_id)]
        for begin, end in pairwise([0, *ends, len(ids)]):
            yield EngineChunk(ids[begin:end], chunk.logprobs[begin:end], stop=chunk.stop if end == len(ids) else None)

    def _process(self, chunk: EngineChunk) -> tuple[StepAction, list[CandidateEvent]]:
        was_thinking = self._parser.in_thought
        action = self._action_of(chunk)
        if action is StepAction.CLOSE_THOUGHT_FOR_CALL:
            return self._begin_call()
        return action, self._events_for(action, was_thinking=was_thinking)

    def _action_of(self, chunk: EngineChunk) -> StepAction:
        action = self._parser.push(chunk.token_ids, chunk.logprobs)
        if action is StepAction.GO_ON and chunk.stop is not None:
            action = self._action_of_stop(chunk.stop)
        return self._apply_control() if action is StepAction.GO_ON else action

    def _process_beside(self, probe: AnswerProbe, chunk: EngineChunk) -> tuple[StepAction, list[CandidateEvent]]:
        """Process a piece of a thought beside its probes.

        While one is under way, what comes after its place is not sent: it is forgotten where the probe converges.
        """
        parser = self._parser
        action, events = self._process(chunk)
        if action is not StepAction.GO_ON or not parser.in_thought:
            probe.give_up()
            return action, self._release() + events
        self._held += events
        probe.check()
        if self._mark is not None and probe.has_converged:
            return self._converge(probe, self._mark)
        if self._mark is not None and probe.is_under_way:
            return action, []
        events = self._release()
        budget_left = self.thought_budget_tokens - parser.thought_tokens
        if probe.is_due(parser.thought_tokens, budget_left, at_line_end=parser.is_at_line_end):
            mark = parser.mark()
            if mark is not None and probe.start(self._probe_request(probe), parser.thought_tokens):
                self._mark = mark
        return action, events

    def _release(self) -> list[CandidateEvent]:
        """Return the events that were not sent while a probe was under way."""
        held, self._held, self._mark = self._held, [], None
        return held

    def _converge(self, probe: AnswerProbe, mark: ThoughtMark) -> tuple[StepAction, list[CandidateEvent]]:
        """End the thought where the probe was made, which goes on as the answer where it can."""
        parser = self._parser
        self._held, self._mark = [], None
        self._forgotten_tokens += parser.thought_tokens - mark.thought_tokens
        parser.rewind(mark)
        self._answering = probe.pop_converged()
        action = StepAction.CLOSE_THOUGHT_CONVERGED
        return action, self._events_for(action, was_thinking=True)

    def _probe_request(self, probe: AnswerProbe) -> EngineRequest:
        """Return the request of a probe behind the thought so far: the answer's own run where it may become that."""
        plan, parser = self._plan, self._parser
        assert plan.early_exit is not None
        prompt = (*plan.context.prompt_token_ids, *parser.context_ids, *plan.closing_ids)
        name = f"{self._id}-probe{parser.thought_tokens}"
        request = probe_request(self._engine, plan, prompt, plan.early_exit.answer_tokens, name)
        return as_answer(request, plan, parser.output_tokens) if probe.can_be_answer else request

    def _begin_call(self) -> tuple[StepAction, list[CandidateEvent]]:
        """Close the thought in which the model began a tool call, and go on with the call in the answer."""
        parser = self._parser
        # Without the closing message: the model ends the thought itself.
        parser.close_thought(self._plan.closing_ids[-1:])
        thought: list[CandidateEvent] = [*parser.pop_events(), self._thought_ended(ThinkingOutcome.NATURAL_END)]
        action = parser.begin_call()
        events = thought + self._events_for(action, was_thinking=True)
        return StepAction.CLOSE_THOUGHT_FOR_CALL if action is StepAction.GO_ON else action, events

    def _events_for(self, action: StepAction, *, was_thinking: bool) -> list[CandidateEvent]:
        """Return the events to send for an action, and close the thought where the action requires it."""
        parser = self._parser
        goes_on = action is StepAction.GO_ON  # The fast path: nearly every step goes on.
        outcome = None if goes_on else _OUTCOME_OF.get(action)
        ends = not goes_on and action in _FINISH_OF
        if outcome is not None:
            parser.close_thought(self._plan.closing_ids)
        elif ends and parser.in_thought:
            outcome = _CUT_OF.get(action)
        elif self._outcome is None and not parser.in_thought and (was_thinking or parser.marker_tokens):
            spent = parser.thought_tokens >= parser.thought_budget_tokens
            early = ThinkingOutcome.CONVERGED if parser.exited else ThinkingOutcome.NATURAL_END
            outcome = ThinkingOutcome.BUDGET_REACHED if spent else early
        # A drained candidate continues elsewhere: an incomplete character or stop string must not be flushed here.
        final = ends and action is not StepAction.DRAINED
        events: list[CandidateEvent] = list(parser.pop_events(final=final, was_cut=action in _CUT_OF))
        if outcome is not None:
            thoughts = sum(isinstance(event, Delta) and event.is_thought for event in events)
            events.insert(thoughts, self._thought_ended(outcome))
        if self.first_answer_at is None and (parser.answer_tokens or parser.tool_tokens):
            self.first_answer_at = time.monotonic()
            self._hooks.first_answer_token()
        return events

    def _action_of_stop(self, stop: EngineStop) -> StepAction:
        """Return the action for an engine run that ended where the parser found no reason to end it."""
        if self._parser.in_thought:
            room = self._parser.output_tokens < self._plan.budget.max_output_tokens
            return StepAction.CLOSE_THOUGHT_AFTER_EOS if room else StepAction.MAX_OUTPUT_TOKENS
        if stop is EngineStop.LENGTH:
            # Stray markers in the answer count for the engine but not for the caller, so output tokens may be left.
            # A run with banned markers that added no token is the last one, so that this always ends.
            gave = self._run_counted or not self._markers_are_banned
            room = gave and self._parser.output_tokens < self._plan.budget.max_output_tokens
            return StepAction.ENGINE_RAN_OUT if room else StepAction.MAX_OUTPUT_TOKENS
        if stop is EngineStop.STOP_TOKEN and self._plan.max_tool_calls:
            # The parser ends the answer at each stop token, except inside a tool call.
            return StepAction.STOP_IN_CALL
        return StepAction.STOP_TOKEN if stop is EngineStop.STOP_TOKEN else StepAction.EOS

    def _apply_control(self) -> StepAction:
        """Return the action that the client, the deadline or a draining server requires before the next token."""
        control, parser = self._control, self._parser
        if control.ends or not parser.in_thought:
            return self._early_end()
        if control.finish_thinking:
            return StepAction.CLOSE_THOUGHT_BY_CLIENT
        if self._must_answer_now():
            return StepAction.CLOSE_THOUGHT_BEFORE_DEADLINE
        budget = self.thought_budget_tokens
        if budget == parser.thought_budget_tokens:
            return StepAction.GO_ON
        parser.thought_budget_tokens = budget
        return StepAction.CLOSE_THOUGHT_AT_BUDGET if parser.thought_tokens >= budget else StepAction.BUDGET_CHANGED

    @property
    def may_think(self) -> bool:
        """Return whether the thought is under way or to come."""
        return self._ended is None and self._parser.may_think

    @property
    def thought_budget_tokens(self) -> int:
        """Return the budget that holds from the next engine step on: the client's, as far as the reserve leaves it."""
        asked, budget = self._control.thought_budget_tokens, self._plan.budget
        if asked is None or not self._parser.may_think:
            return self._parser.thought_budget_tokens
        most = budget.max_output_tokens - budget.answer_reserve_tokens
        return most if asked == -1 else min(asked, most)

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
        """Return the tokens used so far."""
        parser, counted = self._parser, self._runs_counted == self._runs
        return Usage(
            # A generation that never reached an engine used no prompt tokens.
            prompt_tokens=len(self._plan.context.prompt_token_ids) if self._runs else 0,
            cached_tokens=self._cached_tokens,
            thought_tokens=parser.thought_tokens,
            answer_tokens=parser.answer_tokens,
            tool_tokens=parser.tool_tokens,
            marker_tokens=parser.marker_tokens,
            drafted_tokens=self._drafted_tokens if counted else None,
            accepted_tokens=self._accepted_tokens if counted else None,
            recomputed_tokens=self._recomputed_tokens,
            image_tokens=self._plan.context.image_tokens if self._runs else 0,
            probe_tokens=self._decision_tokens
            + self._forgotten_tokens
            + (self._probe.tokens if self._probe is not None else 0),
        )

    def _cut_outcome(self, reason: FinishReason) -> ThinkingOutcome:
        if not self._parser.in_thought:
            return ThinkingOutcome.DISABLED
        is_full = reason is FinishReason.MAX_OUTPUT_TOKENS
        return ThinkingOutcome.MAX_OUTPUT_TOKENS if is_full else ThinkingOutcome.CANCELLED

    def _end(self, reason: FinishReason) -> CandidateEnd:
        if reason in (FinishReason.STOP, FinishReason.MAX_OUTPUT_TOKENS) and self._parser.matched_stop:
            # Text that may begin a call, such as `<tool`, is searched for stops once it is known that it does not.
            reason = FinishReason.STOP_STRING
        if reason in _ENDS_BY_MODEL and self._parser.complete_calls:
            reason = FinishReason.TOOL_CALLS
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
            early_exit=self._early_exit_report(),
        )

    def _early_exit_report(self) -> EarlyExitReport | None:
        if self._probe is None:
            return None
        saved = None
        if self._outcome is ThinkingOutcome.CONVERGED:
            budget = self._parser.thought_budget_tokens
            saved = self._conditions.lengths.saved_tokens(self._parser.thought_tokens, budget)
        return EarlyExitReport(self._probe.probes, saved)
