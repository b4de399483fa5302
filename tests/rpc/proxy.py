"""A TCP proxy whose connections can be cut: the network's part in tests of reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LINGER_SECONDS = 0.2


class Proxy:
    """`target` is where clients connect; it forwards to `server`."""

    def __init__(self, server: str, cut_bytes: int | None = None, reply_seconds: float = 0.0) -> None:
        self.server = server
        self.cut_bytes = cut_bytes
        """Connections over which the server has sent so much are reset, soon after; None: none is."""
        self.reply_seconds = reply_seconds
        """How much later than it was sent the client gets what the server says."""
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
                if replies and self.reply_seconds:
                    asyncio.get_running_loop().call_later(self.reply_seconds, writer.write, data)
                else:
                    writer.write(data)
                    await writer.drain()
                passed += len(data)
                if replies and self.cut_bytes is not None and passed >= self.cut_bytes:
                    await asyncio.sleep(_LINGER_SECONDS)  # a reset takes with it what the client has not read yet
                    break
            if replies:
                await asyncio.sleep(self.reply_seconds)
        writer.transport.abort()


@asynccontextmanager
async def proxied(server: str, *, cut_bytes: int | None = None, reply_seconds: float = 0.0) -> AsyncIterator[Proxy]:
    """With `cut_bytes`, every connection is reset when the server has sent so much over it."""
    proxy = Proxy(server, cut_bytes, reply_seconds)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    proxy.target = f"{host}:{port}"
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
        await asyncio.sleep(0)
