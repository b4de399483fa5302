"""Server-sent events: their bytes, their ids, and the response that sends them while the client is there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock_gateway.callers import left
from penstock_gateway.errors import GatewayError

DONE = b"data: [DONE]\n\n"
_JSON = msgspec.json.Encoder()
_KEEP_ALIVE = b": keep-alive\n\n"
_MAX_ID_BYTES = 4096
"""Longest event id. The token of a stream that moved to another server holds its conversation and may be longer: such a
stream can not be continued by a client, and its events have no id."""
_ID = re.compile(r"v1:(chat|completion|response):([a-z]*):([A-Za-z0-9_.-]+):([0-9]{1,19}):([\x21-\x7e]+)")


@dataclass(frozen=True, slots=True)
class EventId:
    """Say where a stream continues; any gateway can read it.

    Attributes:
        kind: Endpoint that the stream is of: `chat`, `completion` or `response`.
        include_usage: Whether the last chunk has the usage.
        has_logprobs: Whether chunks have log probabilities whose places in the text are counted from its start.
        has_summary: Whether the thought is sent as a summary.
        generation_id: Id of the generation.
        sequence: Sequence number of the service's event that the chunk was made of.
        resume_token: Proof that the reader is the one who started the generation.
        is_last: Whether nothing follows.
    """

    kind: str
    include_usage: bool = False
    has_logprobs: bool = False
    has_summary: bool = False
    generation_id: str = ""
    sequence: int = 0
    resume_token: str = ""
    is_last: bool = False

    def __str__(self) -> str:
        flags = "".join(letter for letter, name in _FLAGS.items() if getattr(self, name))
        return f"v1:{self.kind}:{flags}:{self.generation_id}:{self.sequence}:{self.resume_token}"

    @classmethod
    def parse(cls, text: str, param: str = "last-event-id") -> EventId:
        """Return the id for its text, which the request has as `param`. Raises GatewayError for another text."""
        found = _ID.fullmatch(text) if len(text) <= _MAX_ID_BYTES else None
        if found is None:
            raise GatewayError(f"{param} must be the id of an event of this stream", param=param)
        flags = {name: letter in found[2] for letter, name in _FLAGS.items()}
        return cls(found[1], generation_id=found[3], sequence=int(found[4]), resume_token=found[5], **flags)


_FLAGS = {"u": "include_usage", "l": "has_logprobs", "s": "has_summary", "f": "is_last"}


def event(data: Mapping[str, Any], *, name: str = "", event_id: EventId | None = None) -> bytes:
    """Return the bytes of one event."""
    head = b""
    if event_id is not None:
        text = str(event_id)
        head = b"id: %s\n" % (text.encode() if len(text) <= _MAX_ID_BYTES else b"")
    if name:
        head += b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, _JSON.encode(data))


def comment(text: str) -> bytes:
    """Return the bytes of a comment, which clients skip."""
    return f": {text}\n\n".encode()


class EventStream(Response):
    """Send events until they end or the client leaves.

    Args:
        request: The request; its body has been read.
        events: The bytes to send.
        close: Called when the stream is over, for whatever reason.
        keep_alive_seconds: Longest silence.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, events: AsyncIterator[bytes], close: Callable[[], None], keep_alive_seconds: float
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._close = close
        self._keep_alive_seconds = keep_alive_seconds
        self._sends = False
        self._is_idle = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        tasks = [asyncio.ensure_future(work) for work in (self._send(send), left(self._request))]
        idle = asyncio.ensure_future(self._keep_alive(send))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            self._close()  # first: a stream whose reader is cancelled ends its generation, also a resumable one
            for task in (*tasks, idle):
                task.cancel()
            await asyncio.gather(*tasks, idle, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sends = True
        async for chunk in self._events:
            self._is_idle = False
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sends = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            self._is_idle = True
            await asyncio.sleep(self._keep_alive_seconds)
            if self._is_idle and self._sends:
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
