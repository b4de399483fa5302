"""Authenticate, count, trace and audit every call: the middleware, and the record of one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.admission.quotas.quotas import Quotas
from penstock.auth.authenticator import Authenticator
from penstock.auth.identity import ANONYMOUS, Principal
from penstock.errors import CallerUnknown, Overloaded, PenstockError, QuotaExceeded
from penstock.server.request_context import RequestContext
from penstock.server.service_context import Context
from penstock.telemetry.audit import NO_AUDIT, Audit
from penstock.telemetry.hooks import CURRENT_CALL, NO_HOOKS, CallHooks, TelemetryHooks

_GENERATION = "/penstock.v1.GenerationService/"
# To resume a stream is no new request, and to cancel one must always be possible.
_UNCOUNTED = frozenset({f"{_GENERATION}Resume", f"{_GENERATION}Cancel"})


@dataclass(frozen=True, slots=True)
class Authentication:
    """Result of authentication: the caller, None where the metadata names none; and the error that refuses the call."""

    caller: Principal | None
    refusal: PenstockError | None = None


@dataclass(frozen=True, slots=True)
class CallMiddleware:
    """Authentication, request quota, telemetry and audit of every call."""

    authenticator: Authenticator
    quotas: Quotas = field(default_factory=Quotas)
    hooks: TelemetryHooks = NO_HOOKS
    audit: Audit = NO_AUDIT

    async def authenticate(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Authentication:
        """Find the caller by its bearer token and count the request, before the message is read."""
        caller = None
        try:
            caller = await self.authenticator.authenticate(method, metadata)
            if caller is not None:
                await self.count(method, caller)
        except PenstockError as error:
            return Authentication(caller, error)
        return Authentication(caller)

    async def count(self, method: str, caller: Principal) -> None:
        """Count one request of a caller. Raise QuotaExceeded."""
        if method.startswith(_GENERATION) and method not in _UNCOUNTED:
            await self.quotas.count_request(caller)


class CallRecord:
    """One call for telemetry and the audit log: who it is from, and how it ended."""

    def __init__(self, middleware: CallMiddleware, method: str, context: Context, caller: Principal | None) -> None:
        self._middleware = middleware
        self._method = method
        self._context = context
        # Read now: gRPC may crash when it is asked for the peer of a cancelled call.
        self._peer = str(context.peer())
        self._has_ended = False
        self._began = time.monotonic()
        self.hooks: CallHooks = middleware.hooks.call(method, tuple(context.invocation_metadata() or ()))
        CURRENT_CALL.set(self.hooks)  # for log lines
        self.caller = ANONYMOUS
        # Set even if the call is refused, for the trailers.
        self._is_from(caller or ANONYMOUS)

    def _is_from(self, caller: Principal) -> None:
        self.caller = caller
        if caller.is_known:
            self.hooks.caller_is(caller.id, caller.label)

    async def authorize(self, shown: Principal | None) -> None:
        """Decide who the caller is where it showed no token, and that it may call this method.

        Raise CallerUnknown, CallerNotAllowed or QuotaExceeded.
        """
        middleware, context = self._middleware, self._context
        caller = middleware.authenticator.authorize(self._method, shown, self._peer, context.auth_context())
        self._is_from(caller)
        if shown is None:
            await middleware.count(self._method, caller)

    def request_context(self) -> RequestContext:
        """Return what the method is given, once its message has arrived."""
        now, left = time.monotonic(), self._context.time_remaining()
        return RequestContext(self.caller, now, None if left is None else now + left, self.hooks)

    async def trailers(self) -> Sequence[tuple[str, str]]:
        """Return what the caller has left of its limits, as metadata."""
        try:
            return await self._middleware.quotas.trailers(self.caller)
        except Overloaded:  # The counts cannot be reached: that must not fail a call that succeeded.
            return ()

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """Report the end of the call to telemetry and audit, once. `code` is the name of the gRPC status."""
        if self._has_ended:
            return
        self._has_ended = True
        self.hooks.ended(code, error)
        audit, caller = self._middleware.audit, self.caller
        if audit.is_on:
            is_turned_away = caller is ANONYMOUS or isinstance(error, (CallerUnknown, QuotaExceeded))
            write = audit.write_turned_away if is_turned_away else audit.write
            write(
                "call",
                caller=None if caller is ANONYMOUS else caller.id,
                how=None if caller is ANONYMOUS else caller.auth_method.value,
                key_id=caller.key_id or None,
                peer=self._peer,
                method=self._method,
                status=code,
                reason=error.reason if isinstance(error, PenstockError) else None,
                seconds=round(time.monotonic() - self._began, 3),
            )
