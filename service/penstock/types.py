"""The service's own vocabulary: what one hop hands to the next. Frozen, and free of proto, gRPC and vLLM.

    wire  --Request-->  thinking / context  --Plan-->  generation  --EngineRequest-->  engine
    wire  <--Event---   generation          <--EngineChunk--  engine

Counts are tokens, durations are seconds, money is integer ticks of 1e-10 USD. `None` means "the caller did not say".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What is made at every engine step of every stream is a Struct: as frozen as the others, made in a tenth of the time.
from msgspec import Struct

# ---------------------------------------------------------------------------------------------------------- requests


class ThinkingMode(enum.Enum):
    """How much the model may think. AUTO: the server decides from the question, the deadline and the load."""

    FAST = "fast"
    THINKING = "thinking"
    AUTO = "auto"


class Overflow(enum.Enum):
    """What to do with a prompt that does not fit the context window."""

    ERROR = "error"
    DROP_OLDEST_TURNS = "drop_oldest_turns"
    TRUNCATE_LEFT = "truncate_left"
    TRUNCATE_MIDDLE = "truncate_middle"


class Role(enum.Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Priority(enum.Enum):
    """Classes of calls under load; a higher value goes first and is shed last."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ThinkingConfig:
    """What the caller asked of thinking. Budget and reserve in tokens; -1 is "no limit", 0 is "no thought"."""

    mode: ThinkingMode | None = None
    budget_tokens: int | None = None
    include_thoughts: bool = True
    answer_reserve_tokens: int | None = None
    closing_message: str | None = None


@dataclass(frozen=True, slots=True)
class ContextConfig:
    max_context_tokens: int | None = None
    overflow: Overflow = Overflow.ERROR
    cache_salt: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters in vLLM's meaning and ranges; None takes the checkpoint's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class StructuredKind(enum.Enum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint on the answer (never on the thought). `choices` is used by CHOICE alone, `spec` by the others."""

    kind: StructuredKind
    spec: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Limits and form of the output. `max_tokens` counts thought and answer, not the markers between them."""

    max_tokens: int | None = None
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    candidate_count: int = 1
    top_logprobs: int | None = None
    return_token_ids: bool = False
    structured: StructuredOutput | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One call, as the caller made it. Exactly one of `messages`, `text`, `token_ids` is given."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    model: str = ""
    thinking: ThinkingConfig = ThinkingConfig()
    context: ContextConfig = ContextConfig()
    sampling: Sampling = Sampling()
    output: Output = Output()
    priority: Priority = Priority.NORMAL
    caller_id: str = ""


# ------------------------------------------------------------------------------------------------------------ engine


@dataclass(frozen=True, slots=True)
class Markers:
    """Token ids of the think markers."""

    open_id: int
    close_id: int


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of the profile: is it on, what is its value, and why."""

    name: str
    enabled: bool
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of the model once the engine is up. `default_sampling` is the checkpoint's generation_config.

    `forces_budget` says that the engine itself closes a thought at `EngineRequest.thought_budget_tokens`;
    where it is False the service closes it, at the price of one more prefill.
    """

    name: str
    architecture: str
    vocab_size: int
    context_window_tokens: int
    native_context_window_tokens: int
    eos_ids: frozenset[int]
    markers: Markers | None
    default_sampling: Sampling
    forces_budget: bool
    max_num_seqs: int
    advised_output_tokens: int | None = None
    """The checkpoint's own `max_new_tokens`, where it names one."""
    unsupported_fields: Mapping[str, str] = field(default_factory=dict)
    """Request fields that this engine refuses, by proto path, each with the reason (e.g. min_p beside MTP)."""
    unsupported_beside: str = ""
    """The profile's feature for which it refuses them."""
    profile: tuple[Feature, ...] = ()
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class Accountable:
    """Who answers for what a request does to the engine: its caller, and a hash of how it asks (see `poison`)."""

    caller: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One run of the engine. A continuation is a new one, whose prompt ends with the tokens already emitted.

    `max_tokens` is everything the engine may sample, forced markers included. `thought_budget_tokens` counts as the
    design page does: generated tokens strictly between the markers; None leaves the thought alone.
    `banned_token_ids` are never sampled.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    sampling: Sampling
    thought_budget_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    structured: StructuredOutput | None = None
    constrained_prompt_tokens: int = 0
    """In a continuation: how many of the prompt's last tokens `structured` already covers."""
    banned_token_ids: tuple[int, ...] = ()
    cache_salt: str | None = None
    caller_id: str = ""
    trace_headers: Mapping[str, str] | None = None
    deaths: int = 0
    """Engine deaths that this request is suspected of: above 0 it begins alone."""
    accountable: Accountable | None = None
    continues: bool = False
    """Tokens of it were given before: it is not refused for what others of its caller have done."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The sampled token's log probability, and those of the most likely ones, most likely first."""

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...]


class EngineStop(enum.Enum):
    EOS = "eos"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    ABORTED = "aborted"


class InterruptionReason(enum.Enum):
    """Why the engine takes no work."""

    ENGINE_DIED = "engine_died"
    ENGINE_HUNG = "engine_hung"


class EngineChunk(Struct, frozen=True):
    """What one engine step added. `token_ids` includes the EOS or stop token that ended it.

    `logprobs` is as long as `token_ids` where asked for, else empty. `stop` is set on the last chunk only, and with
    EOS / STOP_TOKEN the last id is that token. `cached_tokens` (of the prompt) is known from the first chunk on.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    stop: EngineStop | None = None
    queue_seconds: float | None = None
    drafted_tokens: int | None = None
    """Drafted and accepted by speculation over the whole run; on the last chunk only, None without speculation."""
    accepted_tokens: int | None = None


# ------------------------------------------------------------------------------------------------------------- plans


class ThinkingOutcome(enum.Enum):
    """How the thought ended. A field of its own: the finish reason speaks of the answer."""

    DISABLED = "disabled"
    NATURAL_END = "natural_end"
    BUDGET_REACHED = "budget_reached"
    FINISHED_BY_CLIENT = "finished_by_client"
    DEADLINE = "deadline"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"


class FinishReason(enum.Enum):
    STOP = "stop"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """The prompt that will run, and what had to go for it to fit."""

    prompt_token_ids: tuple[int, ...]
    window_tokens: int
    dropped_tokens: int = 0
    dropped_messages: int = 0


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """The mode that the prompt is rendered in, and for AUTO the most it may think. Never AUTO."""

    mode: ThinkingMode
    auto_budget_tokens: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens. `thought + reserve <= max_output` always holds where there is a thought."""

    thought_tokens: int
    answer_reserve_tokens: int
    max_output_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """Everything that is decided before the engine is asked. `deadline_monotonic` is in time.monotonic() seconds."""

    request: Request
    context: ContextPlan
    budget: Budget
    requested_mode: ThinkingMode | None
    choice: ModeChoice
    sampling: Sampling
    closing_ids: tuple[int, ...]
    in_thought: bool
    may_open: bool
    closes_before_deadline: bool
    timed_answer_tokens: int
    """Answer tokens for which a thought that closes before the deadline leaves time."""
    deadline_monotonic: float | None
    seconds_per_token: float | None
    window_left_tokens: int
    """Most output tokens that the window leaves beside the prompt and the markers."""
    accountable: Accountable | None = None
    """Who answers for it where the engine dies."""


# ------------------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact counts. output = thought + answer; markers (generated or forced) are counted apart and never billed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    thought_tokens: int = 0
    answer_tokens: int = 0
    marker_tokens: int = 0
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    recomputed_tokens: int = 0

    @property
    def output_tokens(self) -> int:
        return self.thought_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of one call from its arrival; None where the thing never happened."""

    queue_seconds: float
    first_token_seconds: float | None
    first_answer_seconds: float | None
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Integer ticks of 1e-10 USD."""

    input_usd_ticks: int
    cached_usd_ticks: int
    output_usd_ticks: int

    @property
    def total_usd_ticks(self) -> int:
        return self.input_usd_ticks + self.cached_usd_ticks + self.output_usd_ticks


class Delta(Struct, frozen=True):
    """New text of a candidate: a thought or an answer, never both, never half a character."""

    candidate_index: int
    is_thought: bool
    text: str
    token_count: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ThoughtEnded:
    candidate_index: int
    outcome: ThinkingOutcome
    thought_tokens: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A candidate stands still until the engine takes work again; `Continued` or an error follows."""

    candidate_index: int
    reason: InterruptionReason
    expected_seconds: float | None
    """From now, at least 0; None where no start of the engine was measured."""


@dataclass(frozen=True, slots=True)
class Continued:
    """A candidate goes on after `Interrupted`, which came so many seconds ago."""

    candidate_index: int
    interrupted_seconds: float


@dataclass(frozen=True, slots=True)
class CandidateEnd:
    """The last word on one candidate."""

    candidate_index: int
    finish_reason: FinishReason
    outcome: ThinkingOutcome
    usage: Usage
    matched_stop: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a call. `usage` is over all candidates; `cost` is None without a price list."""

    ends: tuple[CandidateEnd, ...]
    usage: Usage
    cost: Cost | None
    timing: Timing
    states: tuple[Mapping[str, Any], ...] = ()
    """With DRAINED: where each candidate stood, for another process to go on with."""


Event = Delta | ThoughtEnded | Interrupted | Continued | Finished
"""What a running generation says; `wire` turns each into a GenerationEvent."""
