"""Serve RoutingService. Watchers share the engine's counts and equal replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from penstock_proto.v1 import routing_pb2 as pb
from penstock_proto.v1 import routing_pb2_grpc

from penstock.engine.expert_load.sampler import ExpertSampler
from penstock.engine.expert_load.statistics import ExpertLoad
from penstock.errors import Overloaded
from penstock.server.convert.routing import expert_load_to_proto, load_query_from_proto
from penstock.server.service_context import ServiceContext

_MAX_WATCHERS = 64
_RETRY_SECONDS = 5.0


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """Serve the load of the experts."""

    def __init__(self, service: ServiceContext, sampler: ExpertSampler) -> None:
        self._service = service
        self._sampler = sampler
        self._watchers = 0
        self._made: dict[tuple[int, int | None], tuple[ExpertLoad, pb.ExpertLoad]] = {}

    async def GetExpertLoad(self, request: pb.GetExpertLoadRequest, context: object) -> pb.GetExpertLoadResponse:
        query, engine = load_query_from_proto(request), self._service.engine()
        load = await self._sampler.load(engine, query.window_seconds)
        return pb.GetExpertLoadResponse(load=expert_load_to_proto(load, query.ranks))

    async def WatchExpertLoad(
        self, request: pb.WatchExpertLoadRequest, context: object
    ) -> AsyncGenerator[pb.WatchExpertLoadResponse, None]:
        """Yield the load over a window at a fixed interval."""
        query, engine = load_query_from_proto(request), self._service.engine()
        if self._watchers >= _MAX_WATCHERS:
            many = f"watcher limit exceeded: {self._watchers} of {_MAX_WATCHERS} in use"
            raise Overloaded(many, resource="watchers", retry_after_seconds=_RETRY_SECONDS, watchers=self._watchers)
        self._watchers += 1
        try:
            due = asyncio.get_running_loop().time()
            load = await self._sampler.load(engine, query.window_seconds)
            while True:
                yield pb.WatchExpertLoadResponse(load=self._to_proto(load, query.ranks))
                due += query.interval_seconds
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                age = query.interval_seconds / 2
                load = await self._sampler.last_known(engine, query.window_seconds, age_seconds=age) or load
        finally:
            self._watchers -= 1

    def _to_proto(self, load: ExpertLoad, ranks: int | None) -> pb.ExpertLoad:
        """Return the message of a load, made once for all watchers that ask the same.

        It is kept together with the load, so that the load's id is not used again.
        """
        key = (id(load), ranks)
        if key not in self._made:
            if len(self._made) >= _MAX_WATCHERS:
                self._made.clear()
            self._made[key] = (load, expert_load_to_proto(load, ranks))
        return self._made[key][1]
