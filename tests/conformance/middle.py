"""A gRPC server between a client and a real one, which changes what passes: another version's methods, lost events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio


class _Middle(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, lost_reply: int | None, renames: bool) -> None:
        self._channel, self._lost_reply, self._renames = channel, lost_reply, renames

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = f"{details.method}OfTomorrow" if self._renames else str(details.method)

        async def pass_on(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            first = await anext(requests)  # all that these cases send
            call = self._channel.unary_stream(method)(first, timeout=context.time_remaining())
            number = 0
            try:
                async for reply in call:
                    number += 1
                    if number != self._lost_reply:
                        await context.write(reply)
            except grpc.aio.AioRpcError as error:
                trailers = tuple(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details() or "", trailers)

        return grpc.stream_stream_rpc_method_handler(pass_on)


@contextmanager
def middle(server: str, *, lost_reply: int | None = None, renames: bool = False) -> Iterator[str]:
    """Give an address that passes calls on to `server`.

    `lost_reply` is the number of a message of each stream that is dropped, from 1. With `renames` every method is one
    that the server does not have, as those of a newer version of the API would be.
    """
    loop, ready, stop, address = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), ""

    async def serve() -> None:
        nonlocal address
        async with grpc.aio.insecure_channel(server) as channel:
            between = grpc.aio.server()
            between.add_generic_rpc_handlers((_Middle(channel, lost_reply, renames),))
            address = f"127.0.0.1:{between.add_insecure_port('127.0.0.1:0')}"
            await between.start()
            ready.set()
            await stop.wait()
            await between.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
