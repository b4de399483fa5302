"""The ASGI application: routes, and the client that they share."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from penstock_client import AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from penstock_gateway.settings import Settings

_PLAYGROUND = "penstock_gateway.playground"


def create_app(client: AsyncClient, settings: Settings | None = None) -> Starlette:
    """Return the application.

    Args:
        client: A client of the service, without an API key of its own unless all callers are to share it. It is closed
            with the application.
        settings: Bounds. Default: those of `Settings`.
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with client:
            yield {"client": client, "settings": settings}

    return Starlette(routes=[Route("/healthz", alive), *_playground()], lifespan=lifespan)


async def alive(_: Request) -> Response:
    """Answer that this process runs, whether or not the service can be reached."""
    return JSONResponse({"status": "ok"})


def _playground() -> list[BaseRoute]:
    """Return the routes of the playground, where this installation has it."""
    if find_spec(_PLAYGROUND) is None:
        return []
    routes: list[BaseRoute] = importlib.import_module(_PLAYGROUND).routes()
    return routes
