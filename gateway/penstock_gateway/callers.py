"""Read what a request brings for its call of the service: key, deadline, trace context, id; notice when it leaves."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

from opentelemetry import context, propagate
from penstock_client import AsyncClient
from starlette.requests import ClientDisconnect, Request

from penstock_gateway.errors import BY_CODE, GatewayError

T = TypeVar("T")
TIMEOUT_HEADER = "x-request-timeout"
REQUEST_ID_HEADER = "x-request-id"
_TRACE_HEADERS = ("traceparent", "tracestate")
_LOGGERS_OF_HEADERS = ("opentelemetry.baggage", "opentelemetry.propagators", "opentelemetry.trace")
_MAX_TIMEOUT_SECONDS = 7 * 86_400.0


def keep_headers_out_of_logs() -> None:
    """Stop OpenTelemetry's log lines about trace headers: they show what the caller sent."""
    for name in _LOGGERS_OF_HEADERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def client_of(request: Request) -> AsyncClient:
    """Return the client for the request's caller: with the bearer key that came, and the request's id.

    Raises:
        GatewayError: The authorization header is no bearer key, or no key.
    """
    client = cast(AsyncClient, request.state.client)
    key = _bearer(request.headers.get("authorization"))
    metadata = {REQUEST_ID_HEADER: request.state.request_id}
    try:
        return client.with_options(metadata=metadata, api_key=key)
    except ValueError as error:
        raise _unauthenticated(str(error)) from None


def _bearer(header: str | None) -> str | None:
    if header is None:
        return None
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise _unauthenticated("authorization must be `Bearer KEY`")
    return key.strip()


def _unauthenticated(text: str) -> GatewayError:
    return GatewayError(text, kind=BY_CODE["UNAUTHENTICATED"], reason="CALLER_REFUSED")


def timeout_of(request: Request, in_body: float | None) -> float | None:
    """Return the seconds to the deadline that the body or the header asks for; None without one.

    Raises:
        GatewayError: It is no number above 0.
    """
    given, name = in_body, "timeout"
    if given is None:
        text = request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return None
        name = TIMEOUT_HEADER
        try:
            given = float(text)
        except ValueError:
            raise GatewayError(f"{name} must be seconds, such as 2.5", param=name) from None
    if not math.isfinite(given) or not 0 < given <= _MAX_TIMEOUT_SECONDS:
        raise GatewayError(f"{name} must be above 0 and at most {_MAX_TIMEOUT_SECONDS:.0f} seconds", param=name)
    return given


@contextmanager
def trace_context(headers: Mapping[str, str]) -> Iterator[None]:
    """Make calls inside the block children of the trace that the request is part of."""
    carrier = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Return the result of `work`; cancel it where the client leaves. The request's body must have been read.

    Raises:
        ClientDisconnect: The client left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def left(request: Request) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
