"""uvicorn's HTTP protocol with bounds on what a connection may hold, and on how slowly it is sent and read."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock_gateway.errors import REQUEST, GatewayError, Kind, to_reply
from penstock_gateway.settings import Settings
from penstock_gateway.timers import ClientTimer

_NO_HTTP = Kind(400, REQUEST, "invalid_http")


class _TooLarge(Exception):
    """Stops httptools, so that uvicorn answers 400 and closes the connection."""


def protocol_for(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol class that holds connections to these settings."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"settings": settings})


class _SafeTransport:
    """Write nothing to a connection that is closed: its handler learns that only in the loop's next turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class _BoundedProtocol(HttpToolsProtocol):
    settings: Settings
    _header_bytes = 0
    """Bytes of the request line, headers and trailers of this request."""
    _unseen_bytes = 0
    """Bytes since the parser last told something; it keeps them where they are an unfinished line."""
    _header_timer: ClientTimer | None = None
    _reader_timer: ClientTimer | None = None
    """Runs while more is waiting to be sent than may be held."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _SafeTransport(transport))
        if len(self.connections) > self.settings.max_connections:
            transport.abort()
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_reader_timer()
        self._reader_timer = ClientTimer(self.settings.slow_reader_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unseen_bytes += len(data)
        super().data_received(data)
        if self._unseen_bytes > self.settings.max_header_bytes and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._start_header_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unseen_bytes = 0
        self._stop_header_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unseen_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unseen_bytes = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._unseen_bytes = 0
        self._header_bytes += size
        if self._header_bytes > self.settings.max_header_bytes:
            raise _TooLarge

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all other errors, and close the connection."""
        body = to_reply(GatewayError(msg, kind=_NO_HTTP)).encoded
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        date = [b"%s: %s\r\n" % pair for pair in self.server_state.default_headers]
        self.transport.write(b"".join((b"HTTP/1.1 400 Bad Request\r\n", *date, head.encode(), body)))
        self.transport.close()

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response("The request line or a header is too long.")
        else:
            self.transport.abort()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = ClientTimer(self.settings.request_seconds, self.transport.abort)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
