"""Middleware that bounds what requests hold together, and gives each an id."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock_gateway.bodies import BodyMemory, Held
from penstock_gateway.callers import REQUEST_ID_HEADER
from penstock_gateway.errors import SERVER, ErrorReply, GatewayError, Kind, to_reply
from penstock_gateway.probes import Metrics
from penstock_gateway.settings import Settings

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_METHODS = ("GET", "HEAD", "OPTIONS", "POST")
_UNBOUNDED = ("/healthz",)


class LimitsMiddleware:
    """Refuse requests beyond the bounds, and count memory and answers."""

    def __init__(self, app: ASGIApp, settings: Settings, memory: BodyMemory, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._memory = memory
        self._metrics = metrics
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        send = self._answering(scope, send, request_id)
        if self._active >= self._settings.max_requests and scope["path"] not in _UNBOUNDED:
            await _full(self._settings).response()(scope, receive, send)
            return
        held = Held(self._memory)
        scope["state"].update(held=held, request_id=request_id)
        self._active += 1
        self._metrics.active.set(self._active)
        try:
            await self._app(scope, receive, send)
        finally:
            self._active -= 1
            self._metrics.active.set(self._active)
            held.release()

    def _answering(self, scope: Scope, send: Send, request_id: str) -> Send:
        """Return a `send` that adds the request's id, and counts the answer."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(_route_of(scope), method, message["status"]).inc()
            await send(message)

        return sending


def _full(settings: Settings) -> ErrorReply:
    text = f"the gateway processes {settings.max_requests} requests, of at most {settings.max_requests}: try again"
    kind = Kind(503, SERVER, "overloaded")
    return to_reply(GatewayError(text, kind=kind, reason="OVERLOADED", retry_after_seconds=1.0))


def _route_of(scope: Scope) -> str:
    """Return the route's pattern, never the caller's path."""
    route = scope.get("route")
    return getattr(route, "path", "") or "other"
