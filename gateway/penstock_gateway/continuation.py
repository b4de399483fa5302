"""Continue a stream of another connection: `GET /v1/generations/{id}/events` with `Last-Event-ID`."""

from __future__ import annotations

from penstock_client import BrokenStream
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway import sse
from penstock_gateway.callers import client_of, timeout_of, trace_context
from penstock_gateway.chat_replies import ChatChunks
from penstock_gateway.completion_replies import CompletionChunks
from penstock_gateway.errors import GatewayError
from penstock_gateway.response_replies import ResponseEvents
from penstock_gateway.response_request import ResponsesRequest, echo_of
from penstock_gateway.streams import StreamFormat, send_stream


async def continue_stream(request: Request) -> Response:
    """Send what comes after the event.

    Raises:
        GatewayError: The id is none, or of another generation.
    """
    last = last_event_of(request)
    client = client_of(request)
    timeout = timeout_of(request, None)
    if last.is_last:
        return Response(_format_of(last, "").end, media_type=sse.EventStream.media_type)
    with trace_context(request.headers):
        made = _format_of(last, (await client.model()).model)
        start = 0 if made.needs_start else last.sequence
        stream = client.resume(last.generation_id, last.resume_token, start, timeout=timeout)
    try:
        return await send_stream(request, stream, made, last, skip=last.sequence)
    except BrokenStream as failure:
        if failure.is_cut_short:
            raise
        text = "this generation moved to another server, which does not have its start: it cannot be continued"
        raise GatewayError(text, reason="GENERATION_NOT_FOUND") from None


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


def _format_of(last: sse.EventId, model: str) -> StreamFormat:
    """Return the format of the endpoint. What a response repeats of its request is not known any more."""
    if last.kind == "chat":
        return ChatChunks(include_usage=last.include_usage, model=model)
    if last.kind == "completion":
        return CompletionChunks(include_usage=last.include_usage, model=model, has_logprobs=last.has_logprobs)
    return ResponseEvents(echo_of(ResponsesRequest(input="")), has_summary=last.has_summary)
