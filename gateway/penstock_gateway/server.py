"""The HTTP server: uvicorn, with bounds on what a connection may hold."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn

from penstock_gateway.connections import protocol_for
from penstock_gateway.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

_BACKLOG = 1024


def bind(host: str, port: int, settings: Settings) -> socket.socket:
    """Return a socket that listens on `host` and `port`; `::` is all addresses, IPv4's too.

    Raises:
        OSError: It cannot.
    """
    both = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not both:  # a machine without IPv6
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
        milliseconds = round(settings.slow_reader_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return host:port of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def configuration(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration for the application."""
    return uvicorn.Config(
        app,
        http=protocol_for(settings),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )


def run(app: Starlette, listener: socket.socket, settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; running requests then have `settings.drain_seconds` to end."""
    uvicorn.Server(configuration(app, settings)).run(sockets=[listener])
