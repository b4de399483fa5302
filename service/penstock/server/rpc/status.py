"""Map the service's errors to gRPC statuses and their details."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from penstock import errors
from penstock.server.convert.generation import duration_to_proto

DOMAIN = "penstock.v1"
DETAILS_KEY = "grpc-status-details-bin"

_CODES: dict[type[errors.PenstockError], grpc.StatusCode] = {
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextOverflow: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FeatureOff: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotImplementedYet: grpc.StatusCode.UNIMPLEMENTED,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.CallerUnknown: grpc.StatusCode.UNAUTHENTICATED,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ClientTooSlow: grpc.StatusCode.CANCELLED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.EngineDown: grpc.StatusCode.UNAVAILABLE,
    errors.PoisonousRequest: grpc.StatusCode.ABORTED,
    errors.GenerationNotFound: grpc.StatusCode.NOT_FOUND,
    errors.EngineRefused: grpc.StatusCode.INTERNAL,
    errors.ServiceFault: grpc.StatusCode.INTERNAL,
}
# Message for internal errors: no exception text ever leaves the process.
_INTERNAL = "internal error; the server's log has the cause"


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, bytes]:
    """Return status code, message and serialised google.rpc.Status of an error; INTERNAL for unexpected ones."""
    if not isinstance(error, errors.PenstockError) or type(error) not in _CODES:
        return _packed(grpc.StatusCode.INTERNAL, _INTERNAL, [_info("INTERNAL", {})])
    code = _CODES[type(error)]
    message = _INTERNAL if code is grpc.StatusCode.INTERNAL else error.message
    details: list[Message] = [_info(error.reason, dict(error.metadata))]
    if isinstance(error, errors.BadRequest):
        details.append(_bad_request(error))
    if isinstance(error, errors.QuotaExceeded):
        details.append(_quota_failure(error))
    if isinstance(error, (errors.Overloaded, errors.QuotaExceeded)):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_to_proto(error.retry_after_seconds)))
    return _packed(code, message, details)


def _info(reason: str, metadata: dict[str, str]) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _bad_request(error: errors.BadRequest) -> error_details_pb2.BadRequest:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description, reason=v.reason)
        for v in error.violations
    ]
    return error_details_pb2.BadRequest(field_violations=violations)


def _quota_failure(error: errors.QuotaExceeded) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=f"caller:{error.caller}", description=error.message)
    return error_details_pb2.QuotaFailure(violations=[violation])


def _packed(code: grpc.StatusCode, message: str, details: list[Message]) -> tuple[grpc.StatusCode, str, bytes]:
    packed = []
    for detail in details:
        wrapper = any_pb2.Any()
        wrapper.Pack(detail)
        packed.append(wrapper)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return code, message, status.SerializeToString()
