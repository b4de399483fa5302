"""Send a stream of the service as server-sent events, and continue one that was dropped."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, Protocol, cast

from penstock_client import AsyncStream, Event, Finished, PenstockError
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway import sse
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.chat_replies import ChatChunks, comment_of
from penstock_gateway.errors import GatewayError, ParamOf, no_param, to_reply
from penstock_gateway.options import ServiceCall
from penstock_gateway.settings import Settings

log = logging.getLogger("penstock_gateway")


class Chunks(Protocol):
    """Builds the chunks of a stream, in the format of an endpoint."""

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one event."""


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


async def send_stream(request: Request, stream: AsyncStream, chunks: Chunks, first_id: sse.EventId | None) -> Response:
    """Wait for the first event and return the response that sends all of them.

    Args:
        request: The request.
        stream: The stream.
        chunks: Builds the chunks.
        first_id: Pattern of the events' ids, where the client may continue the stream; None: it may not, and its
            leaving ends the generation.

    Raises:
        PenstockError: The service refused the call before its first event.
        ClientDisconnect: The client left.
    """
    settings: Settings = request.state.settings
    close = stream.close if first_id is None else stream.detach
    try:
        first = await while_connected(request, anext(stream))
    except BaseException:
        stream.close()
        raise
    param_of = getattr(request.state, "param_of", no_param)
    events = _events(stream, first, chunks, first_id, param_of)
    return sse.EventStream(request, events, close, settings.keep_alive_seconds)


async def _events(
    stream: AsyncStream, first: Event, chunks: Chunks, first_id: sse.EventId | None, param_of: ParamOf
) -> AsyncIterator[bytes]:
    """Yield the bytes of the chunks; an error after the first event is an event, too."""
    ids = _Ids(first_id, stream)
    try:
        for data in _bytes(first, chunks, ids):
            yield data
        if not isinstance(first, Finished):
            async for event in stream:
                for data in _bytes(event, chunks, ids):
                    yield data
    except PenstockError as error:
        yield sse.event(to_reply(error, param_of).body)
    except Exception:
        log.exception("a stream failed")
        yield sse.event(to_reply(GatewayError("internal error of the gateway", reason="INTERNAL")).body)
    yield sse.DONE


class _Ids:
    """Make the ids of events, where the client may continue the stream."""

    def __init__(self, pattern: sse.EventId | None, stream: AsyncStream) -> None:
        self._pattern, self._stream = pattern, stream

    def of(self, event: Event) -> sse.EventId | None:
        """Return the id of the last chunk of an event."""
        if self._pattern is None:
            return None
        response = self._stream.response
        token, generation = response.resume_token, response.generation_id
        return replace(
            self._pattern,
            generation_id=generation,
            sequence=event.sequence,
            resume_token=token,
            is_last=isinstance(event, Finished),
        )


def _bytes(event: Event, chunks: Chunks, ids: _Ids) -> Iterator[bytes]:
    """Yield the bytes of one event. Its id is that of its last chunk, so that no chunk is lost when it is continued."""
    made = list(chunks.of(event))
    for chunk in made[:-1]:
        yield sse.event(chunk)
    if made:
        yield sse.event(made[-1], event_id=ids.of(event))
    elif text := comment_of(event):
        yield sse.comment(text)


def last_event_of(request: Request) -> sse.EventId:
    """Return the event id that came with the request, which is of the path's generation.

    Raises:
        GatewayError: The id is none, or of another generation.
    """
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id", "")
    last = sse.EventId.parse(text)
    if last.generation_id != request.path_params["generation_id"]:
        raise GatewayError("last-event-id is of another generation than the path", param="last-event-id")
    return last


async def continue_stream(request: Request) -> Response:
    """Continue a stream of another connection: `GET /v1/generations/{id}/events` with `Last-Event-ID`.

    Raises:
        GatewayError: The id is none, or of another generation.
    """
    last = last_event_of(request)
    client = client_of(request)
    timeout = timeout_of(request, None)
    if last.is_last:
        return Response(sse.DONE, media_type=sse.EventStream.media_type)
    with trace_context(request.headers):
        model = (await client.model()).model
        stream = client.resume(last.generation_id, last.resume_token, last.sequence, timeout=timeout)
    return await send_stream(request, stream, ChatChunks(include_usage=last.include_usage, model=model), last)
