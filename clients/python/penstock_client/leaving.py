"""End the generations of streams that the user leaves.

Leaving a stream ends its generation on the server; losing the connection does not. A resumable generation runs on
without its client, so the client calls `Cancel` with the stream's token. Where the event loop or the process is about
to end, there is no connection or little time for that. This module has the time limits and a way that needs neither.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Protocol

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

CANCEL_SECONDS = 5.0
"""Timeout of `Cancel` while the client stays open."""
CLOSE_SECONDS = 1.0
"""Longest time for which `close()` or the end of the process waits for `Cancel`."""
READ_SECONDS = 30.0
"""Default timeout of calls that generate nothing. Calls that generate have none."""
START_SECONDS = 1.0
"""Longest wait for the first event after a stream was left: the event carries the token that `Cancel` needs."""


class _Closing(Protocol):
    def _end_streams(self) -> None: ...


class _Stream(Protocol):
    def close(self) -> None: ...


_clients: weakref.WeakSet[Any] = weakref.WeakSet()


def end_at_exit(client: _Closing) -> None:
    """Register the client: `client._end_streams()` is called if the process ends before `closed(client)`."""
    _clients.add(client)


def closed(client: _Closing) -> None:
    """Remove a closed client from the register."""
    _clients.discard(client)


@atexit.register
def _end_all() -> None:
    for client in list(_clients):
        with contextlib.suppress(Exception):
            client._end_streams()


async def until_loop_ends(streams: Iterable[_Stream], left: set[asyncio.Task[None]]) -> AsyncGenerator[None, None]:
    """Close the streams when the event loop closes its generators, and wait for the tasks that end them.

    A loop that ends cancels its tasks first, waits for them, but not for those that their cancellation starts, and
    closes its generators then. `left` is the set of the tasks. The wait takes at most twice `CLOSE_SECONDS`.
    """
    try:
        yield
    finally:
        for stream in list(streams):
            stream.close()
        await wait_for_all(left, CLOSE_SECONDS)
        for task in list(left):
            task.cancel()
        await wait_for_all(left, CLOSE_SECONDS)


async def wait_for_all(left: set[asyncio.Task[None]], seconds: float) -> None:
    """Wait until no task is left, also of those that come meanwhile, but not longer than `seconds`."""
    ends = time.monotonic() + seconds
    while left and (seconds_left := ends - time.monotonic()) > 0:
        await asyncio.wait(left, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED)


def cancel_apart(
    channel: Callable[[], grpc.Channel], requests: list[pb.CancelRequest], metadata: Any, *, wait: bool
) -> None:
    """Call `Cancel` over a new blocking connection, for streams whose event loop does not run any more.

    Args:
        channel: Makes the connection.
        requests: One request for each stream.
        metadata: gRPC metadata of the calls.
        wait: Whether to wait, at most `CLOSE_SECONDS`, for the answers; else a thread does it.
    """

    def _cancel_all() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError), channel() as connection:
            stub = generation_pb2_grpc.GenerationServiceStub(connection)
            calls = [stub.Cancel.future(request, timeout=CLOSE_SECONDS, metadata=metadata) for request in requests]
            for call in calls:
                with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                    call.result()

    if wait:
        _cancel_all()
        return
    with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads
        threading.Thread(target=_cancel_all, daemon=True, name="penstock-cancel").start()
