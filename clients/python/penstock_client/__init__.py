"""Python client of Penstock: `Client`, `AsyncClient`, the events of a stream, and the exceptions of `errors`."""

from importlib import metadata as _metadata

from penstock_client.aio import AsyncClient
from penstock_client.aio_stream import AsyncInteraction, AsyncStream, AsyncTexts
from penstock_client.card import EffortBudget, ModelCard, PriceTier, ProfileFeature, TokenCount
from penstock_client.channel import RETRY_READS_SERVICE_CONFIG
from penstock_client.conversation import Conversation
from penstock_client.errors import (
    BrokenStream,
    BudgetDoesNotFit,
    CallerRefused,
    Cancelled,
    ContextOverflow,
    DeadlineExceeded,
    FeatureOff,
    FieldViolation,
    GenerationNotFound,
    InvalidRequest,
    MessageTooLarge,
    ModelNotFound,
    NotImplementedYet,
    Overloaded,
    PenstockError,
    PoisonousRequest,
    ServerFault,
    TurnLimitReached,
    Unavailable,
    UnparsableAnswer,
)
from penstock_client.events import (
    AnswerDelta,
    Continued,
    Event,
    Finished,
    Interrupted,
    Started,
    ThinkingFinished,
    ThoughtDelta,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
)
from penstock_client.experts import ExpertLoad, LayerLoad
from penstock_client.functions import FunctionTool, ToolError, tool
from penstock_client.messages import ImagePart, Message, Part, TextPart, ThoughtPart, ToolCall, ToolResult
from penstock_client.reconnect import Reconnect
from penstock_client.response import Candidate, Response
from penstock_client.spec import GenerationOptions, build_spec
from penstock_client.sync import Client
from penstock_client.sync_stream import Interaction, Stream, Texts
from penstock_client.tool_loop import Run, Turn
from penstock_client.tools import Tool
from penstock_client.values import (
    Cost,
    EarlyExit,
    EffectiveSettings,
    Effort,
    FinishReason,
    GenerationPhase,
    InterruptionReason,
    Steered,
    ThinkingMode,
    ThinkingOutcome,
    Timing,
    TokenLogprob,
    TokenLogprobs,
    ToolCallStatus,
    ToolMode,
    Usage,
    usd_from_ticks,
)

try:
    __version__ = _metadata.version("penstock-client")
except _metadata.PackageNotFoundError:  # not installed, only on the path
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    # clients
    "Client",
    "AsyncClient",
    "Stream",
    "AsyncStream",
    "Texts",
    "AsyncTexts",
    "Interaction",
    "AsyncInteraction",
    "Reconnect",
    "RETRY_READS_SERVICE_CONFIG",
    # requests
    "Message",
    "Part",
    "TextPart",
    "ThoughtPart",
    "ImagePart",
    "ToolCall",
    "ToolResult",
    "GenerationOptions",
    "Conversation",
    "build_spec",
    # tools
    "tool",
    "Tool",
    "FunctionTool",
    "ToolError",
    "Run",
    "Turn",
    # events
    "Event",
    "Started",
    "ThoughtDelta",
    "ThinkingFinished",
    "AnswerDelta",
    "ToolCallStarted",
    "ToolCallArguments",
    "ToolCallFinished",
    "Interrupted",
    "Continued",
    "Finished",
    # replies
    "Response",
    "Candidate",
    "Usage",
    "Cost",
    "Timing",
    "Steered",
    "GenerationPhase",
    "EffectiveSettings",
    "ThinkingMode",
    "ThinkingOutcome",
    "InterruptionReason",
    "FinishReason",
    "ToolCallStatus",
    "ToolMode",
    "EarlyExit",
    "Effort",
    "EffortBudget",
    "TokenLogprob",
    "TokenLogprobs",
    "TokenCount",
    "ModelCard",
    "ProfileFeature",
    "ExpertLoad",
    "LayerLoad",
    "PriceTier",
    "usd_from_ticks",
    # exceptions
    "PenstockError",
    "InvalidRequest",
    "BudgetDoesNotFit",
    "ContextOverflow",
    "FeatureOff",
    "NotImplementedYet",
    "ModelNotFound",
    "GenerationNotFound",
    "Overloaded",
    "MessageTooLarge",
    "DeadlineExceeded",
    "Unavailable",
    "CallerRefused",
    "Cancelled",
    "PoisonousRequest",
    "ServerFault",
    "BrokenStream",
    "TurnLimitReached",
    "UnparsableAnswer",
    "FieldViolation",
]
