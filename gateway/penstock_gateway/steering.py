"""`POST /v1/generations/{id}/steer`: end the thought, change its budget, or cancel, while another request streams."""

from __future__ import annotations

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.bodies import decode, decoding, read_body
from penstock_gateway.callers import client_of, timeout_of, trace_context, while_connected
from penstock_gateway.continuation import last_event_of
from penstock_gateway.errors import GatewayError
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.options import Strict, within

_FIELDS = {"change_budget.thinking_budget": "thinking_budget", "action": "action"}


class SteerRequest(Strict, frozen=True, kw_only=True):
    """Hold the body: the action, and the budget with `change_budget`."""

    action: Literal["finish_thinking", "change_budget", "cancel"]
    thinking_budget: int | None = None
    timeout: float | None = None


async def steer(request: Request) -> Response:
    """Steer the generation of the path. `Last-Event-ID` is the id of any event of its stream, which has its token.

    Raises:
        GatewayError: The id is none, or of another generation; or the body is wrong.
        PenstockError: The service refused it.
    """
    settings, held = request.state.settings, request.state.held
    request.state.param_of = _FIELDS.get
    body = await read_body(request, settings, held)
    with decoding(body, settings, held):
        given = decode(body, SteerRequest)
    place, action = last_event_of(request), _action(given)
    client = client_of(request)
    with trace_context(request.headers):
        timeout = timeout_of(request, given.timeout)
        work = client.steer(place.generation_id, place.resume_token, timeout=timeout, **action)
        steered = await while_connected(request, work)
    return JsonResponse(
        {
            "id": place.generation_id,
            "object": "generation.steered",
            "applied": steered.applied,
            "phase": steered.phase,
            "thinking_budget": steered.thinking_budget,
            "reasoning_tokens": steered.reasoning_tokens,
        }
    )


def _action(given: SteerRequest) -> dict[str, Any]:
    """Return the client's keyword for the action. Raises GatewayError where the budget is missing or not wanted."""
    if (given.thinking_budget is not None) is not (given.action == "change_budget"):
        text = "thinking_budget must be there with change_budget, and only with it"
        raise GatewayError(text, param="thinking_budget", reason="CONFLICTING_FIELDS")
    if given.action == "change_budget":
        return {"budget": within("thinking_budget", given.thinking_budget)}
    return {given.action: True}
