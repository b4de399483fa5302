"""Send streams of the service as server-sent events, in the format of an endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from penstock_client import AsyncStream, Continued, Event, Finished, Interrupted, PenstockError
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway import sse
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.errors import ErrorReply, GatewayError, no_param, to_reply
from penstock_gateway.options import ServiceCall
from penstock_gateway.settings import Settings

log = logging.getLogger("penstock_gateway")


class StreamFormat:
    """Build the chunks of one stream. Each endpoint has its own.

    Attributes:
        end: What follows the last chunk.
        is_named: Whether events have the chunk's `type` as their name.
        needs_start: Whether a chunk depends on the chunks before it, so that a stream that is continued is read from
            its start.
    """

    end = sse.DONE
    is_named = False
    needs_start = False

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""
        raise NotImplementedError

    def failed(self, reply: ErrorReply) -> Mapping[str, Any]:
        """Return the chunk for an error after the first event."""
        return reply.body

    def encode(self, chunk: Mapping[str, Any], event_id: sse.EventId | None = None) -> bytes:
        """Return the bytes of one chunk."""
        return sse.event(chunk, name=chunk["type"] if self.is_named else "", event_id=event_id)


def open_stream(request: Request, call: ServiceCall) -> AsyncStream:
    """Start a generation for the request's caller. The client resumes it where the service's replicas change."""
    client = client_of(request)
    with trace_context(request.headers):
        return client.stream(
            call.messages,
            timeout=timeout_of(request, call.timeout),
            flush_interval_seconds=call.flush_interval,
            **cast(Any, call.options),
        )


async def send_stream(
    request: Request, stream: AsyncStream, made: StreamFormat, first_id: sse.EventId | None = None, *, skip: int = 0
) -> Response:
    """Wait for the first chunk of a stream and return the response that sends all of them.

    Args:
        request: The request.
        stream: The stream.
        made: Builds the chunks.
        first_id: Pattern of the events' ids, where the client may continue the stream; None: it may not, and its
            leaving ends the generation.
        skip: Sequence number of the last event whose chunks the client has.

    Raises:
        PenstockError: The service refused the call before its first event.
        ClientDisconnect: The client left.
    """
    return await _send(request, [stream], _pieces(stream, made, first_id, skip), made, is_left_running=bool(first_id))


async def send_streams(
    request: Request, streams: Sequence[AsyncStream], pieces: AsyncGenerator[bytes, None], made: StreamFormat
) -> Response:
    """Send several streams as one, of which `pieces` are the bytes. Raises as `send_stream` does."""
    return await _send(request, streams, pieces, made, is_left_running=False)


async def _send(
    request: Request,
    streams: Sequence[AsyncStream],
    pieces: AsyncGenerator[bytes, None],
    made: StreamFormat,
    *,
    is_left_running: bool,
) -> Response:
    settings: Settings = request.state.settings

    def close() -> None:
        for stream in streams:
            if is_left_running:
                stream.detach()
            else:
                stream.close()

    try:
        first = await while_connected(request, _first_of(pieces))
    except BaseException:
        for stream in streams:
            stream.close()
        await pieces.aclose()
        raise
    return sse.EventStream(request, _to_the_end(request, first, pieces, made), close, settings.keep_alive_seconds)


async def _first_of(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces, b"")


async def _to_the_end(
    request: Request, first: bytes, pieces: AsyncGenerator[bytes, None], made: StreamFormat
) -> AsyncIterator[bytes]:
    """Yield all bytes; an error after the first event is an event, too."""
    yield first
    try:
        async for piece in pieces:
            yield piece
    except (PenstockError, GatewayError) as error:
        yield made.encode(made.failed(to_reply(error, getattr(request.state, "param_of", no_param))))
    except Exception:
        log.exception("a stream failed")
        error_reply = to_reply(GatewayError("internal error of the gateway", reason="INTERNAL"))
        yield made.encode(made.failed(error_reply))
    finally:
        await pieces.aclose()
    if made.end:
        yield made.end


async def _pieces(
    stream: AsyncStream, made: StreamFormat, first_id: sse.EventId | None, skip: int
) -> AsyncGenerator[bytes, None]:
    ids = _Ids(first_id, stream, needs_start=made.needs_start)
    async for event in stream:
        chunks = list(made.of(event))
        if event.sequence > skip and (data := _bytes(event, chunks, made, ids)):
            yield data
    if stream.last_sequence < skip:
        text = f"last-event-id has the place {skip}, and the stream ends at {stream.last_sequence}"
        raise GatewayError(text, param="last-event-id")


def pieces_of(stream: AsyncStream, made: StreamFormat) -> AsyncGenerator[bytes, None]:
    """Return the bytes of the chunks of a stream that cannot be continued."""
    return _pieces(stream, made, None, 0)


async def merged(parts: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """Yield what several generators yield, as it comes; each waits while its last piece was not taken.

    Raises:
        PenstockError: One of them failed; the others are not read any more.
    """
    waiting = {asyncio.ensure_future(anext(part)): part for part in parts}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                part = waiting.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(part))] = part
                yield piece
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class _Ids:
    """Make the ids of events, where the client may continue the stream."""

    def __init__(self, pattern: sse.EventId | None, stream: AsyncStream, *, needs_start: bool) -> None:
        self._pattern, self._stream, self._needs_start = pattern, stream, needs_start
        self._first_token = ""

    def of(self, event: Event) -> sse.EventId | None:
        """Return the id of the last chunk of an event."""
        if self._pattern is None:
            return None
        response = self._stream.response
        token, generation = response.resume_token, response.generation_id
        self._first_token = self._first_token or token
        if self._needs_start and token != self._first_token:
            return None  # it moved to another server, which does not have its start
        return replace(
            self._pattern,
            generation_id=generation,
            sequence=event.sequence,
            resume_token=token,
            is_last=isinstance(event, Finished),
        )


def _bytes(event: Event, chunks: Sequence[dict[str, Any]], made: StreamFormat, ids: _Ids) -> bytes:
    """Return the bytes of one event. Its id is that of its last chunk: no chunk is lost when it is continued."""
    if len(chunks) == 1:
        return made.encode(chunks[0], ids.of(event))
    if chunks:
        return b"".join([*map(made.encode, chunks[:-1]), made.encode(chunks[-1], ids.of(event))])
    text = _comment_of(event)
    return sse.comment(text) if text else b""


def _comment_of(event: Event) -> str:
    """Return the text of a comment for an event that has no chunk; empty where it needs none."""
    match event:
        case Interrupted(reason=reason):
            return f"interrupted: {reason}; the stream continues by itself"
        case Continued(interrupted_seconds=seconds):
            return f"continued after {seconds:.1f} s"
        case _:
            return ""
