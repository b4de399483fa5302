"""Call RoutingService.GetExpertLoad for `penstock pilot`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
from penstock_client.channel import credentials_for, metadata_for, options_for, resolve
from penstock_client.errors import from_rpc_error
from penstock_proto.v1 import routing_pb2, routing_pb2_grpc

Ask = Callable[[routing_pb2.GetExpertLoadRequest], Awaitable[routing_pb2.GetExpertLoadResponse]]


@asynccontextmanager
async def asking(target: str, tls: bool | Path | None, timeout_seconds: float) -> AsyncIterator[Ask]:
    """Yield the call, which raises PenstockError."""
    target, key, encryption = resolve(target, None, tls)
    metadata = metadata_for(target, key, encryption)
    credentials, options = credentials_for(encryption), options_for(target, ())
    channel = (
        grpc.aio.insecure_channel(target, options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options)
    )
    async with channel:
        method = routing_pb2_grpc.RoutingServiceStub(channel).GetExpertLoad

        async def ask(request: routing_pb2.GetExpertLoadRequest) -> routing_pb2.GetExpertLoadResponse:
            """Call GetExpertLoad. Raises PenstockError."""
            try:
                reply: routing_pb2.GetExpertLoadResponse = await method(
                    request, timeout=timeout_seconds, metadata=metadata
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            return reply

        yield ask
