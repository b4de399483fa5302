"""A TCP proxy whose connections can be cut: the network's part in tests of reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LINGER_SECONDS = 0.2


class Proxy:
    """`target` is where clients connect; it forwards to `server`."""

    def __init__(self, server: str, cut_bytes: int | None = None) -> None:
        self.server = server
        self.cut_bytes = cut_bytes
        """Connections over which the server has sent so much are reset, soon after; None: none is."""
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
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer, replies=True))
            self._open -= ours

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(1024):
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if replies and self.cut_bytes is not None and passed >= self.cut_bytes:
                    await asyncio.sleep(_LINGER_SECONDS)  # a reset takes with it what the client has not read yet
                    break
        writer.transport.abort()


@asynccontextmanager
async def proxied(server: str, *, cut_bytes: int | None = None) -> AsyncIterator[Proxy]:
    """With `cut_bytes`, every connection is reset when the server has sent so much over it."""
    proxy = Proxy(server, cut_bytes)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    proxy.target = f"{host}:{port}"
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
        await asyncio.sleep(0)
