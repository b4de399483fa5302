"""What stands at the border for every call: the gate, the quotas, the onlooker and the audit log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.admission.quotas.quotas import Quotas
from penstock.auth.authenticator import Gate
from penstock.auth.identity import CALLER, NOBODY, Caller
from penstock.errors import CallerUnknown, Overloaded, PenstockError, QuotaExceeded
from penstock.server.service_context import Context
from penstock.telemetry.audit import NO_AUDIT, Audit
from penstock.telemetry.hooks import CALL, CallWatch, Observer
from penstock.telemetry.hooks import NOBODY as NO_OBSERVER

_GENERATION = "/penstock.v1.GenerationService/"
# Coming back to a stream is no new request, and giving one up must always be possible.
_UNCOUNTED = frozenset({f"{_GENERATION}Resume", f"{_GENERATION}Cancel"})


@dataclass(frozen=True, slots=True)
class Border:
    gate: Gate
    quotas: Quotas = field(default_factory=Quotas)
    observer: Observer = NO_OBSERVER
    audit: Audit = NO_AUDIT

    async def knock(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | PenstockError | None:
        """Before the message is read: the caller by its bearer token, why it is turned away, or None where it shows
        none."""
        try:
            caller = await self.gate.enter(method, metadata)
            if caller is not None:
                CALLER.set(caller)  # Known even where it is turned away, and told what it has left.
                await self.count(method, caller)
        except PenstockError as error:
            return error
        return caller

    async def count(self, method: str, caller: Caller) -> None:
        """Raises QuotaExceeded."""
        if method.startswith(_GENERATION) and method not in _UNCOUNTED:
            await self.quotas.count_request(caller)


class Entry:
    """One call at the border. `watch` is the onlooker's, and in force for the running task."""

    def __init__(self, border: Border, method: str, context: Context) -> None:
        self._border = border
        self._method = method
        self._context = context
        # Asked for now: of a call that was cancelled, gRPC may crash over the question.
        self._peer = str(context.peer())
        self._has_ended = False
        self._began = time.monotonic()
        self.watch: CallWatch = border.observer.call(method, tuple(context.invocation_metadata() or ()))
        CALL.set(self.watch)

        self._is_for(CALLER.get())

    def _is_for(self, caller: Caller) -> None:
        CALLER.set(caller)
        if caller.is_known:
            self.watch.caller_is(caller.id, caller.label)

    async def admit(self, shown: Caller | None) -> None:
        """Makes whoever calls the one that the task works for. Raises why it may not be."""
        border, context = self._border, self._context
        caller = border.gate.admit(self._method, shown, self._peer, context.auth_context())
        self._is_for(caller)
        if shown is None:
            await border.count(self._method, caller)

    async def trailers(self) -> Sequence[tuple[str, str]]:
        """What the caller has left."""
        try:
            return await self._border.quotas.trailers(CALLER.get())
        except Overloaded:  # The counts cannot be reached: that ends no call that went well.
            return ()

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """Tell the onlooker and the audit log, once. `code` is the gRPC status by name."""
        if self._has_ended:
            return
        self._has_ended = True
        self.watch.ended(code, error)
        audit, caller = self._border.audit, CALLER.get()
        if audit.is_on:
            is_turned_away = caller is NOBODY or isinstance(error, (CallerUnknown, QuotaExceeded))
            write = audit.write_turned_away if is_turned_away else audit.write
            write(
                "call",
                caller=None if caller is NOBODY else caller.id,
                how=None if caller is NOBODY else caller.how.value,
                key_id=caller.key_id or None,
                peer=self._peer,
                method=self._method,
                status=code,
                reason=error.reason if isinstance(error, PenstockError) else None,
                seconds=round(time.monotonic() - self._began, 3),
            )
