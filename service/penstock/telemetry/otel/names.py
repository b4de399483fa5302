"""Define every name that leaves the process: spans, attributes, events and metrics, ours and the conventions'.

The names of the conventions are those of opentelemetry-semantic-conventions 0.66b2, pinned by the lock files. The GenAI
part is in development and still changes names. A new version requires changes in this file, in docs/how-to/observe.md
and in the dashboard and rules beside it, which a test compares with a live scrape.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as _ai
from opentelemetry.semconv._incubating.attributes import rpc_attributes as _rpc
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as _metrics
from opentelemetry.semconv._incubating.metrics import rpc_metrics as _rpc_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes

PROVIDER: Final = "penstock"
CHAT, TEXT_COMPLETION = (
    _ai.GenAiOperationNameValues.CHAT.value,
    _ai.GenAiOperationNameValues.TEXT_COMPLETION.value,
)

# ------------------------------------------------------------------------------------------- spans; also `chat {model}`
PLAN: Final = "penstock.plan"
QUEUE: Final = "penstock.queue"
ENGINE_RUN: Final = "penstock.engine_run"
ENGINE_WAIT: Final = "penstock.wait_for_engine"
THINKING: Final = "penstock.thinking"
ANSWER: Final = "penstock.answer"

# ---------------------------------------------------------------------------------------------------------- span events
FIRST_THOUGHT_TOKEN: Final = "penstock.first_thought_token"
FIRST_ANSWER_TOKEN: Final = "penstock.first_answer_token"
BUDGET_REACHED: Final = "penstock.budget_reached"
DEADLINE_PLAN: Final = "penstock.deadline_plan"

# ------------------------------------------------------------------------------------------- attributes: conventions
ERROR_TYPE: Final = error_attributes.ERROR_TYPE
SERVER_ADDRESS: Final = server_attributes.SERVER_ADDRESS
SERVER_PORT: Final = server_attributes.SERVER_PORT
RPC_SYSTEM: Final = _rpc.RPC_SYSTEM_NAME
RPC_METHOD: Final = _rpc.RPC_METHOD
RPC_STATUS: Final = _rpc.RPC_RESPONSE_STATUS_CODE
OPERATION: Final = _ai.GEN_AI_OPERATION_NAME
PROVIDER_NAME: Final = _ai.GEN_AI_PROVIDER_NAME
REQUEST_MODEL: Final = _ai.GEN_AI_REQUEST_MODEL
RESPONSE_MODEL: Final = _ai.GEN_AI_RESPONSE_MODEL
RESPONSE_ID: Final = _ai.GEN_AI_RESPONSE_ID
FINISH_REASONS: Final = _ai.GEN_AI_RESPONSE_FINISH_REASONS
TIME_TO_FIRST_CHUNK: Final = _ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK
OUTPUT_TYPE: Final = _ai.GEN_AI_OUTPUT_TYPE
CONVERSATION: Final = _ai.GEN_AI_CONVERSATION_ID
MAX_TOKENS: Final = _ai.GEN_AI_REQUEST_MAX_TOKENS
TEMPERATURE: Final = _ai.GEN_AI_REQUEST_TEMPERATURE
TOP_P: Final = _ai.GEN_AI_REQUEST_TOP_P
TOP_K: Final = _ai.GEN_AI_REQUEST_TOP_K
SEED: Final = _ai.GEN_AI_REQUEST_SEED
CHOICES: Final = _ai.GEN_AI_REQUEST_CHOICE_COUNT
FREQUENCY_PENALTY: Final = _ai.GEN_AI_REQUEST_FREQUENCY_PENALTY
PRESENCE_PENALTY: Final = _ai.GEN_AI_REQUEST_PRESENCE_PENALTY
STREAM: Final = _ai.GEN_AI_REQUEST_STREAM
INPUT_TOKENS: Final = _ai.GEN_AI_USAGE_INPUT_TOKENS
OUTPUT_TOKENS: Final = _ai.GEN_AI_USAGE_OUTPUT_TOKENS
REASONING_TOKENS: Final = _ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS
CACHED_TOKENS: Final = _ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS
TOKEN_TYPE: Final = _ai.GEN_AI_TOKEN_TYPE
INPUT_MESSAGES: Final = _ai.GEN_AI_INPUT_MESSAGES
OUTPUT_MESSAGES: Final = _ai.GEN_AI_OUTPUT_MESSAGES
TOOL_DEFINITIONS: Final = _ai.GEN_AI_TOOL_DEFINITIONS

# -------------------------------------------------------------------------------------------------- attributes: ours
THINKING_MODE: Final = "penstock.thinking.mode"
THINKING_REQUESTED_MODE: Final = "penstock.thinking.requested_mode"
THINKING_BUDGET: Final = "penstock.thinking.budget_tokens"
THINKING_BUDGET_ASKED: Final = "penstock.thinking.budget_asked_tokens"
THINKING_TOKENS: Final = "penstock.thinking.tokens"
THINKING_OUTCOME: Final = "penstock.thinking.outcome"
THINKING_REASON: Final = "penstock.thinking.reason"
ANSWER_RESERVE: Final = "penstock.answer.reserve_tokens"
ANSWER_TOKENS: Final = "penstock.answer.tokens"
TOOLS: Final = "penstock.tools.count"
TOOL_MODE: Final = "penstock.tools.mode"
TOOL_TOKENS: Final = "penstock.tools.tokens"
THINKING_EFFORT: Final = "penstock.thinking.effort"
PROMPT_TOKENS: Final = "penstock.prompt.tokens"
DROPPED_TOKENS: Final = "penstock.prompt.dropped_tokens"
DEADLINE_SECONDS: Final = "penstock.deadline.seconds"
SECONDS_PER_TOKEN: Final = "penstock.pace.seconds_per_token"
QUEUE_SECONDS: Final = "penstock.queue.seconds"
PRIORITY: Final = "penstock.priority"
CANDIDATE: Final = "penstock.candidate.index"
RUN_NUMBER: Final = "penstock.run.number"
RUN_CAUSE: Final = "penstock.run.cause"
RUN_CONTINUES: Final = "penstock.run.is_continuation"
RUN_END: Final = "penstock.run.end"
COST: Final = "penstock.cost.usd_ticks"
DRAFTED_TOKENS: Final = "penstock.speculation.drafted_tokens"
ACCEPTED_TOKENS: Final = "penstock.speculation.accepted_tokens"
RECOMPUTED_TOKENS: Final = "penstock.recomputed_tokens"
PROBE_TOKENS: Final = "penstock.probe_tokens"
CALLER_ID: Final = "penstock.caller"
ERROR_REASON: Final = "penstock.error.reason"
LINK_KIND: Final = "penstock.link.kind"

# ------------------------------------------------------------------------------------------------ metrics: conventions
REQUEST_DURATION: Final = _metrics.GEN_AI_SERVER_REQUEST_DURATION
TIME_TO_FIRST_TOKEN: Final = _metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN
TIME_PER_OUTPUT_TOKEN: Final = _metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN
TOKEN_USAGE: Final = _metrics.GEN_AI_CLIENT_TOKEN_USAGE
RPC_DURATION: Final = _rpc_metrics.RPC_SERVER_CALL_DURATION

# ------------------------------------------------------------------------------------------------------- metrics: ours
TOKENS: Final = "penstock.tokens"
TIME_TO_FIRST_ANSWER_TOKEN: Final = "penstock.time_to_first_answer_token"
THOUGHTS: Final = "penstock.thoughts"
BUDGET_PLANNED: Final = "penstock.thinking.budget"
BUDGET_SPENT: Final = "penstock.thinking.spent"
QUEUE_WAIT: Final = "penstock.queue.wait"
REFUSALS: Final = "penstock.refusals"
CONTINUATIONS: Final = "penstock.continuations"
COST_TOTAL: Final = "penstock.cost.usd_ticks"
SPECULATED: Final = "penstock.speculation.tokens"
DRAFTS_ACCEPTED: Final = "penstock.engine.drafts_accepted"
UP: Final = "penstock.engine.up"
RESTARTS: Final = "penstock.engine.restarts"
RUNNING: Final = "penstock.engine.running"
WAITING: Final = "penstock.engine.waiting"
KV_USAGE: Final = "penstock.engine.kv_cache_usage"
STEPS: Final = "penstock.engine.steps"
PREEMPTIONS: Final = "penstock.engine.preemptions"
PREFIX_TOKENS: Final = "penstock.engine.prefix_cache.tokens"
QUEUE_CALLS: Final = "penstock.queue.calls"
QUEUE_TOKENS: Final = "penstock.queue.tokens"
CALLS: Final = "penstock.calls.running"
SEQUENCES: Final = "penstock.sequences.running"
CAPACITY: Final = "penstock.sequences.capacity"
RESUMABLE: Final = "penstock.streams.resumable"
LOOP_LAG: Final = "penstock.event_loop.lag"
LOOP_BUSY: Final = "penstock.event_loop.busy"
DRAINING: Final = "penstock.draining"
EXPERT_TOKENS: Final = "penstock.experts.tokens"
EXPERT_IMBALANCE: Final = "penstock.experts.imbalance"
EXPERT_ENTROPY: Final = "penstock.experts.entropy"
EXPERTS_HOT: Final = "penstock.experts.hot"
RANK_IMBALANCE: Final = "penstock.experts.rank_imbalance"

# ------------------------------------------------------------------------------------------------------- label values
MODEL: Final = "model"
METHOD: Final = "method"
KIND: Final = "type"
OUTCOME: Final = "outcome"
MODE: Final = "mode"
REASON: Final = "reason"
CALLER_LABEL: Final = "caller"
CAUSE: Final = "cause"
RESULT: Final = "result"
POSITION: Final = "position"
LAYER: Final = "layer"
