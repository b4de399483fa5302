"""Define every error that the service raises. `server.rpc.status` maps them to gRPC statuses.

    PenstockError
    |-- BadRequest          the request is invalid; has one or more field paths         INVALID_ARGUMENT
    |-- ContextOverflow     the prompt does not fit; has the numbers                    INVALID_ARGUMENT + ErrorInfo
    |-- FeatureOff          the request needs a feature that the profile has off        FAILED_PRECONDITION
    |-- NotImplementedYet   an RPC or field of the API that this version lacks          UNIMPLEMENTED
    |-- ModelNotFound       the request names another model than the served one         NOT_FOUND
    |-- CallerUnknown       no credentials, or invalid ones                             UNAUTHENTICATED
    |-- CallerNotAllowed    the caller is known and lacks a permission                  PERMISSION_DENIED
    |-- Overloaded          no capacity now; has the delay before a retry               RESOURCE_EXHAUSTED + RetryInfo
    |-- QuotaExceeded       a limit of this caller is exceeded     RESOURCE_EXHAUSTED + RetryInfo + QuotaFailure
    |-- MessageTooLarge     a message above its size limit                              RESOURCE_EXHAUSTED
    |-- ClientTooSlow       the client sent or read nothing for too long                CANCELLED
    |-- RequestLost         the request did not arrive; gRPC has told the client why    CANCELLED
    |-- DeadlinePassed      the deadline passed                                         DEADLINE_EXCEEDED
    |-- Draining            the server is shutting down                                 UNAVAILABLE
    |-- ServiceFault        an unexpected error, with the generation that it ended      INTERNAL, no text
    |-- EngineRefused       the engine refused a validated request (our bug)            INTERNAL, no text
    |-- EngineDown          the engine is dead or restarting                            UNAVAILABLE
    |-- PoisonousRequest    was running at several engine deaths, is not retried        ABORTED
    |-- GenerationNotFound  nothing to resume: unknown, expired, or another caller's    NOT_FOUND
    `-- ConfigError         invalid configuration; raised before serving only           (exit code 2)

`reason` is a value of `penstock.v1.ErrorReason` without its prefix. Messages never contain prompt or output text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

FieldReason: TypeAlias = Literal[
    "INVALID_FIELD", "MISSING_FIELD", "CONFLICTING_FIELDS", "LIMIT_EXCEEDED", "BUDGET_DOES_NOT_FIT"
]
"""Why a field is refused. The reason of the call's error is that of its first violation."""


class PenstockError(Exception):
    """Report an error of the service with its ErrorInfo reason, a message and metadata."""

    reason: str = "UNSPECIFIED"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}

    def add(self, **metadata: object) -> None:
        """Add metadata that only a caller of the raising code knows; present entries stay."""
        self.metadata = {key: str(value) for key, value in metadata.items()} | dict(self.metadata)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """Report one invalid field. `field` is a proto path, such as `spec.thinking.thinking_budget`."""

    field: str
    description: str
    reason: FieldReason

    def __post_init__(self) -> None:
        """Replace surrogates without a partner: JSON in a request can spell them, and UTF-8 cannot."""
        object.__setattr__(self, "field", _well_formed(self.field))
        object.__setattr__(self, "description", _well_formed(self.description))


def _well_formed(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class BadRequest(PenstockError):
    """Report invalid fields of a request."""

    reason = "INVALID_FIELD"

    def __init__(self, *violations: FieldViolation, **metadata: object) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), **metadata)
        self.violations = violations
        self.reason = violations[0].reason


class ContextOverflow(PenstockError):
    """Report a prompt that does not fit the context window."""

    reason = "CONTEXT_OVERFLOW"


class FeatureOff(PenstockError):
    """Report a request that needs a feature which the profile has off."""

    reason = "FEATURE_OFF"


class NotImplementedYet(PenstockError):
    """Report an RPC or field that this version does not implement."""

    reason = "NOT_IMPLEMENTED"


class ModelNotFound(PenstockError):
    """Report a request for another model than the served one."""

    reason = "MODEL_NOT_FOUND"


class CallerUnknown(PenstockError):
    """Report missing or invalid credentials."""

    reason = "CALLER_REFUSED"


class CallerNotAllowed(PenstockError):
    """Report a caller that lacks a permission."""

    reason = "CALLER_REFUSED"


class Overloaded(PenstockError):
    """Report that there is no capacity now. `resource` names what is exhausted."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, resource: str, retry_after_seconds: float, **metadata: object) -> None:
        super().__init__(message, resource=resource, **metadata)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(PenstockError):
    """Report that a caller's limit is exceeded. `quota` is the limit's configuration key."""

    reason = "QUOTA_EXCEEDED"

    def __init__(
        self, message: str, *, caller: str, quota: str, retry_after_seconds: float, **metadata: object
    ) -> None:
        super().__init__(message, quota=quota, **metadata)
        self.caller = caller
        self.retry_after_seconds = retry_after_seconds


class MessageTooLarge(PenstockError):
    """Report a message above its size limit."""

    reason = "MESSAGE_TOO_LARGE"


class ClientTooSlow(PenstockError):
    """Report a client that sent no complete request, or read no message, for too long."""

    reason = "CLIENT_TOO_SLOW"


class RequestLost(PenstockError):
    """Report a request that never arrived: the client left, or gRPC refused it. For logs, metrics and traces."""

    reason = "REQUEST_LOST"


class DeadlinePassed(PenstockError):
    """Report that the deadline passed, with the tokens generated until then."""

    reason = "DEADLINE_PASSED"

    def __init__(
        self, message: str, *, thought_tokens: int = 0, answer_tokens: int = 0, tool_tokens: int = 0, **metadata: object
    ) -> None:
        counts = {"thought_tokens": thought_tokens, "answer_tokens": answer_tokens, "tool_tokens": tool_tokens}
        super().__init__(message, **counts, **metadata)


class Draining(PenstockError):
    """Report that the server is shutting down."""

    reason = "DRAINING"


class ServiceFault(PenstockError):
    """Report an unexpected error. It is raised from that error, so that the log can show its cause."""

    reason = "INTERNAL"


class EngineRefused(PenstockError):
    """Report that the engine refused a request that had passed validation."""

    reason = "ENGINE_REFUSED"


class ConstraintLost(EngineRefused):
    """Report that the engine sampled a token which the constraint does not allow; the tokens before it are valid."""


class EngineDown(PenstockError):
    """Report that the engine is dead or restarting."""

    reason = "ENGINE_DOWN"


class EngineDied(EngineDown):
    """Report that the engine died during a run. `suspected`: the run may have killed it, and is to be retried alone."""

    def __init__(self, *, suspected: bool) -> None:
        super().__init__("the engine died")
        self.suspected = suspected


class PoisonousRequest(PenstockError):
    """Report a request that was running at several engine deaths."""

    reason = "POISONOUS_REQUEST"


class GenerationNotFound(PenstockError):
    """Report that there is no such generation to resume or cancel."""

    reason = "GENERATION_NOT_FOUND"


class ConfigError(PenstockError):
    """Report an invalid configuration."""

    reason = "CONFIG"
