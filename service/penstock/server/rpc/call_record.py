"""Authenticate, count, trace and audit every call: the middleware, and the record of one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.admission.quotas.quotas import Quotas
from penstock.auth.authenticator import Authenticator
from penstock.auth.identity import ANONYMOUS, CURRENT_PRINCIPAL, Principal
from penstock.errors import CallerUnknown, Overloaded, PenstockError, QuotaExceeded
from penstock.server.service_context import Context
from penstock.telemetry.audit import NO_AUDIT, Audit
from penstock.telemetry.hooks import CURRENT_CALL, NO_HOOKS, CallHooks, TelemetryHooks

_GENERATION = "/penstock.v1.GenerationService/"
# To resume a stream is no new request, and to cancel one must always be possible.
_UNCOUNTED = frozenset({f"{_GENERATION}Resume", f"{_GENERATION}Cancel"})


@dataclass(frozen=True, slots=True)
class CallMiddleware:
    """Hold what the interceptor applies to every call: authenticator, quotas, telemetry hooks and audit log."""

    authenticator: Authenticator
    quotas: Quotas = field(default_factory=Quotas)
    hooks: TelemetryHooks = NO_HOOKS
    audit: Audit = NO_AUDIT

    async def authenticate(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> Principal | PenstockError | None:
        """Identify the caller by its bearer token, before the message is read, and count the request.

        Return the principal, None where no token was sent, or the error that refuses the call.
        """
        try:
            caller = await self.authenticator.authenticate(method, metadata)
            if caller is not None:
                CURRENT_PRINCIPAL.set(caller)  # Set even if the call is refused, for the trailers.
                await self.count(method, caller)
        except PenstockError as error:
            return error
        return caller

    async def count(self, method: str, caller: Principal) -> None:
        """Count one request of a caller. Raise QuotaExceeded."""
        if method.startswith(_GENERATION) and method not in _UNCOUNTED:
            await self.quotas.count_request(caller)


class CallRecord:
    """Record one call for telemetry and audit. `hooks` are in force for the running task."""

    def __init__(self, middleware: CallMiddleware, method: str, context: Context) -> None:
        self._middleware = middleware
        self._method = method
        self._context = context
        # Read now: gRPC may crash when it is asked for the peer of a cancelled call.
        self._peer = str(context.peer())
        self._has_ended = False
        self._began = time.monotonic()
        self.hooks: CallHooks = middleware.hooks.call(method, tuple(context.invocation_metadata() or ()))
        CURRENT_CALL.set(self.hooks)

        self._is_for(CURRENT_PRINCIPAL.get())

    def _is_for(self, caller: Principal) -> None:
        CURRENT_PRINCIPAL.set(caller)
        if caller.is_known:
            self.hooks.caller_is(caller.id, caller.label)

    async def authorize(self, shown: Principal | None) -> None:
        """Make the caller the principal of the running task. Raise CallerUnknown, CallerNotAllowed or QuotaExceeded."""
        middleware, context = self._middleware, self._context
        caller = middleware.authenticator.authorize(self._method, shown, self._peer, context.auth_context())
        self._is_for(caller)
        if shown is None:
            await middleware.count(self._method, caller)

    async def trailers(self) -> Sequence[tuple[str, str]]:
        """Return what the caller has left of its limits, as metadata."""
        try:
            return await self._middleware.quotas.trailers(CURRENT_PRINCIPAL.get())
        except Overloaded:  # The counts cannot be reached: that must not fail a call that succeeded.
            return ()

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """Report the end of the call to telemetry and audit, once. `code` is the name of the gRPC status."""
        if self._has_ended:
            return
        self._has_ended = True
        self.hooks.ended(code, error)
        audit, caller = self._middleware.audit, CURRENT_PRINCIPAL.get()
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
