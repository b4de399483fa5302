"""The Python client's public names are the ones promised; taking one away is a breaking change."""

from __future__ import annotations

import dataclasses
import inspect

import penstock_client as pc

NAMES = [
    "AnswerDelta",
    "AsyncClient",
    "AsyncInteraction",
    "AsyncStream",
    "AsyncTexts",
    "BrokenStream",
    "BudgetDoesNotFit",
    "CallerRefused",
    "Cancelled",
    "Candidate",
    "Client",
    "ContextOverflow",
    "Continued",
    "Conversation",
    "Cost",
    "DeadlineExceeded",
    "EarlyExit",
    "EffectiveSettings",
    "Effort",
    "EffortBudget",
    "Event",
    "ExpertLoad",
    "FeatureOff",
    "FieldViolation",
    "FinishReason",
    "Finished",
    "FunctionTool",
    "GenerationNotFound",
    "GenerationOptions",
    "GenerationPhase",
    "ImagePart",
    "Interaction",
    "Interrupted",
    "InterruptionReason",
    "InvalidRequest",
    "LayerLoad",
    "Message",
    "MessageTooLarge",
    "ModelCard",
    "ModelNotFound",
    "NotImplementedYet",
    "Overloaded",
    "Part",
    "PenstockError",
    "PoisonousRequest",
    "PriceTier",
    "ProfileFeature",
    "RETRY_READS_SERVICE_CONFIG",
    "Reconnect",
    "Response",
    "Run",
    "ServerFault",
    "Started",
    "Steered",
    "Stream",
    "TextPart",
    "Texts",
    "ThinkingFinished",
    "ThinkingMode",
    "ThinkingOutcome",
    "ThoughtDelta",
    "ThoughtPart",
    "Timing",
    "TokenCount",
    "TokenLogprob",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallFinished",
    "ToolCallStarted",
    "ToolCallStatus",
    "ToolError",
    "ToolMode",
    "ToolResult",
    "Turn",
    "TurnLimitReached",
    "Unavailable",
    "UnparsableAnswer",
    "Usage",
    "__version__",
    "build_spec",
    "tool",
    "usd_from_ticks",
]
OPTIONS = [
    "allowed_tools",
    "answer_reserve",
    "budget",
    "cache_salt",
    "candidates",
    "choices",
    "closing_message",
    "early_exit",
    "early_exit_probability",
    "effort",
    "frequency_penalty",
    "grammar",
    "history",
    "include_thoughts",
    "json_schema",
    "logit_bias",
    "max_context_tokens",
    "max_output_tokens",
    "max_tool_calls",
    "min_output_tokens",
    "min_p",
    "model",
    "overflow",
    "parallel",
    "presence_penalty",
    "priority",
    "regex",
    "repetition_penalty",
    "response_format",
    "return_token_ids",
    "seed",
    "session_id",
    "stop",
    "stop_token_ids",
    "temperature",
    "text",
    "thinking",
    "thought_stop",
    "thought_stop_regex",
    "token_ids",
    "tool_mode",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
]


def test_exported_names() -> None:
    assert sorted(pc.__all__) == NAMES
    public = {name for name, value in vars(pc).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public | {"__version__"} == set(NAMES)


def test_keywords_of_generation() -> None:
    assert sorted(pc.GenerationOptions.__annotations__) == OPTIONS


def test_bounds_of_reconnecting() -> None:
    fields = ["max_attempts", "max_seconds", "first_wait_seconds", "max_wait_seconds"]
    assert [one.name for one in dataclasses.fields(pc.Reconnect)] == fields


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {name: [*inspect.signature(one).parameters] for name, one in found if not name.startswith("_")}

    assert methods(pc.Client) == methods(pc.AsyncClient)
