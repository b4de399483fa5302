"""`GET /v1/models` and `/v1/models/{id}`: the served model."""

from __future__ import annotations

from typing import Any

from penstock_client import ModelCard
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.callers import client_of, timeout_of, trace_context
from penstock_gateway.errors import no_param
from penstock_gateway.json_response import JsonResponse


async def models(request: Request) -> Response:
    """List the model that the service serves."""
    return JsonResponse({"object": "list", "data": [_model(await _card(request, ""))]})


async def one_model(request: Request) -> Response:
    """Return the served model by its name; another one is 404."""
    name = request.path_params["model"]
    if not name:  # the service would take it for its own model
        raise HTTPException(404)
    request.state.param_of = lambda path: "model" if path == "spec.model" else no_param(path)
    return JsonResponse(_model(await _card(request, name)))


async def _card(request: Request, name: str) -> ModelCard:
    client, timeout = client_of(request), timeout_of(request, None)
    with trace_context(request.headers):
        return await client.model(name, timeout=timeout)


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.model,
        "object": "model",
        "created": 0,
        "owned_by": "penstock",
        "max_model_len": card.context_window_tokens,
        "penstock": {
            "thinking_modes": card.thinking_modes,
            "default_thinking_mode": card.default_thinking_mode,
            "efforts": {name: budget.thinking_budget for name, budget in card.efforts.items()},
            "tool_call_format": card.tool_call_format or None,
            "answer_reserve": card.answer_reserve,
            "limits": dict(card.limits),
            "refused_fields": dict(card.refused_fields),
            "service_version": card.service_version,
            "engine_version": card.engine_version,
        },
    }
