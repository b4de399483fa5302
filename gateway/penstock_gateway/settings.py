"""The gateway's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

_KINDS: dict[str, type[int] | type[float]] = {"int": int, "float": float}


@dataclass(frozen=True, slots=True)
class Settings:
    """Bound what one client may do, and all of them together.

    Attributes:
        max_body_bytes: Largest request body.
        max_header_bytes: Largest request line plus headers.
        max_json_items: Most commas and opening brackets of a request's JSON.
        max_prompts: Prompts of one request for text completions; each is a call of the service.
        max_requests: Requests that are processed at once.
        max_connections: Open connections.
        max_request_memory_bytes: Bytes of requests, and of what is made of them, that are held at once.
        request_seconds: Time for a request to arrive as a whole.
        keep_alive_seconds: Longest silence of a stream; then a comment is sent, so that proxies keep it.
        slow_reader_seconds: Time for a client to take what was sent to it.
        drain_seconds: Time for running requests to end after SIGTERM.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_json_items: int = 1_500_000
    max_prompts: int = 16
    max_requests: int = 1024
    max_connections: int = 2048
    max_request_memory_bytes: int = 512 * 1024 * 1024
    request_seconds: float = 20.0
    keep_alive_seconds: float = 15.0
    slow_reader_seconds: float = 60.0
    drain_seconds: float = 30.0

    @classmethod
    def of(cls, limits: Iterable[str]) -> Settings:
        """Return settings for texts such as `max_requests=2048`.

        Raises:
            ValueError: A name is unknown, or a value is no number above 0.
        """
        kinds: dict[str, type[int] | type[float]] = {one.name: _KINDS[str(one.type)] for one in fields(cls)}
        made: dict[str, int | float] = {}
        for text in limits:
            name, _, value = text.partition("=")
            if name not in kinds:
                raise ValueError(f"a limit must be NAME=VALUE with one of the names {', '.join(kinds)}, got {text!r}")
            try:
                made[name] = kinds[name](value)
            except ValueError:
                made[name] = 0
            if not 0 < made[name] < 1e15:
                kind = "an integer" if kinds[name] is int else "a number"
                raise ValueError(f"{name} must be {kind} above 0, got {value!r}")
        return cls(**made)  # type: ignore[arg-type]  # each has its own type
