"""What an onlooker may learn of the service at work. Everything here does nothing: telemetry overrides what it wants.

    Observer --call()--> CallWatch --generation()--> GenerationWatch --candidate()--> CandidateWatch

Called a few times per call and never per token, so that watching costs next to nothing and not watching nothing.
Methods must not raise and must not wait.
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
    """Why an engine run begins. All but START are continuations."""

    START = "start"
    BUDGET = "budget"
    BUDGET_CHANGED = "budget_changed"
    DEADLINE = "deadline"
    CLIENT = "client"
    END_OF_TURN = "end_of_turn"
    REOPENED = "reopened"
    TOO_SHORT = "too_short"
    STRAY_MARKERS = "stray_markers"
    ENGINE_DEATH = "engine_death"
    CONSTRAINT_LOST = "constraint_lost"
    RESUME = "resume"


class Step(enum.Enum):
    """What a call goes through before the engine has it."""

    PLAN = "plan"
    QUEUE = "queue"


class CandidateHooks:
    """One candidate of a generation."""

    def run_began(self, cause: Cause, request: EngineRequest) -> Headers | None:
        """The headers are for the engine, whose own spans then join the trace."""
        return None

    def run_answered(self, chunk: EngineChunk) -> None:
        """The run's first tokens are there."""

    def run_ended(self, how: str, chunk: EngineChunk | None) -> None:
        """`how` is a verdict's name, `engine_died`, or `cancelled`; `chunk` is the last one that came."""

    def waiting_for_engine(self) -> AbstractContextManager[object]:
        return nullcontext()

    def first_token(self, *, is_thought: bool) -> None: ...

    def first_answer_token(self) -> None: ...

    def thought_ended(self, outcome: ThinkingOutcome, thought_tokens: int) -> None: ...

    def ended(self, end: CandidateEnd) -> None: ...


class GenerationHooks:
    """What one call asks of the model, from its arrival to its bill; a context manager over all of it."""

    wants_content = False
    """Whether `said` is to be called; costs a call per event."""

    def __enter__(self) -> GenerationHooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, step: Step) -> AbstractContextManager[object]:
        return nullcontext()

    def planned(self, plan: GenerationPlan, seconds_to_deadline: float | None) -> None: ...

    def admitted(self, generation_id: str, waited_seconds: float) -> None: ...

    def candidate(self, index: int) -> CandidateHooks:
        return NO_CANDIDATE_HOOKS

    def on_event(self, event: Event) -> None: ...

    def finished(self, finished: Finished) -> None: ...


class CallHooks:
    """One RPC. `log_fields` go into every log line that is written on its behalf."""

    @property
    def log_fields(self) -> Mapping[str, str]:
        return {}

    @property
    def headers(self) -> Headers:
        """W3C trace context of this call, for who goes on with it elsewhere."""
        return {}

    def generation(
        self, *, model: str, chat: bool, streams: bool, parent_headers: Headers | None = None
    ) -> GenerationHooks:
        """`carried`: the `headers` of the call that this one goes on with."""
        return NO_GENERATION_HOOKS

    def caller_is(self, caller_id: str, label: str) -> None:
        """Told where callers are known. `caller_id` is bounded and no secret; there are few different `label`s."""

    def resumes(self, other: CallHooks) -> None:
        """This call reads a generation that another one started."""

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """`code` is the gRPC status by name."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Counts of the moment, for gauges."""

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
    engine_restarts: int
    load: EngineLoad | None
    experts: ExpertLoad | None = None


class TelemetryHooks:
    """The service's onlooker."""

    def listening(self, host: str, port: int) -> None: ...

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> CallHooks:
        """`method` is `/package.Service/Method`, one of the served ones."""
        return NO_CALL_HOOKS

    def watch_state(self, state: Callable[[], ServiceState]) -> None:
        """`state` may be asked from any thread, at any time until the process ends."""


NO_CANDIDATE_HOOKS, NO_GENERATION_HOOKS, NO_CALL_HOOKS, NO_HOOKS = (
    CandidateHooks(),
    GenerationHooks(),
    CallHooks(),
    TelemetryHooks(),
)

CURRENT_CALL: ContextVar[CallHooks] = ContextVar("penstock_call", default=NO_CALL_HOOKS)
"""The call that the running task works for: gRPC hands the servicer nothing of ours, and log lines need it anywhere."""
