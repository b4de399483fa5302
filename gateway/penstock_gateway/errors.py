"""Errors in OpenAI's shape: status, `{"error": {...}}`, and the headers that clients read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from penstock_client import FieldViolation, MessageTooLarge, PenstockError
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.reachability import is_unreachable

REQUEST, AUTHENTICATION, PERMISSION = "invalid_request_error", "authentication_error", "permission_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"
ParamOf = Callable[[str], str | None]
"""Returns the name that a field of the service's API has in the client's request; None where it has none."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe how a reason of the service is told to an OpenAI client.

    Attributes:
        status: HTTP status.
        type: OpenAI's `type`.
        code: OpenAI's `code` where it has one for this, else the reason in small letters.
        retry: Whether OpenAI's SDKs may repeat the call by themselves; None leaves it to the status.
    """

    status: int
    type: str
    code: str
    retry: bool | None = None


KINDS: Mapping[str, Kind] = {
    "INVALID_FIELD": Kind(400, REQUEST, "invalid_value"),
    "MISSING_FIELD": Kind(400, REQUEST, "missing_required_parameter"),
    "CONFLICTING_FIELDS": Kind(400, REQUEST, "conflicting_parameters"),
    "LIMIT_EXCEEDED": Kind(400, REQUEST, "limit_exceeded"),
    "BUDGET_DOES_NOT_FIT": Kind(400, REQUEST, "budget_does_not_fit"),
    "CONTEXT_OVERFLOW": Kind(400, REQUEST, "context_length_exceeded"),
    "FEATURE_OFF": Kind(400, REQUEST, "feature_off"),
    "NOT_IMPLEMENTED": Kind(400, REQUEST, "not_implemented"),
    "MODEL_NOT_FOUND": Kind(404, REQUEST, "model_not_found"),
    "GENERATION_NOT_FOUND": Kind(404, REQUEST, "generation_not_found"),
    "MESSAGE_TOO_LARGE": Kind(413, REQUEST, "request_too_large"),
    "OVERLOADED": Kind(503, SERVER, "overloaded"),
    "QUOTA_EXCEEDED": Kind(429, RATE_LIMIT, "rate_limit_exceeded"),
    "DRAINING": Kind(503, SERVER, "draining"),
    "ENGINE_DOWN": Kind(503, SERVER, "engine_down"),
    "DEADLINE_PASSED": Kind(504, SERVER, "deadline_exceeded", retry=False),
    "CLIENT_TOO_SLOW": Kind(408, REQUEST, "client_too_slow", retry=False),
    "POISONOUS_REQUEST": Kind(500, SERVER, "poisonous_request", retry=False),
    "ENGINE_REFUSED": Kind(500, SERVER, "engine_refused", retry=False),
    "INTERNAL": Kind(500, SERVER, "internal_error", retry=False),
    "CALLER_REFUSED": Kind(403, PERMISSION, "permission_denied"),
}
"""By the service's ErrorReason. docs/reference/openai-compatibility.md has the same table; a test compares them."""
BY_CODE: Mapping[str, Kind] = {
    "UNAUTHENTICATED": Kind(401, AUTHENTICATION, "invalid_api_key"),
    "PERMISSION_DENIED": KINDS["CALLER_REFUSED"],
    "INVALID_ARGUMENT": KINDS["INVALID_FIELD"],
    "FAILED_PRECONDITION": KINDS["FEATURE_OFF"],
    "UNIMPLEMENTED": KINDS["NOT_IMPLEMENTED"],
    "NOT_FOUND": Kind(404, REQUEST, "not_found"),
    "RESOURCE_EXHAUSTED": KINDS["OVERLOADED"],
    "DEADLINE_EXCEEDED": KINDS["DEADLINE_PASSED"],
    "UNAVAILABLE": Kind(503, SERVER, "service_unavailable"),
    "CANCELLED": Kind(500, SERVER, "cancelled", retry=False),
}
"""By gRPC status code, for statuses without a reason and for codes that say more than the reason."""
_UNKNOWN = KINDS["INTERNAL"]
_UNREACHABLE = "the gateway cannot reach the service; the gateway's log has the cause"
_SPEC_PATH = re.compile(r"\b(?:spec(?:\.[a-z]\w*(?:\[\d+\])?)+|max_output_tokens\b)")
"""Names of the service that its descriptions of other fields contain."""
_UNREAD = (408, 413, 415)
"""Statuses after which the rest of a body may still come: the connection is closed, so that nobody has to read it."""
_FIELDS = {"MODEL_NOT_FOUND": ("spec.model",), "CONTEXT_OVERFLOW": ("spec.messages.messages", "spec.text")}
"""The fields that a reason may be about, where the service names none."""


class GatewayError(Exception):
    """A request that this gateway refuses itself.

    Attributes:
        message: The text, with the received and the allowed values.
        kind: Status, type and code.
        param: The field of the request, or None.
        reason: Name of a `penstock.v1.ErrorReason`, as the service would have given it.
        retry_after_seconds: The time to wait before the call is repeated, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind | None = None,
        param: str | None = None,
        reason: str = "INVALID_FIELD",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.reason = message, param, reason
        self.kind = kind or KINDS[reason]
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error, ready for a body or for an event of a stream.

    Attributes:
        status: HTTP status.
        body: What is encoded: `{"error": {...}}`.
        headers: The headers that belong to it.
    """

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def encoded(self) -> bytes:
        """The body as JSON."""
        return msgspec.json.encode(self.body)

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(self.encoded, self.status, self.headers, media_type="application/json")


def no_param(_: str) -> str | None:
    """Return None: the request has no fields."""
    return None


def to_reply(error: PenstockError | GatewayError, param_of: ParamOf = no_param) -> ErrorReply:
    """Return the reply for an error of the service or of the gateway itself."""
    if isinstance(error, GatewayError):
        body = _body(error.message, error.kind, error.param, {"reason": error.reason})
        return ErrorReply(error.kind.status, body, _headers(error.kind, error.retry_after_seconds, {}))
    code = error.code.name if error.code is not None else ""
    kind = _kind_of(error, code)
    violations = [_violation(one, param_of) for one in error.violations]
    named = [one.field for one in error.violations] or [error.metadata.get("field", "")]
    fields = [one for one in named if one] or _FIELDS.get(error.reason, ())
    param = next((name for one in fields if (name := param_of(one))), None)
    details: dict[str, Any] = {"reason": error.reason, "metadata": dict(error.metadata)}
    if violations:
        details["violations"] = violations
    message = _in_the_requests_words(error, param_of)
    body = _body(message, kind, param, details)
    return ErrorReply(kind.status, body, _headers(kind, error.retry_after_seconds, error.rate_limits))


def _kind_of(error: PenstockError, code: str) -> Kind:
    if code == "UNAUTHENTICATED":
        return BY_CODE[code]
    if isinstance(error, MessageTooLarge):  # gRPC refuses it before the service can give a reason
        return KINDS["MESSAGE_TOO_LARGE"]
    return KINDS.get(error.reason) or BY_CODE.get(code) or _UNKNOWN


def rate_limit_headers(limits: Mapping[str, str]) -> dict[str, str]:
    """Return the `x-ratelimit-*` headers for what the service says of the caller's limits."""
    return {f"x-ratelimit-{name}": value for name, value in limits.items()}


def _headers(kind: Kind, retry_after: float | None, limits: Mapping[str, str]) -> dict[str, str]:
    headers = rate_limit_headers(limits)
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after * 1000)))
    if kind.retry is not None:
        headers["x-should-retry"] = str(kind.retry).lower()
    if kind.status in _UNREAD:
        headers["connection"] = "close"
    if kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _body(message: str, kind: Kind, param: str | None, details: Mapping[str, Any]) -> dict[str, Any]:
    error = {"message": message, "type": kind.type, "param": param, "code": kind.code, "penstock": details}
    return {"error": error}


def _violation(violation: FieldViolation, param_of: ParamOf) -> dict[str, Any]:
    return {
        "param": param_of(violation.field),
        "field": violation.field,
        "description": violation.description,
        "reason": violation.reason,
    }


def _in_the_requests_words(error: PenstockError, param_of: ParamOf) -> str:
    """Return the message with the field names of the client's request, where all of it is about fields."""
    if not error.violations:
        return _UNREACHABLE if is_unreachable(error) else error.message
    return "; ".join(_sentence(one, param_of) for one in error.violations)


def _sentence(violation: FieldViolation, param_of: ParamOf) -> str:

    def name_of(found: re.Match[str]) -> str:
        path = found[0] if found[0].startswith("spec.") else f"spec.output.{found[0]}"
        return param_of(path) or found[0]

    description = _SPEC_PATH.sub(name_of, violation.description)
    return f"{param_of(violation.field) or violation.field} {description}"


def refusals(messages: Sequence[tuple[str, str]]) -> GatewayError:
    """Return one error for all fields that are refused, each with its text; the first one is the `param`."""
    return GatewayError("; ".join(text for _, text in messages), param=messages[0][0])


async def penstock_error(request: Request, error: Exception) -> Response:
    """Answer with an error of the service."""
    assert isinstance(error, PenstockError | GatewayError)
    if isinstance(error, PenstockError):
        request.state.service.note(error)
    param_of: ParamOf = getattr(request.state, "param_of", no_param)
    return to_reply(error, param_of).response()


async def http_error(_: Request, error: Exception) -> Response:
    """Answer an unknown path or method in OpenAI's shape."""
    status: int = getattr(error, "status_code", 500)
    text = {404: "unknown path; GET /v1/models lists the model", 405: "the path does not have this method"}
    kind = Kind(status, REQUEST, {404: "unknown_url", 405: "method_not_allowed"}.get(status, "http_error"))
    failure = GatewayError(text.get(status, "the request cannot be answered"), kind=kind)
    reply = to_reply(failure)
    allow = getattr(error, "headers", None) or {}
    return Response(reply.encoded, status, {**reply.headers, **allow}, media_type="application/json")


async def internal_error(_: Request, __: Exception) -> Response:
    """Answer what nobody expected, without its text."""
    failure = GatewayError("internal error of the gateway; its log has the cause", reason="INTERNAL")
    return to_reply(failure).response()
