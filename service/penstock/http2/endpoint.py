"""Where connections come in: sockets, TLS, and what holds over all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from itertools import islice

from penstock.http2.call import Call
from penstock.http2.connection import Connection, Limits, Serve
from penstock.http2.frames import ErrorCode

log = logging.getLogger(__name__)
# Requests on their way: how many, and what is held of them.
_MOST_UNSENT = 1024
_MOST_UNSENT_BYTES = 256 * 1024 * 1024
_BACKLOG = 1024
_LOOK_SECONDS = 1.0


class Endpoint:
    """Listens on its sockets from `start` to `stop`. `tls` tells the context of each handshake; None is plaintext."""

    def __init__(self, serve: Serve, limits: Limits, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._serve = serve
        self._limits = limits
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[Connection] = set()
        self._all_left = asyncio.Event()
        self._shaking: set[asyncio.Task[None]] = set()
        self._unsent: dict[Call, float] = {}
        """Calls whose request is on its way, the oldest first."""
        self._unsent_bytes = 0
        self._late: dict[tuple[str, float], int] = {}
        self._watching: asyncio.Task[None] | None = None

    def bind(self, host: str, port: int) -> int:
        """Takes the port, 0 for any, on every address of the host; which it is. Raises OSError."""
        bare = host.strip("[]")
        everywhere = bare == "::" and socket.has_dualstack_ipv6()
        for family, *_, address in socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            taken = socket.create_server(
                (str(address[0]), port), family=family, backlog=_BACKLOG, dualstack_ipv6=everywhere
            )
            # What is accepted from it inherits this; asyncio sets it only where the protocol was named.
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(taken)
            port = taken.getsockname()[1]
        return port

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for taken in self._sockets:
            if self._tls is None:
                self._servers.append(await loop.create_server(self._connection, sock=taken, backlog=_BACKLOG))
            else:
                taken.setblocking(False)
                self._accepting.append(asyncio.create_task(self._accept(taken)))
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_seconds: float) -> None:
        """No more calls; those under way have so long."""
        for server in self._servers:
            server.close()
        for accepting in (*self._accepting, *self._shaking):
            accepting.cancel()
        for taken in self._sockets:
            taken.close()
        for connection in list(self._connections):
            connection.leave()
        await self._until_all_left(grace_seconds)
        for connection in list(self._connections):
            connection.close(ErrorCode.NO_ERROR, "this server ends")
        await self._until_all_left(_LOOK_SECONDS)
        for connection in list(self._connections):
            connection.abort()
        if self._watching is not None:
            self._watching.cancel()

    def _connection(self) -> Connection:
        return Connection(self, self._serve, self._limits)

    def joined(self, connection: Connection) -> bool:
        """Whether there is room for it."""
        if len(self._connections) >= self._limits.connections:
            return False
        self._connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_left.set()

    async def _until_all_left(self, most_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_seconds):
                while self._connections:
                    self._all_left.clear()
                    await self._all_left.wait()

    async def _accept(self, taken: socket.socket) -> None:
        """With TLS, each connection by hand: a server of asyncio's would keep the context that it was made with."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(taken)
            except OSError as error:  # No more files, most likely: whoever waits is taken once there are.
                log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            if len(self._shaking) >= self._limits.connections:
                accepted.close()
                continue
            shaking = asyncio.create_task(self._shake_hands(accepted))
            self._shaking.add(shaking)
            shaking.add_done_callback(self._shaking.discard)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        assert self._tls is not None
        try:
            tls, connection = await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, accepted, ssl=self._tls(), ssl_handshake_timeout=self._limits.request_seconds
            )
        except OSError:  # Its peer's affair, who was told by an alert of TLS.
            accepted.close()
            return
        if tls.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            connection.abort()

    def awaited(self, call: Call) -> None:
        """Its request is on its way. Beyond a number the oldest give way, which one on its way for milliseconds never
        is."""
        self._unsent[call] = time.monotonic()
        if len(self._unsent) > _MOST_UNSENT:
            for old in list(islice(self._unsent, _MOST_UNSENT // 8)):
                self._cut(old)

    def grew(self, call: Call, size: int) -> None:
        """Half of a message more."""
        call.unsent_bytes += size
        self._unsent_bytes += size
        while self._unsent_bytes > _MOST_UNSENT_BYTES:
            self._cut(next(iter(self._unsent)))

    def arrived(self, call: Call) -> None:
        if self._unsent.pop(call, None) is not None:
            self._unsent_bytes -= call.unsent_bytes

    def _cut(self, call: Call) -> None:
        self.arrived(call)
        self.is_late("sent no whole request", self._limits.request_seconds)
        call.cut(ErrorCode.CANCEL)

    def is_late(self, fault: str, seconds: float) -> None:
        self._late[fault, seconds] = self._late.get((fault, seconds), 0) + 1

    async def _watch(self) -> None:
        seconds = min(_LOOK_SECONDS, self._limits.request_seconds / 4, self._limits.slow_reader_seconds / 4)
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(seconds)
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        for call, since in list(self._unsent.items()):
            if now - since <= self._limits.request_seconds:
                break
            self._cut(call)
        for connection in list(self._connections):
            connection.look(now)
        for (fault, seconds), count in self._late.items():
            log.warning("%d clients %s for %.0f s: cut off", count, fault, seconds)
        self._late.clear()
