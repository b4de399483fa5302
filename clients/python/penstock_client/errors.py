"""The exceptions that a call can raise.

    PenstockError                              code                 reason (ErrorReason)
    |-- InvalidRequest      .violations        INVALID_ARGUMENT     INVALID_FIELD, MISSING_FIELD, CONFLICTING_FIELDS,
    |   |                                                           LIMIT_EXCEEDED
    |   |-- BudgetDoesNotFit                                        BUDGET_DOES_NOT_FIT
    |   `-- ContextOverflow                                         CONTEXT_OVERFLOW
    |-- FeatureOff                             FAILED_PRECONDITION  FEATURE_OFF
    |-- NotImplementedYet                      UNIMPLEMENTED        NOT_IMPLEMENTED
    |-- ModelNotFound                          NOT_FOUND            MODEL_NOT_FOUND
    |-- GenerationNotFound                     NOT_FOUND            GENERATION_NOT_FOUND
    |-- Overloaded    .retry_after_seconds     RESOURCE_EXHAUSTED   OVERLOADED, QUOTA_EXCEEDED
    |-- MessageTooLarge                        RESOURCE_EXHAUSTED   MESSAGE_TOO_LARGE, or none from gRPC itself
    |-- DeadlineExceeded                       DEADLINE_EXCEEDED    DEADLINE_PASSED
    |-- Unavailable                            UNAVAILABLE          DRAINING, ENGINE_DOWN, or none: no server answers
    |-- CallerRefused                          UNAUTHENTICATED, PERMISSION_DENIED     CALLER_REFUSED
    |-- Cancelled                              CANCELLED            CLIENT_TOO_SLOW, or none
    |-- PoisonousRequest                       ABORTED              POISONOUS_REQUEST
    |-- ServerFault                            INTERNAL, UNKNOWN, DATA_LOSS           ENGINE_REFUSED, INTERNAL
    |-- BrokenStream                           (none)               events are missing
    |-- TurnLimitReached  .run                 (none)               `run` reached max_turns
    `-- UnparsableAnswer  .errors              (none)               the answer is no `response_format`

The reason selects the class, else the code does: a status without details becomes the nearest of these. Wrong use of
this package raises TypeError or ValueError before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from penstock_client.tool_loop import Run

ERROR_DOMAIN = "penstock.v1"
_RATE_LIMIT = "x-ratelimit-"
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request that is wrong.

    Attributes:
        field: Proto path from the request's root, such as `spec.thinking.thinking_budget`.
        description: The received value and the allowed ones.
        reason: Name of a `penstock.v1.ErrorReason`.
    """

    field: str
    description: str
    reason: str


class PenstockError(Exception):
    """A call that did not succeed.

    Attributes:
        message: The server's message, or the client's own.
        code: gRPC status code; None where no status came.
        reason: Name of a `penstock.v1.ErrorReason`; empty where the server named none.
        metadata: The values of the reason, as documented at `penstock.v1.ErrorReason`.
        violations: The fields of the request that are wrong.
        retry_after_seconds: The time to wait that the server gave, or None.
        rate_limits: The caller's limits and what is left of them, such as `limit-requests` and `remaining-requests`;
            empty where the server did not send them.
        run: The turns until then, where `run` failed; else None.
    """

    run: Run | None = None

    # One parameter for each attribute.
    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        rate_limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds
        self.rate_limits: Mapping[str, str] = dict(rate_limits or {})


class InvalidRequest(PenstockError):
    """The request is invalid; `violations` names the fields."""


class BudgetDoesNotFit(InvalidRequest):
    """The thinking budget plus the answer reserve is larger than max_output_tokens."""


class ContextOverflow(InvalidRequest):
    """The prompt does not fit into the context window.

    `metadata` has prompt_tokens, window_tokens, output_tokens_needed and overflow_tokens.
    """


class FeatureOff(PenstockError):
    """The request needs a feature that is off in this server's profile; `client.model()` lists them with reasons."""


class NotImplementedYet(PenstockError):
    """This version of the service does not implement the request."""


class ModelNotFound(PenstockError):
    """The request names a model that this server does not serve."""


class GenerationNotFound(PenstockError):
    """The generation to resume is unknown, expired, or belongs to another caller."""


class Overloaded(PenstockError):
    """The server is at capacity, or this caller's quota is used up (QUOTA_EXCEEDED).

    `retry_after_seconds` is the server's estimate of the time to wait.
    """


class MessageTooLarge(PenstockError):
    """A message is larger than the sender or the receiver allows."""


class DeadlineExceeded(PenstockError):
    """The deadline passed before the call ended.

    `metadata` has thought_tokens, answer_tokens and tool_tokens, the tokens generated until then. The server counted
    them or, where this client noticed the deadline first, the client counted the tokens that had arrived.

    Attributes:
        is_own: True where this client or a proxy noticed the deadline first, and no status of the service came.
    """

    is_own = False

    def count(self, thought_tokens: int = 0, answer_tokens: int = 0, tool_tokens: int = 0) -> None:
        """Fill in the reason and the metadata that the service would have sent."""
        self.is_own, self.reason = True, "DEADLINE_PASSED"
        counts = {"thought_tokens": thought_tokens, "answer_tokens": answer_tokens, "tool_tokens": tool_tokens}
        self.metadata = {name: str(count) for name, count in counts.items()}


class Unavailable(PenstockError):
    """No server answers (no reason), the server is shutting down (DRAINING), or its engine is down (ENGINE_DOWN)."""


class CallerRefused(PenstockError):
    """The credentials are missing or invalid, or the caller is not allowed to make this call."""


class Cancelled(PenstockError):
    """The call was cancelled by this client, a proxy or the server."""


class PoisonousRequest(PenstockError):
    """The engine died several times while it processed this request; the server does not try it again."""


class ServerFault(PenstockError):
    """The service failed. Its log has the cause under `metadata["generation_id"]`."""


class BrokenStream(PenstockError):
    """The stream ended without its last event or skipped one, so the received reply is incomplete.

    Attributes:
        is_cut_short: True where the last event did not come; False where an event before it is missing.
    """

    is_cut_short = False

    @classmethod
    def cut_short(cls) -> BrokenStream:
        """Return the exception for a stream that ended without its last event."""
        failure = cls("the stream ended without its last event")
        failure.is_cut_short = True
        return failure


class TurnLimitReached(PenstockError):
    """The model still called tools in the last turn that `run` may make; `run` has all turns, with usage and cost.

    The calls of the last turn were not executed.
    """


class UnparsableAnswer(PenstockError):
    """The answer is no value of `response_format`, for instance because max_output_tokens cut it.

    Attributes:
        errors: Where the answer does not fit, as pydantic says it; without the answer's text.
    """

    errors: tuple[Any, ...] = ()


BY_REASON: Mapping[str, type[PenstockError]] = {
    "INVALID_FIELD": InvalidRequest,
    "MISSING_FIELD": InvalidRequest,
    "CONFLICTING_FIELDS": InvalidRequest,
    "LIMIT_EXCEEDED": InvalidRequest,
    "BUDGET_DOES_NOT_FIT": BudgetDoesNotFit,
    "CONTEXT_OVERFLOW": ContextOverflow,
    "FEATURE_OFF": FeatureOff,
    "NOT_IMPLEMENTED": NotImplementedYet,
    "MODEL_NOT_FOUND": ModelNotFound,
    "GENERATION_NOT_FOUND": GenerationNotFound,
    "OVERLOADED": Overloaded,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "QUOTA_EXCEEDED": Overloaded,
    "CLIENT_TOO_SLOW": Cancelled,
    "DEADLINE_PASSED": DeadlineExceeded,
    "DRAINING": Unavailable,
    "ENGINE_DOWN": Unavailable,
    "ENGINE_REFUSED": ServerFault,
    "INTERNAL": ServerFault,
    "CALLER_REFUSED": CallerRefused,
    "POISONOUS_REQUEST": PoisonousRequest,
}
BY_CODE: Mapping[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedYet,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: CallerRefused,
    grpc.StatusCode.PERMISSION_DENIED: CallerRefused,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.DATA_LOSS: ServerFault,
}


def from_rpc_error(error: Any) -> PenstockError:
    """Return the exception for a failed call of the blocking or the asyncio stubs.

    Status details that cannot be parsed are ignored.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name.lower().replace("_", " ")
    info, bad_request, retry = _details(error)
    violations = tuple(FieldViolation(v.field, v.description, v.reason) for v in bad_request.field_violations)
    kind = BY_REASON.get(info.reason) or BY_CODE.get(code, PenstockError)
    # gRPC's own limit on message size uses the code of overload, where trying again would be wrong.
    if kind is Overloaded and not info.reason and "message larger than max" in message:
        kind = MessageTooLarge
    made = kind(
        message,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        violations=violations,
        retry_after_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        rate_limits=rate_limits_of(error.trailing_metadata()),
    )
    if isinstance(made, DeadlineExceeded) and not made.reason:
        made.count()
    return made


def rate_limits_of(trailers: Any) -> dict[str, str]:
    """Return the `x-ratelimit-*` trailers, with this prefix removed from their names."""
    found = {key: value for key, value in trailers or () if key.startswith(_RATE_LIMIT)}
    return {key.removeprefix(_RATE_LIMIT): value for key, value in found.items() if isinstance(value, str)}


def _details(
    error: Any,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo]:
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    status = status_pb2.Status()
    try:
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS_KEY:
                status.ParseFromString(value)
        for detail in status.details:
            if not detail.Unpack(info):
                _ = detail.Unpack(bad_request) or detail.Unpack(retry)
    except DecodeError:  # details of a proxy or another service, in another form
        pass
    if info.domain != ERROR_DOMAIN:
        info.Clear()
    return info, bad_request, retry
