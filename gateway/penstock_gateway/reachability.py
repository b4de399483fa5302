"""Tell in the log why the service cannot be reached. Callers do not need to know addresses and certificates."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from penstock_client import AsyncClient, CallerRefused, PenstockError, Unavailable

log = logging.getLogger("penstock_gateway")
READY_SECONDS = 2.0
_SILENT_SECONDS = 60.0
_IN_WORDS = {
    "UNAVAILABLE": "it accepts connections, and closes them",
    "DEADLINE_EXCEEDED": "it accepts connections, and is silent",
    "UNIMPLEMENTED": "its address speaks gRPC, but may be that of something else than a Penstock service",
}


def is_unreachable(error: PenstockError) -> bool:
    """Return whether no service was reached. An answer of the service would have a reason."""
    return isinstance(error, Unavailable) and not error.reason


class Reachability:
    """Ask whether the service answers, and log the cause where it does not: each one at most once in a minute."""

    def __init__(self, client: AsyncClient, why: Callable[[], str] | None = None) -> None:
        self._client = client
        self._why = why
        """Returns the cause as one line, empty where it does not know it. It may block."""
        self._reported, self._reported_at = "", 0.0
        self._asking: asyncio.Task[None] | None = None

    async def check(self) -> str:
        """Return an empty text where the service answers, else the reason. It need not accept this call."""
        try:
            await self._client.model(timeout=READY_SECONDS)
        except CallerRefused:
            pass
        except PenstockError as error:
            self._note(error)
            return error.reason or "UNREACHABLE"
        self._reported = ""
        return ""

    def note(self, error: PenstockError) -> None:
        """Find out why a call of the service has failed and log it, beside what is going on."""
        if is_unreachable(error):
            self._note(error)

    def _note(self, error: PenstockError) -> None:
        if self._why is not None and not error.reason and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._report(error, self._why))

    async def _report(self, error: PenstockError, find_out: Callable[[], str]) -> None:
        why = await asyncio.to_thread(find_out) or _IN_WORDS.get(error.code.name if error.code else "", error.message)
        if why != self._reported or time.monotonic() > self._reported_at + _SILENT_SECONDS:
            self._reported, self._reported_at = why, time.monotonic()
            log.warning("penstock gateway: the service does not answer: %s", why)

    async def close(self) -> None:
        """Wait for what is being found out."""
        if self._asking is not None:
            await self._asking
