"""The gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Bound what one client may do, and all of them together.

    Attributes:
        max_body_bytes: Largest request body.
        max_header_bytes: Largest request line plus headers.
        max_json_depth: Deepest nesting of a request's JSON.
        max_requests: Requests that are processed at once.
        max_connections: Open connections.
        max_request_memory_bytes: Bytes of bodies that are held at once, over all requests.
        request_seconds: Time for a request to arrive as a whole.
        slow_reader_seconds: Time for a client to take what was sent to it.
        drain_seconds: Time for running requests to end after SIGTERM.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_json_depth: int = 128
    max_requests: int = 1024
    max_connections: int = 2048
    max_request_memory_bytes: int = 256 * 1024 * 1024
    request_seconds: float = 20.0
    slow_reader_seconds: float = 60.0
    drain_seconds: float = 30.0
