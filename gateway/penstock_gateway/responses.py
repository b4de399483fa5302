"""`POST /v1/responses`: one response, or the events of one. Nothing is stored."""

from __future__ import annotations

from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.bodies import decode, decoding, read_body
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.errors import REQUEST, GatewayError, Kind, rate_limit_headers
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.response_replies import ResponseEvents, response_of
from penstock_gateway.response_request import ResponsesRequest, to_call
from penstock_gateway.sse import EventId
from penstock_gateway.streams import open_stream, send_stream

_NOT_STORED = Kind(404, REQUEST, "response_not_found")


async def responses(request: Request) -> Response:
    """Answer the request."""
    settings, held = request.state.settings, request.state.held
    body = await read_body(request, settings, held)
    with decoding(body, settings, held):
        given = decode(body, ResponsesRequest)
        made = to_call(given)
    request.state.param_of = made.param_of
    if given.stream:
        events = ResponseEvents(made.echo, has_summary=made.has_summary)
        first_id = EventId("response", has_summary=made.has_summary) if given.resumable else None
        return await send_stream(request, open_stream(request, made.call), events, first_id)
    client, call = client_of(request), made.call
    with trace_context(request.headers):
        work = client.generate(call.messages, timeout=timeout_of(request, call.timeout), **cast(Any, call.options))
        reply = await while_connected(request, work)
    response = response_of(reply, made.echo, has_summary=made.has_summary)
    return JsonResponse(response, headers=rate_limit_headers(reply.rate_limits))


async def stored_response(request: Request) -> Response:
    """Refuse what needs a stored response: to read, cancel, continue or delete one."""
    if not request.path_params["rest"]:
        raise HTTPException(404)
    text = "no response is stored: send the items of the conversation in `input`"
    raise GatewayError(text, kind=_NOT_STORED, reason="GENERATION_NOT_FOUND")
