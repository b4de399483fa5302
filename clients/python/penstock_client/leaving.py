"""End the generations of streams that the user leaves.

Leaving a stream ends its generation on the server; losing the connection does not. A resumable generation runs on
without its client, so the client calls `Cancel` with the stream's token. Where the event loop or the process is about
to end, there is no connection or little time for that. This module has the time limits and a way that needs neither.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable
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
