"""A TCP proxy whose connections can be cut: the network's part in tests of reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """`target` is where clients connect; it forwards to `server`."""

    def __init__(self, server: str, cut_seconds: float | None = None) -> None:
        self.server = server
        self._cut_seconds = cut_seconds
        self.target = ""
        self.connections = 0
        self.refusing = False
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Resets every connection under way."""
        for writer in self._open:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        host, _, port = self.server.rpartition(":")
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            ours = {writer, there_writer}
            self._open |= ours
            if self._cut_seconds is not None:
                asyncio.get_running_loop().call_later(self._cut_seconds, writer.transport.abort)
                asyncio.get_running_loop().call_later(self._cut_seconds, there_writer.transport.abort)
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
            self._open -= ours


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def proxied(server: str, *, cut_seconds: float | None = None) -> AsyncIterator[Proxy]:
    """With `cut_seconds`, every connection is reset when it is that old."""
    proxy = Proxy(server, cut_seconds)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    proxy.target = f"{host}:{port}"
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
        await asyncio.sleep(0)
