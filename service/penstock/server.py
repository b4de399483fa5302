"""The server: health, reflection, and a life that starts NOT_SERVING and ends by draining."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from penstock_client.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)

from penstock.admission import Admission
from penstock.audit import audit_of
from penstock.border import Border
from penstock.callers.gate import Gate
from penstock.config import Config
from penstock.engine import Engine
from penstock.errors import EngineDown
from penstock.gather import LoopLag
from penstock.house import House
from penstock.http2.endpoint import Endpoint
from penstock.interceptor import Interceptor
from penstock.listener import listener, probes
from penstock.live import LiveStreams
from penstock.observe import NOBODY, Observer, ServiceState
from penstock.quotas.store import quotas_of
from penstock.routing_sampler import ExpertSampler
from penstock.routing_servicer import RoutingServicer
from penstock.sealed import seal_key
from penstock.servicer import GenerationServicer, ModelServicer
from penstock.supervisor import SupervisedEngine
from penstock.usage import PriceList
from penstock.watched import keep_fresh

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_pb2, "GenerationService"),
        (model_pb2, "ModelService"),
        (routing_pb2, "RoutingService"),
    )
)
# Health of the process, as against readiness: SERVING from the first moment to the last, for liveness probes.
LIVENESS = "liveness"
# A stream that is told to end says so at its next engine step.
_LAST_EVENT_SECONDS = 10.0
_LAST_STATUS_SECONDS = 0.5
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """Listens at once, serves once it has an engine. `engine` is set by whoever started one."""

    def __init__(self, config: Config, observer: Observer = NOBODY) -> None:
        self._config = config
        self._observer = observer
        self._engine: Engine | None = None
        self._engine_is_up = False
        self._health = health.aio.HealthServicer()
        self.admission = Admission(config.admission, self._capacity)
        self._lag = LoopLag(config.server.adaptive_flush_seconds)
        self._watching: list[asyncio.Task[None]] = []
        self._experts = ExpertSampler(config.routing.window_seconds)
        gate = Gate(config.auth, config.jwt, config.quotas)
        self._files = gate.files
        self._audit = audit_of(config.audit)
        self._quotas = quotas_of(config.quotas)
        self._services = Interceptor(Border(gate, self._quotas, observer, self._audit))
        self._health_alone = Interceptor(None)
        self.probes_address = ""
        self._endpoints: list[Endpoint] = []
        self._live = LiveStreams(config.resume)
        prices = PriceList(config.price_tiers)
        self._house = house = House(
            config,
            prices,
            self.admission,
            self._live,
            self._require_engine,
            seal_key(config.resume),
            self._quotas,
            self._audit,
            lag=self._lag,
        )
        # All that generated code does with a server is to add handlers to it.
        services = cast("grpc.aio.Server", self._services)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(house), services)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(house), services)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(RoutingServicer(house, self._experts), services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_alone)
        if config.server.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflecting = reflection.aio.ReflectionServicer(names)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, services)
        observer.watch_state(self.state)

    def _capacity(self) -> int:
        most = self._config.admission.max_running_sequences
        return most or (self._engine.card.max_num_seqs if self._engine else 1)

    def state(self) -> ServiceState:
        engine, admission = self._engine, self.admission
        return ServiceState(
            model=engine.card.name if engine else "",
            engine_is_up=self._engine_is_up,
            draining=admission.draining,
            queued_calls=admission.queued_calls,
            queued_tokens=admission.queued_tokens,
            running_calls=admission.running_calls,
            running_sequences=admission.running_sequences,
            capacity_sequences=self._capacity(),
            resumable_streams=len(self._live),
            loop_lag_seconds=self._lag.seconds,
            engine_restarts=engine.restarts if isinstance(engine, SupervisedEngine) else 0,
            load=engine.load() if engine else None,
            experts=self._experts.latest(),
        )

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise EngineDown("the engine is still loading")
        if not self._engine_is_up:
            raise EngineDown("the engine is restarting")
        return self._engine

    async def listen(self) -> str:
        """Binds and answers health NOT_SERVING; the bound host:port. Raises ConfigError where it cannot."""
        endpoint, address = listener(self._config, self._services.serve, self._files)
        self._endpoints.append(endpoint)
        if self._config.server.health_listen:
            endpoint, self.probes_address = probes(self._config, self._health_alone.serve)
            self._endpoints.append(endpoint)
        await self.set_ready(False)
        await self._health.set(LIVENESS, _SERVING)
        host, _, port = address.rpartition(":")
        self._observer.listening(host, int(port))
        for endpoint in self._endpoints:
            await endpoint.start()
        self._watching.append(asyncio.create_task(self._lag.watch(lambda: self.admission.running_calls > 0)))
        if self._files:
            every_seconds = self._config.server.reload_seconds
            self._watching.append(asyncio.create_task(keep_fresh(self._files, every_seconds)))
        return address

    async def serve_with(self, engine: Engine) -> None:
        """Takes calls from now on."""
        self._engine = engine
        self._watching.append(asyncio.create_task(self._experts.run(engine)))
        await self.set_ready(True)

    async def set_ready(self, ready: bool) -> None:
        """Health of all services: SERVING while the engine takes work and the server is not going away."""
        self._engine_is_up = ready
        state = _SERVING if ready and not self.admission.draining else _NOT_SERVING
        await asyncio.gather(*(self._health.set(name, state) for name in ("", *SERVICES)))

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and lets those under way end; after `seconds` each gets a last event, and all is closed."""
        self.admission.drain()
        await self.set_ready(False)
        try:
            async with asyncio.timeout(seconds):
                await self.admission.idle()
        except TimeoutError:
            for steering in list(self._house.steerings):
                steering.drained = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_EVENT_SECONDS):
                    await self.admission.idle()
        await self._live.close()
        for watching in self._watching:
            watching.cancel()
        # Room is given back before a call has counted what it used and said its status: that takes a moment more.
        for endpoint in self._endpoints:
            await endpoint.stop(_LAST_STATUS_SECONDS)
        await self._quotas.close()
        self._audit.close()
