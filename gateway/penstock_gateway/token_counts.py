"""`POST /v1/tokenize`: count the tokens of a chat request, and bound its cost, without generating."""

from __future__ import annotations

from typing import Any, cast

from penstock_client import TokenCount
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.chat_completions import read_chat
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.replies import settings_of


async def tokenize(request: Request) -> Response:
    """Answer with the counts; the body is that of `/v1/chat/completions`."""
    _, call = await read_chat(request)
    client, timeout = client_of(request), timeout_of(request, call.timeout)
    with trace_context(request.headers):
        work = client.count(call.messages, timeout=timeout, **cast(Any, call.options))
        counted = await while_connected(request, work)
    return JsonResponse(_counts(counted))


def _counts(counted: TokenCount) -> dict[str, Any]:
    settings = counted.effective_settings
    return {
        "count": counted.prompt_tokens,
        "max_model_len": counted.window_tokens,
        "penstock": {
            "effective_prompt_tokens": counted.effective_prompt_tokens,
            "window_left_tokens": counted.window_left_tokens,
            "overflow_tokens": counted.overflow_tokens,
            "dropped_tokens": counted.dropped_tokens,
            "dropped_messages": counted.dropped_messages,
            "min_usd": None if counted.min_usd is None else str(counted.min_usd),
            "max_usd": None if counted.max_usd is None else str(counted.max_usd),
            "settings": None if settings is None else settings_of(settings),
        },
    }
