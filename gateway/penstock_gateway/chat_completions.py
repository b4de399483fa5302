"""`POST /v1/chat/completions`: one reply, or a stream of chunks."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.bodies import decode, decoding, read_body
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.chat_replies import ChatChunks, completion
from penstock_gateway.chat_request import ChatRequest, to_call
from penstock_gateway.errors import rate_limit_headers
from penstock_gateway.fields import CHAT, param_of
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.messages import chat_param_in
from penstock_gateway.options import ServiceCall
from penstock_gateway.sse import EventId
from penstock_gateway.streams import open_stream, send_stream


async def chat_completions(request: Request) -> Response:
    """Answer the request."""
    given, call = await read_chat(request)
    if given.stream:
        return await _stream(request, given, call)
    client = client_of(request)
    with trace_context(request.headers):
        work = client.generate(call.messages, timeout=timeout_of(request, call.timeout), **cast(Any, call.options))
        reply = await while_connected(request, work)
    return JsonResponse(completion(reply), headers=rate_limit_headers(reply.rate_limits))


async def read_chat(request: Request) -> tuple[ChatRequest, ServiceCall]:
    """Return the request, and the call that it becomes. Raises GatewayError where it cannot become one."""
    settings, held = request.state.settings, request.state.held
    body = await read_body(request, settings, held)
    with decoding(body, settings, held):
        given = decode(body, ChatRequest)
        call, find = to_call(given), param_of(CHAT, given)
    request.state.param_of = lambda path: chat_param_in(call.messages or (), path) or find(path)
    return given, call


async def _stream(request: Request, given: ChatRequest, call: ServiceCall) -> Response:
    include_usage = bool(given.stream_options and given.stream_options.include_usage)
    chunks = ChatChunks(include_usage=include_usage, candidates=given.n or 1)
    first_id = EventId("chat", include_usage=include_usage) if given.resumable else None
    return await send_stream(request, open_stream(request, call), chunks, first_id)
