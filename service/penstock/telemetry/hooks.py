"""Define the telemetry hooks that the service calls. The hooks here do nothing; OpenTelemetry overrides what it needs.

    TelemetryHooks --call()--> CallHooks --generation()--> GenerationHooks --candidate()--> CandidateHooks

They are called a few times per call and never per token, so that tracing costs little and no tracing costs nothing.
Hooks must not raise and must not wait.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from penstock.engine.base import EngineLoad
from penstock.engine.expert_load.statistics import ExpertLoad
from penstock.types import CandidateEnd, EngineChunk, EngineRequest, Event, Finished, GenerationPlan, ThinkingOutcome

Headers = Mapping[str, str]


class Cause(enum.Enum):
    """Enumerate why an engine run starts. All but START are continuations."""

    START = "start"
    BUDGET = "budget"
    BUDGET_CHANGED = "budget_changed"
    STOP_PATTERN = "stop_pattern"
    CONVERGED = "converged"
    DEADLINE = "deadline"
    CLIENT = "client"
    END_OF_TURN = "end_of_turn"
    REOPENED = "reopened"
    TOO_SHORT = "too_short"
    STRAY_MARKERS = "stray_markers"
    ENGINE_DEATH = "engine_death"
    CONSTRAINT_LOST = "constraint_lost"
    TOOL_CALL = "tool_call"
    RESUME = "resume"


class Step(enum.Enum):
    """Enumerate the steps of a call before the engine runs it."""

    PLAN = "plan"
    QUEUE = "queue"


class CandidateHooks:
    """Observe one candidate of a generation."""

    def run_began(self, cause: Cause, request: EngineRequest) -> Headers | None:
        """Observe the start of an engine run. Return headers for the engine, whose own spans then join the trace."""
        return None

    def run_answered(self, chunk: EngineChunk) -> None:
        """Observe the first tokens of a run."""

    def run_ended(self, how: str, chunk: EngineChunk | None) -> None:
        """Observe the end of a run. `how` is an action's name, `engine_died` or `cancelled`."""

    def waiting_for_engine(self) -> AbstractContextManager[object]:
        """Observe the wait for an engine that takes no work."""
        return nullcontext()

    def first_token(self, *, is_thought: bool) -> None:
        """Observe the first token of the candidate."""

    def first_answer_token(self) -> None:
        """Observe the first token of the answer."""

    def thought_ended(self, outcome: ThinkingOutcome, thought_tokens: int) -> None:
        """Observe the end of the thought."""

    def ended(self, end: CandidateEnd) -> None:
        """Observe the end of the candidate."""


class GenerationHooks:
    """Observe one generation, from its arrival to its cost; a context manager over all of it."""

    wants_content = False
    """Whether `on_event` must be called, once per event."""

    def __enter__(self) -> GenerationHooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, step: Step) -> AbstractContextManager[object]:
        """Observe a step before the engine runs the call."""
        return nullcontext()

    def planned(self, plan: GenerationPlan, seconds_to_deadline: float | None) -> None:
        """Observe the plan of the call."""

    def admitted(self, generation_id: str, waited_seconds: float) -> None:
        """Observe the admission of the call, after `waited_seconds` in the queue."""

    def candidate(self, index: int) -> CandidateHooks:
        """Return the hooks of a candidate."""
        return NO_CANDIDATE_HOOKS

    def on_event(self, event: Event) -> None:
        """Observe an event, with its content. Called only with `wants_content`."""

    def finished(self, finished: Finished) -> None:
        """Observe the end of the generation."""


class CallHooks:
    """Observe one RPC."""

    @property
    def log_fields(self) -> Mapping[str, str]:
        """Return the fields that every log line of this call carries."""
        return {}

    @property
    def headers(self) -> Headers:
        """Return the W3C trace context of this call, for a server that continues it."""
        return {}

    def generation(
        self, *, model: str, chat: bool, streams: bool, parent_headers: Headers | None = None
    ) -> GenerationHooks:
        """Return the hooks of a generation. `parent_headers` are the `headers` of the call that it continues."""
        return NO_GENERATION_HOOKS

    def caller_is(self, caller_id: str, label: str) -> None:
        """Observe the caller. `caller_id` is bounded and no secret; there are few different `label`s."""

    def resumes(self, other: CallHooks) -> None:
        """Observe that this call reads a generation which another one started."""

    def steers(self, other: CallHooks) -> None:
        """Observe that this call steers a generation which another one started."""

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """Observe the end of the call. `code` is the name of the gRPC status."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Hold the counts of one moment, for gauges."""

    model: str
    engine_is_up: bool
    draining: bool
    queued_calls: int
    queued_tokens: int
    running_calls: int
    running_sequences: int
    capacity_sequences: int
    resumable_streams: int
    loop_lag_seconds: float
    loop_busy_share: float
    engine_restarts: int
    load: EngineLoad | None
    experts: ExpertLoad | None = None


class TelemetryHooks:
    """Observe the service."""

    def listening(self, host: str, port: int) -> None:
        """Observe the address that the server listens on."""

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallHooks:
        """Return the hooks of a call. `method` is `/package.Service/Method`, one of the served ones."""
        return NO_CALL_HOOKS

    def watch_state(self, state: Callable[[], ServiceState]) -> None:
        """Register `state`, which may be called from any thread at any time until the process ends."""


NO_CANDIDATE_HOOKS, NO_GENERATION_HOOKS, NO_CALL_HOOKS, NO_HOOKS = (
    CandidateHooks(),
    GenerationHooks(),
    CallHooks(),
    TelemetryHooks(),
)

CURRENT_CALL: ContextVar[CallHooks] = ContextVar("penstock_call", default=NO_CALL_HOOKS)
"""Hooks of the running task's call. gRPC passes servicers nothing of ours, and log lines need them everywhere."""
