"""Define the types that the service's layers exchange: frozen, and free of proto, gRPC and vLLM.

    convert  --Request-->  planner     --GenerationPlan-->  generation  --EngineRequest-->  engine
    convert  <--Event---   generation  <--EngineChunk--     engine

Counts are in tokens, durations in seconds, money in integer ticks of 1e-10 USD. `None` means that the caller did not
set a value.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Types that are made at every engine step of every stream are Structs: frozen too, and made in a tenth of the time.
from msgspec import Struct

# ---------------------------------------------------------------------------------------------------------- requests


class ThinkingMode(enum.Enum):
    """Enumerate the thinking modes. With AUTO the server decides by the question, the deadline and the load."""

    FAST = "fast"
    THINKING = "thinking"
    AUTO = "auto"


class Overflow(enum.Enum):
    """Enumerate what to do with a prompt that does not fit the context window."""

    ERROR = "error"
    DROP_OLDEST_TURNS = "drop_oldest_turns"
    TRUNCATE_LEFT = "truncate_left"
    TRUNCATE_MIDDLE = "truncate_middle"


class Role(enum.Enum):
    """Enumerate the authors of messages."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class ThoughtHistory(enum.Enum):
    """Enumerate which earlier thoughts the prompt contains. CURRENT_TURN is those since the last user message."""

    CURRENT_TURN = "current_turn"
    ALL_TURNS = "all_turns"
    NONE = "none"


class Effort(enum.Enum):
    """Enumerate the effort levels, which the server's table maps to thinking budgets."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class EarlyExit(enum.Enum):
    """Enumerate what may end a thought early: nothing, the closing marker's probability, or that and probes."""

    OFF = "off"
    MARKER = "marker"
    PROBE = "probe"


MIN_MARKER_PROBABILITY = 0.05
"""Least threshold for the closing marker. It is then among the 20 most likely tokens, of which engines tell the log
probabilities."""


@dataclass(frozen=True, slots=True)
class EarlyExitAdvice:
    """Say what may end thoughts of AUTO early, as those who trained a checkpoint measured it.

    It is `penstock_early_exit` in generation_config.json: `{"sign": "marker", "marker_probability": 0.3}`.

    Attributes:
        sign: MARKER, or PROBE for that and probes.
        marker_probability: Of the closing marker at the end of a line, from MIN_MARKER_PROBABILITY to 1;
            None is the server's default.
    """

    sign: EarlyExit
    marker_probability: float | None = None


class Priority(enum.Enum):
    """Enumerate the priorities of calls; a higher value is admitted first and evicted last."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class ToolCallStatus(enum.Enum):
    """Enumerate whether a tool call was written to its end. An INCOMPLETE one must not be executed."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold an image's pixels: `rgb` is height * width * 3 bytes, row by row.

    `digest` is the SHA-256 (hex) of width, height and pixels.
    """

    width: int
    height: int
    rgb: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Image:
    """Hold an image of a message, encoded as the caller sent it.

    `place` is the number of characters of the message's text before it, `path` its proto path. `tokens` is how many
    tokens of the prompt stand for it; 0 until the engine has looked at it.
    """

    data: bytes
    mime_type: str
    place: int
    path: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Hold a tool call of the model. `arguments_json` is a JSON object wherever the status is COMPLETE."""

    id: str
    name: str
    arguments_json: str
    status: ToolCallStatus = ToolCallStatus.COMPLETE


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Hold what the caller's tool returned for the call with `call_id`; `is_error` where the tool failed."""

    call_id: str
    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one message of a conversation.

    A message of an assistant consists of `thought`, `content` and `tool_calls`, in this order; empty is absent. A
    message of a tool consists of `tool_results`.
    """

    role: Role
    content: str
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    parts_before_calls: int = 0
    """Number of the request's parts before the first tool call, for the paths of errors."""
    images: tuple[Image, ...] = ()
    """Images of a user message, in the order of their places in `content`."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Describe a tool that the model may call. The schema is JSON text; empty is a tool without arguments."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""
    strict: bool = False


class ToolMode(enum.Enum):
    """Enumerate whether the model calls tools.

    With AUTO and VALIDATED the model decides; VALIDATED holds every call to its schema by a grammar. REQUIRED is
    VALIDATED with at least one call. NONE shows the tools to the model and lets it call none.
    """

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"
    VALIDATED = "validated"


class ToolCallFormat(enum.Enum):
    """Enumerate how a checkpoint writes tool calls, as its chat template shows it.

    XML is Qwen3.5's and Qwen3-Coder's `<function=NAME><parameter=KEY>`; JSON is Qwen3's and Hermes' object with `name`
    and `arguments`. Both stand between `<tool_call>` and `</tool_call>`.
    """

    XML = "xml"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """Hold the caller's tools and how they may be called. `allowed_names` empty allows all of them."""

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = ToolMode.AUTO
    allowed_names: tuple[str, ...] = ()
    max_calls: int | None = None
    """Most calls of one output; None is no limit. 1 is no parallel calls."""

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Return the tools that this output may call."""
        if self.mode is ToolMode.NONE:
            return ()
        if not self.allowed_names:
            return self.tools
        allowed = frozenset(self.allowed_names)
        return tuple(tool for tool in self.tools if tool.name in allowed)


@dataclass(frozen=True, slots=True)
class ToolConstraint:
    """Hold what a grammar for tool calls needs: the tools, and how the checkpoint writes calls.

    `strict` tools are held to their schemas, the others to JSON objects. With `requires_call` the output is calls and
    nothing else, at least one; otherwise text is allowed before, between and after calls. After `max_calls` calls the
    output ends.
    """

    call_format: ToolCallFormat
    tools: tuple[Tool, ...]
    requires_call: bool
    max_calls: int | None = None
    indexes: tuple[int, ...] = ()
    """Place of each tool in the request, for the paths of errors; empty where the tools are all of them, in order."""

    def index_of(self, place: int) -> int:
        """Return the index in the request of the tool at `place`."""
        return self.indexes[place] if self.indexes else place


@dataclass(frozen=True, slots=True)
class StopPatterns:
    """Hold what ends a thought where it shows: texts, and a regular expression (empty for none)."""

    strings: tuple[str, ...] = ()
    regex: str = ""

    def __bool__(self) -> bool:
        return bool(self.strings or self.regex)


@dataclass(frozen=True, slots=True)
class ThinkingConfig:
    """Hold the caller's thinking settings. Budget and reserve are in tokens; -1 is no limit, 0 is no thought."""

    mode: ThinkingMode | None = None
    budget_tokens: int | None = None
    include_thoughts: bool = True
    answer_reserve_tokens: int | None = None
    closing_message: str | None = None
    effort: Effort | None = None
    history: ThoughtHistory = ThoughtHistory.CURRENT_TURN
    stop_patterns: StopPatterns = StopPatterns()
    early_exit: EarlyExit | None = None
    early_exit_probability: float | None = None


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """Hold the caller's settings of the context window."""

    max_context_tokens: int | None = None
    overflow: Overflow = Overflow.ERROR
    cache_salt: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Hold sampling parameters with vLLM's meaning and ranges; None takes the checkpoint's default."""

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
    """Enumerate the kinds of constraints on the answer."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """Hold a constraint on the answer, not on the thought.

    CHOICE uses `choices`, TOOL_CALLS uses `tool_calls`, the other kinds `spec`.
    """

    kind: StructuredKind
    spec: str = ""
    choices: tuple[str, ...] = ()
    tool_calls: ToolConstraint | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """Hold limits and format of the output. `max_tokens` counts thought and answer, not the markers between them."""

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
    """Hold one call as the caller made it. Exactly one of `messages`, `text`, `token_ids` is set."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    model: str = ""
    thinking: ThinkingConfig = ThinkingConfig()
    context: ContextConfig = ContextConfig()
    sampling: Sampling = Sampling()
    output: Output = Output()
    tools: ToolConfig = ToolConfig()
    priority: Priority = Priority.NORMAL
    caller_id: str = ""


# ------------------------------------------------------------------------------------------------------------ engine


@dataclass(frozen=True, slots=True)
class Markers:
    """Hold the token ids of the think markers."""

    open_id: int
    close_id: int


@dataclass(frozen=True, slots=True)
class Feature:
    """Hold one line of the profile: whether a feature is on, its value, and why."""

    name: str
    enabled: bool
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Describe the served model, once the engine has started.

    `default_sampling` comes from the checkpoint's generation_config. `forces_budget` tells whether the engine itself
    closes a thought at `EngineRequest.thought_budget_tokens`; otherwise the service closes it, at the price of one more
    prefill. `forces_exit` tells the same of `EngineRequest.exit_probability`.
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
    forces_exit: bool = False
    tool_call_format: ToolCallFormat | None = None
    """How this checkpoint writes tool calls; None where its chat template has no tools."""
    advised_output_tokens: int | None = None
    """The checkpoint's `max_new_tokens`; None where it has none."""
    advised_early_exit: EarlyExitAdvice | None = None
    """The checkpoint's own advice; None where it has none."""
    unsupported_fields: Mapping[str, str] = field(default_factory=dict)
    """Request fields that this engine refuses, by proto path, each with the reason (such as min_p with MTP)."""
    image_token_ids: frozenset[int] = frozenset()
    """Ids that stand for images and videos in a prompt, and around them: never in a caller's ids, never sampled. Empty
    where the engine reads text only."""
    unsupported_beside: str = ""
    """The feature of the profile because of which these fields are refused."""
    profile: tuple[Feature, ...] = ()
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class Accountable:
    """Identify who is responsible for a request: its caller and a hash of its settings (see `poison`)."""

    caller: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Describe one run of the engine. A continuation is a new run whose prompt ends with the tokens already emitted.

    `max_tokens` is everything that the engine may sample, forced markers included. `thought_budget_tokens` counts
    generated tokens strictly between the markers; None does not limit the thought. `banned_token_ids` are never
    sampled. Behind a line of the thought the engine forces the closing marker where its probability is at least
    `exit_probability`; None forces none. The lines that count end at `thought_start` or later in prompt and output
    together.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    sampling: Sampling
    thought_budget_tokens: int | None = None
    exit_probability: float | None = None
    thought_start: int = 0
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    structured: StructuredOutput | None = None
    constrained_prompt_tokens: int = 0
    """In a continuation: number of tokens at the prompt's end that `structured` already covers."""
    banned_token_ids: tuple[int, ...] = ()
    images: tuple[Image, ...] = ()
    """In the order of their tokens in the prompt."""
    cache_salt: str | None = None
    caller_id: str = ""
    trace_headers: Mapping[str, str] | None = None
    deaths: int = 0
    """Engine deaths that this request is suspected of; above 0 it starts without other requests."""
    accountable: Accountable | None = None
    continues: bool = False
    """Whether tokens of it were emitted before; it is then not refused for other requests of its caller."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Hold the log probability and rank of one token."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Hold the log probabilities of the sampled token and of the most likely ones, most likely first."""

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...]


class EngineStop(enum.Enum):
    """Enumerate why an engine run ended."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    ABORTED = "aborted"


class InterruptionReason(enum.Enum):
    """Enumerate why the engine takes no work."""

    ENGINE_DIED = "engine_died"
    ENGINE_HUNG = "engine_hung"


class EngineChunk(Struct, frozen=True):
    """Hold the tokens of one engine step. `token_ids` includes the EOS or stop token that ended the run.

    `logprobs` is as long as `token_ids` where they were asked for, else empty. `stop` is set on the last chunk only;
    with EOS and STOP_TOKEN the last id is that token. `cached_tokens` (of the prompt) is known from the first chunk on.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    stop: EngineStop | None = None
    queue_seconds: float | None = None
    drafted_tokens: int | None = None
    """Tokens drafted and accepted over the whole run; on the last chunk only, None without speculation."""
    accepted_tokens: int | None = None


# ------------------------------------------------------------------------------------------------------------- plans


class ThinkingOutcome(enum.Enum):
    """Enumerate how a thought ended. This is separate from the finish reason, which is about the answer."""

    DISABLED = "disabled"
    NATURAL_END = "natural_end"
    BUDGET_REACHED = "budget_reached"
    FINISHED_BY_CLIENT = "finished_by_client"
    DEADLINE = "deadline"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"
    STOP_PATTERN = "stop_pattern"
    CONVERGED = "converged"


class FinishReason(enum.Enum):
    """Enumerate how an answer ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CANCELLED = "cancelled"
    DRAINED = "drained"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Hold the prompt that will run, and what was dropped to make it fit."""

    prompt_token_ids: tuple[int, ...]
    window_tokens: int
    dropped_tokens: int = 0
    dropped_messages: int = 0
    images: tuple[Image, ...] = ()
    """In the order of their tokens in the prompt."""

    @property
    def image_tokens(self) -> int:
        """Return how many tokens of the prompt stand for images."""
        return sum(image.tokens for image in self.images)


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """The mode that the prompt is rendered in, and for AUTO the most it may think. Never AUTO."""

    mode: ThinkingMode
    auto_budget_tokens: int | None
    reason: str
    asks_engine: bool = False
    """Whether AUTO asks the engine, before the call runs, how certain the answer is without a thought."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens. `thought + reserve <= max_output` always holds where there is a thought."""

    thought_tokens: int
    answer_reserve_tokens: int
    max_output_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class EarlyExitPlan:
    """Say when a thought ends early. MARKER or PROBE; probabilities in (0, 1].

    Attributes:
        mode: MARKER reads the closing marker's probability; PROBE reads that and probes.
        marker_probability: Of the closing marker at the end of a line, from which on the thought ends there.
        answer_probability: Of a probe's tokens together, from which on the thought ends.
        agreements: Probes in a row with the same tokens that end the thought; 0 ends none.
        interval_tokens: Fewest thought tokens between two probes, and before the first.
        answer_tokens: Most tokens that a probe generates.
        share: Most tokens that the probes may compute, as a multiple of prompt and thought so far.
    """

    mode: EarlyExit
    marker_probability: float
    answer_probability: float
    agreements: int
    interval_tokens: int
    answer_tokens: int
    share: float


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
    max_tool_calls: int = 0
    """Most tool calls of each candidate; 0 where none may be called."""
    structured: StructuredOutput | None = None
    """The constraint on the answer: the caller's, or the grammar of its tool calls."""
    accountable: Accountable | None = None
    """Who answers for it where the engine dies."""
    early_exit: EarlyExitPlan | None = None
    """When the thought ends before its budget; None where nothing ends it early."""
    probe_tokens: int = 0
    """Tokens that the engine computed for AUTO's decision."""
    deaths: int = 0
    """Engine deaths that this decision is suspected of."""


# ------------------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Usage:
    """Count tokens exactly. Output is thought, answer and tool calls; markers are counted apart and never billed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    thought_tokens: int = 0
    answer_tokens: int = 0
    tool_tokens: int = 0
    marker_tokens: int = 0
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    recomputed_tokens: int = 0
    image_tokens: int = 0
    """Part of `prompt_tokens`."""
    probe_tokens: int = 0
    """Tokens that the engine computed to probe the answer beside a thought. Part of nothing else, and never billed."""

    @property
    def output_tokens(self) -> int:
        """Return thought, answer and tool-call tokens."""
        return self.thought_tokens + self.answer_tokens + self.tool_tokens

    @property
    def total_tokens(self) -> int:
        """Return prompt and output tokens."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """Hold durations of one call since its arrival; None where the event never happened."""

    queue_seconds: float
    first_token_seconds: float | None
    first_answer_seconds: float | None
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Hold the cost of a call in integer ticks of 1e-10 USD."""

    input_usd_ticks: int
    cached_usd_ticks: int
    output_usd_ticks: int

    @property
    def total_usd_ticks(self) -> int:
        """Return the sum in ticks."""
        return self.input_usd_ticks + self.cached_usd_ticks + self.output_usd_ticks


class Delta(Struct, frozen=True):
    """Hold new text of a candidate: of its thought or its answer, in whole characters."""

    candidate_index: int
    is_thought: bool
    text: str
    token_count: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class ToolCallStarted(Struct, frozen=True):
    """Report that the model began a tool call. `token_count` counts tokens since the last tool event."""

    candidate_index: int
    call_index: int
    id: str
    name: str
    token_count: int


class ToolCallArguments(Struct, frozen=True):
    """Hold new text of a tool call's arguments: all fragments of a call concatenate to its `arguments_json`."""

    candidate_index: int
    call_index: int
    json_fragment: str
    token_count: int


class ToolCallFinished(Struct, frozen=True):
    """Report the end of a tool call, or that the output ended inside it."""

    candidate_index: int
    call_index: int
    call: ToolCall
    token_count: int


@dataclass(frozen=True, slots=True)
class ThoughtEnded:
    """Report the end of a candidate's thought."""

    candidate_index: int
    outcome: ThinkingOutcome
    thought_tokens: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Report that a candidate waits until the engine takes work again; `Continued` or an error follows."""

    candidate_index: int
    reason: InterruptionReason
    expected_seconds: float | None
    """Seconds from now, at least 0; None where no start of the engine was measured."""


@dataclass(frozen=True, slots=True)
class Continued:
    """Report that a candidate continues `interrupted_seconds` after `Interrupted`."""

    candidate_index: int
    interrupted_seconds: float


@dataclass(frozen=True, slots=True)
class EarlyExitReport:
    """Report early exit: the probes that brought a reading, and an estimate of the thought tokens that were not needed.

    `saved_tokens` is None where the thought did not end early, or too few other thoughts are known.
    """

    probes: int
    saved_tokens: int | None


@dataclass(frozen=True, slots=True)
class CandidateEnd:
    """Report the end of one candidate. `early_exit` is None where nothing could end the thought early."""

    candidate_index: int
    finish_reason: FinishReason
    outcome: ThinkingOutcome
    usage: Usage
    matched_stop: str = ""
    early_exit: EarlyExitReport | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Report the end of a call. `usage` is over all candidates; `cost` is None without a price list."""

    ends: tuple[CandidateEnd, ...]
    usage: Usage
    cost: Cost | None
    timing: Timing
    states: tuple[Mapping[str, Any], ...] = ()
    """With DRAINED: the state of each candidate, for another server to continue from."""


ToolEvent = ToolCallStarted | ToolCallArguments | ToolCallFinished
"""An event of a tool call."""

Event = Delta | ToolEvent | ThoughtEnded | Interrupted | Continued | Finished
"""An event of a running generation; `server.convert` turns each into a GenerationEvent."""
