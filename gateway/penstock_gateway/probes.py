"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from penstock_gateway.json_response import JsonResponse
from penstock_gateway.reachability import Reachability


class Metrics:
    """Count what the gateway does. Labels never hold text of a caller.

    Attributes:
        registry: The metrics, for `/metrics`.
        requests: Requests that were answered, by route, method and status.
        active: Requests that are processed.
        held_bytes: Bytes of requests that are held.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "method", "status")
        text = "Requests that were answered."
        self.requests = Counter("penstock_gateway_requests", text, labels, registry=self.registry)
        self.active = Gauge("penstock_gateway_requests_active", "Requests in progress.", registry=self.registry)
        text = "Bytes of requests, and of what is made of them, in memory."
        self.held_bytes = Gauge("penstock_gateway_request_memory_bytes", text, registry=self.registry)


async def alive(_: Request) -> Response:
    """Answer that this process runs, whether or not the service can be reached."""
    return JsonResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Answer whether the service answers; it need not accept this call, which has no key."""
    service: Reachability = request.state.service
    if reason := await service.check():
        return JsonResponse({"status": "unavailable", "reason": reason}, status_code=503)
    return JsonResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Answer with the metrics in Prometheus' text format."""
    found: Metrics = request.state.metrics
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
