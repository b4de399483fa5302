"""Serve `grpc.health.v1` for a fixed set of names.

The servicer of grpcio-health-checking holds a lock while it writes to a watcher, so that one client that does not read
blocks changes of the status, and it forgets the watchers of a name when one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.server.service_context import Context

_Response = health_pb2.HealthCheckResponse
SERVING = _Response.SERVING
NOT_SERVING = _Response.NOT_SERVING


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answer health checks. Not thread-safe: lives on the event loop. Nothing is kept of names that are not served."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._status = dict(names)
        self._changed = asyncio.Event()

    def set(self, status: int, *names: str) -> None:
        """Change the status of some names and notify all watchers."""
        self._status.update(dict.fromkeys(names, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse | None:
        """Return the status of a name; None, with NOT_FOUND set, where it is not served."""
        status = self._status.get(request.service)
        if status is None:
            context.set_details("unknown service; the empty name stands for the whole server")
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return None
        return _Response(status=status)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Yield the status of a name now and after each change."""
        name = request.service if request.service in self._status else None
        del request
        told: int | None = None
        while True:
            changed = self._changed
            status = _Response.SERVICE_UNKNOWN if name is None else self._status[name]
            if status != told:
                told = status
                yield _Response(status=status)
            await changed.wait()
