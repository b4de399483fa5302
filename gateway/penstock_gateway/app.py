"""The ASGI application: routes, and the client that they share."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from penstock_client import AsyncClient, PenstockError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from penstock_gateway import errors, probes
from penstock_gateway.bodies import BodyMemory
from penstock_gateway.callers import keep_headers_out_of_logs
from penstock_gateway.chat_completions import chat_completions
from penstock_gateway.completions import completions
from penstock_gateway.continuation import continue_stream
from penstock_gateway.limits import LimitsMiddleware
from penstock_gateway.models import models, one_model
from penstock_gateway.reachability import Reachability
from penstock_gateway.responses import responses, stored_response
from penstock_gateway.settings import Settings
from penstock_gateway.steering import steer
from penstock_gateway.token_counts import tokenize

_PLAYGROUND = "penstock_gateway.playground"
_CLIENT_CLOSED_REQUEST = 499


def create_app(
    client: AsyncClient, settings: Settings | None = None, why_unreachable: Callable[[], str] | None = None
) -> Starlette:
    """Return the application.

    Args:
        client: A client of the service, without an API key of its own unless all callers are to share it. It is closed
            with the application.
        settings: Bounds. Default: those of `Settings`.
        why_unreachable: Returns the cause as one line, which is logged where the service does not answer. It may block.
    """
    settings = settings or Settings()
    keep_headers_out_of_logs()
    memory, metrics = BodyMemory(settings.max_request_memory_bytes), probes.Metrics()
    metrics.held_bytes.set_function(lambda: memory.held_bytes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with client:
            service = Reachability(client, why_unreachable)
            first = asyncio.create_task(service.check())
            yield {"client": client, "settings": settings, "metrics": metrics, "service": service}
            first.cancel()
            await service.close()

    app = Starlette(
        routes=[*_routes(), *_playground()],
        lifespan=lifespan,
        middleware=[Middleware(LimitsMiddleware, settings=settings, memory=memory, metrics=metrics)],
        exception_handlers={
            PenstockError: errors.penstock_error,
            errors.GatewayError: errors.penstock_error,
            HTTPException: errors.http_error,
            ClientDisconnect: _nobody_reads_it,
            Exception: errors.internal_error,
        },
    )
    # Behind a proxy that ends TLS, Starlette would redirect to http://, and a client send its key there in plaintext.
    app.router.redirect_slashes = False
    return app


def _routes() -> list[BaseRoute]:
    return [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/{rest:path}", stored_response, methods=["GET", "POST", "DELETE"]),
        Route("/v1/tokenize", tokenize, methods=["POST"]),
        Route("/v1/generations/{generation_id}/events", continue_stream, methods=["GET"]),
        Route("/v1/generations/{generation_id}/steer", steer, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", one_model, methods=["GET"]),
        Route("/healthz", probes.alive, methods=["GET"]),
        Route("/readyz", probes.ready, methods=["GET"]),
        Route("/metrics", probes.metrics, methods=["GET"]),
    ]


async def _nobody_reads_it(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _playground() -> list[BaseRoute]:
    """Return the routes of the playground, where this installation has it."""
    if find_spec(_PLAYGROUND) is None:
        return []
    routes: list[BaseRoute] = importlib.import_module(_PLAYGROUND).routes()
    return routes
