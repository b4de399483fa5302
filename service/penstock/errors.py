"""Everything the service refuses or fails with. No gRPC here: `wire` holds the one table from these to statuses.

    PenstockError
    |-- BadRequest          the caller's mistake, with one or more field paths          INVALID_ARGUMENT
    |-- ContextOverflow     the prompt does not fit, with the numbers                   INVALID_ARGUMENT + ErrorInfo
    |-- FeatureOff          asked for something that the profile has off                FAILED_PRECONDITION
    |-- NotImplementedYet   an RPC or field of the API that this version does not do    UNIMPLEMENTED
    |-- ModelNotFound       another model than the served one was named                 NOT_FOUND
    |-- CallerUnknown       no credential, or none that is good                         UNAUTHENTICATED
    |-- CallerNotAllowed    known, but this is not for it                               PERMISSION_DENIED
    |-- Overloaded          no room now; carries an honest delay                        RESOURCE_EXHAUSTED + RetryInfo
    |-- QuotaExceeded       this caller has used what it may     RESOURCE_EXHAUSTED + RetryInfo + QuotaFailure
    |-- MessageTooLarge     a message over its limit                                    RESOURCE_EXHAUSTED
    |-- ClientTooSlow       sent no whole request, or took no message, for too long     CANCELLED
    |-- RequestLost         the request did not arrive; gRPC has told the client why    CANCELLED
    |-- DeadlinePassed      the time given was not enough                               DEADLINE_EXCEEDED
    |-- Draining            the server is going away                                    UNAVAILABLE
    |-- ServiceFault        anything unforeseen, with the generation that it ended      INTERNAL, no text
    |-- EngineRefused       the engine turned down what the door let in (our bug)       INTERNAL, no text
    |-- EngineDown          the engine is dead or restarting                            UNAVAILABLE
    |-- PoisonousRequest    in flight at several engine deaths, not tried again         ABORTED
    |-- GenerationNotFound  nothing to resume: unknown, expired, or another caller's     NOT_FOUND
    `-- ConfigError         wrong configuration; only ever raised before serving        (exit code 2)

`reason` is a value of `penstock.v1.ErrorReason` without its prefix. Messages never contain prompt or output text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

FieldReason: TypeAlias = Literal[
    "INVALID_FIELD", "MISSING_FIELD", "CONFLICTING_FIELDS", "LIMIT_EXCEEDED", "BUDGET_DOES_NOT_FIT"
]
"""Why a field is refused; also the reason of the call's error, which is that of its first violation."""


class PenstockError(Exception):
    reason: str = "UNSPECIFIED"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}

    def add(self, **metadata: object) -> None:
        """Add numbers of the reason that only a caller of the raising code knows; those that are there stay."""
        self.metadata = {key: str(value) for key, value in metadata.items()} | dict(self.metadata)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """`field` is a proto path from the request's root, such as `spec.thinking.thinking_budget`."""

    field: str
    description: str
    reason: FieldReason


class BadRequest(PenstockError):
    reason = "INVALID_FIELD"

    def __init__(self, *violations: FieldViolation, **metadata: object) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), **metadata)
        self.violations = violations
        self.reason = violations[0].reason


class ContextOverflow(PenstockError):
    reason = "CONTEXT_OVERFLOW"


class FeatureOff(PenstockError):
    reason = "FEATURE_OFF"


class NotImplementedYet(PenstockError):
    reason = "NOT_IMPLEMENTED"


class ModelNotFound(PenstockError):
    reason = "MODEL_NOT_FOUND"


class CallerUnknown(PenstockError):
    reason = "CALLER_REFUSED"


class CallerNotAllowed(PenstockError):
    reason = "CALLER_REFUSED"


class Overloaded(PenstockError):
    """`resource` is what there is no room in."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, resource: str, retry_after_seconds: float, **metadata: object) -> None:
        super().__init__(message, resource=resource, **metadata)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(PenstockError):
    """`quota` is the configuration's name of it; whatever is left of others goes into the trailers."""

    reason = "QUOTA_EXCEEDED"

    def __init__(
        self, message: str, *, caller: str, quota: str, retry_after_seconds: float, **metadata: object
    ) -> None:
        super().__init__(message, quota=quota, **metadata)
        self.caller = caller
        self.retry_after_seconds = retry_after_seconds


class MessageTooLarge(PenstockError):
    reason = "MESSAGE_TOO_LARGE"


class ClientTooSlow(PenstockError):
    reason = "CLIENT_TOO_SLOW"


class RequestLost(PenstockError):
    """Never sent: the client left, or its message was refused by gRPC's core. For logs, metrics and traces."""

    reason = "REQUEST_LOST"


class DeadlinePassed(PenstockError):
    reason = "DEADLINE_PASSED"

    def __init__(self, message: str, *, thought_tokens: int = 0, answer_tokens: int = 0, **metadata: object) -> None:
        super().__init__(message, thought_tokens=thought_tokens, answer_tokens=answer_tokens, **metadata)


class Draining(PenstockError):
    reason = "DRAINING"


class ServiceFault(PenstockError):
    """Raised from the unforeseen error, so that the log can tell it."""

    reason = "INTERNAL"


class EngineRefused(PenstockError):
    reason = "ENGINE_REFUSED"


class ConstraintLost(EngineRefused):
    """The engine sampled a token that the constraint does not allow; what it gave before holds."""


class EngineDown(PenstockError):
    reason = "ENGINE_DOWN"


class EngineDied(EngineDown):
    """The engine died under a run. `suspected`: the run may have killed it, and is to be tried alone."""

    def __init__(self, *, suspected: bool) -> None:
        super().__init__("the engine died")
        self.suspected = suspected


class PoisonousRequest(PenstockError):
    reason = "POISONOUS_REQUEST"


class GenerationNotFound(PenstockError):
    reason = "GENERATION_NOT_FOUND"


class ConfigError(PenstockError):
    reason = "CONFIG"
