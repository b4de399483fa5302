"""How streams end that are left: leaving ends the generation on the server, losing the connection does not.

A resumable generation goes on without its client, so the client says `Cancel` with the stream's token. That takes a
connection and a moment, which some ways of leaving do not give: the bounds and the last resort are here.
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
"""Longest that saying Cancel may take while the client goes on."""
CLOSE_SECONDS = 1.0
"""Longest that closing a client, or the end of the process, waits for what is being cancelled."""
READ_SECONDS = 30.0
"""Default timeout of calls that generate nothing. Generating has none: it takes as long as it takes."""
START_SECONDS = 1.0
"""Longest wait for the first event of a stream that was left before it: it carries the token that Cancel needs."""


class _Closing(Protocol):
    def _end_streams(self) -> None: ...


_clients: weakref.WeakSet[Any] = weakref.WeakSet()


def end_at_exit(client: _Closing) -> None:
    """Has `client._end_streams()` called when the process ends with this client still open."""
    _clients.add(client)


def closed(client: _Closing) -> None:
    """Forgets a client that was closed in time."""
    _clients.discard(client)


@atexit.register
def _end_all() -> None:
    for client in list(_clients):
        with contextlib.suppress(Exception):
            client._end_streams()


def cancel_apart(
    channel: Callable[[], grpc.Channel], requests: list[pb.CancelRequest], metadata: Any, *, wait: bool
) -> None:
    """Says Cancel over a connection of its own: for streams of an event loop that does not run any more."""

    def say() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError), channel() as connection:
            stub = generation_pb2_grpc.GenerationServiceStub(connection)
            calls = [stub.Cancel.future(request, timeout=CLOSE_SECONDS, metadata=metadata) for request in requests]
            for call in calls:
                with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                    call.result()

    if wait:
        say()
        return
    with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads
        threading.Thread(target=say, daemon=True, name="penstock-cancel").start()
