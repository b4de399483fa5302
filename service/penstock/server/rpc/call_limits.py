"""Limit what the calls of one listener hold, over all connections: gRPC's core has limits per connection only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.admission.request_memory import RequestMemory
from penstock.config.schema import ServerSettings
from penstock.errors import Overloaded

HEALTH_MESSAGE_BYTES = 4 * 1024
"""Size limit of health requests: the name of a service has a few dozen bytes."""
MAX_OPEN_CALLS = 256
"""Limit of calls without authentication: health checks, which may watch without end."""
MAX_OPEN_CALLS_PER_CONNECTION = 32
_STRANGERS_READS = 8
_RETRY_SECONDS = 1.0


class CallLimits:
    """Count calls and streams of one listener. Not thread-safe: lives on the event loop."""

    def __init__(self, settings: ServerSettings, message_bytes: int) -> None:
        self._settings = settings
        self._calls = 0
        self._request_streams = 0
        # gRPC's core reads a message completely before its size can be checked.
        self._most_request_streams = max(1, settings.max_request_memory_bytes // message_bytes)
        self._open: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self.requests = RequestMemory(settings.max_request_memory_bytes, message_bytes)
        self.strangers = RequestMemory(_STRANGERS_READS * message_bytes, message_bytes)

    @contextmanager
    def call(self, key: str) -> Iterator[None]:
        """Count one call of a caller, by its `limit_key`. Raise Overloaded."""
        most, unread = self._settings.max_calls, self._unread[key]
        if self._calls >= most:
            raise Overloaded(
                f"concurrent call limit exceeded: {self._calls} of {most} in use",
                resource="calls",
                retry_after_seconds=_RETRY_SECONDS,
                concurrent_calls=self._calls,
            )
        if unread >= self._settings.max_unread_streams_per_caller:
            raise Overloaded(
                f"unread stream limit exceeded: {unread} of {self._settings.max_unread_streams_per_caller} in use; "
                "read or cancel them first",
                resource="unread_streams",
                retry_after_seconds=self._settings.slow_reader_seconds,
                unread_streams=unread,
            )
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextmanager
    def open_call(self, peer: str) -> Iterator[None]:
        """Count one call without authentication. Raise Overloaded."""
        if self._open.total() >= MAX_OPEN_CALLS or self._open[peer] >= MAX_OPEN_CALLS_PER_CONNECTION:
            raise Overloaded(
                f"concurrent health call limit exceeded: {self._open[peer]} of {MAX_OPEN_CALLS_PER_CONNECTION} per "
                f"connection and {self._open.total()} of {MAX_OPEN_CALLS} in all in use",
                resource="health_calls",
                retry_after_seconds=_RETRY_SECONDS,
            )
        with _counted(self._open, peer):
            yield

    @contextmanager
    def request_stream(self) -> Iterator[None]:
        """Count one call whose client may still send messages, each of the largest size. Raise Overloaded."""
        if self._request_streams >= self._most_request_streams:
            raise Overloaded(
                f"limit of calls that may still send messages (Interact) exceeded: {self._request_streams} of "
                f"{self._most_request_streams} in use; half-close calls that send no more messages",
                resource="request_memory",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._request_streams += 1
        try:
            yield
        finally:
            self._request_streams -= 1

    @contextmanager
    def unread_stream(self, key: str) -> Iterator[None]:
        """Count one stream that the server gave up and that its client has neither read nor ended."""
        with _counted(self._unread, key):
            yield


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
