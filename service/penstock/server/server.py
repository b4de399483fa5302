"""Run the gRPC servers: health, reflection and the services, from NOT_SERVING at the start to draining at the end."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from penstock_proto.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)

from penstock.admission.queue import Admission
from penstock.admission.quotas.store import quotas_of
from penstock.auth.authenticator import Authenticator
from penstock.config.reload import watch_for_changes
from penstock.config.schema import Config, ServerSettings
from penstock.engine.base import Engine
from penstock.engine.expert_load.sampler import ExpertSampler
from penstock.engine.supervisor import SupervisedEngine
from penstock.errors import EngineDown
from penstock.generation.coalescing import EventLoopLagMonitor
from penstock.generation.early_exit import ProbeConditions
from penstock.generation.usage import PriceList
from penstock.server.listener import add_port, bind, health_options, options
from penstock.server.rpc.call_limits import HEALTH_MESSAGE_BYTES
from penstock.server.rpc.call_record import CallMiddleware
from penstock.server.rpc.generation_servicer import GenerationServicer, ModelServicer
from penstock.server.rpc.health import NOT_SERVING, SERVING, HealthServicer
from penstock.server.rpc.interceptor import CallInterceptor
from penstock.server.rpc.routing_servicer import RoutingServicer
from penstock.server.service_context import ServiceContext
from penstock.sessions.checkpoints import signing_key
from penstock.sessions.streams import StreamStore
from penstock.telemetry.audit import audit_of
from penstock.telemetry.hooks import NO_HOOKS, ServiceState, TelemetryHooks

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_pb2, "GenerationService"),
        (model_pb2, "ModelService"),
        (routing_pb2, "RoutingService"),
    )
)
# Health of the process, unlike readiness: SERVING from the start to the end, for liveness probes.
LIVENESS = "liveness"
_READINESS = ("", *SERVICES)
# A stream that must end sends its last event at its next engine step.
_LAST_EVENT_SECONDS = 10.0
_LAST_STATUS_SECONDS = 0.5


class Server:
    """Listen at once, and serve once there is an engine."""

    def __init__(self, config: Config, hooks: TelemetryHooks = NO_HOOKS) -> None:
        self._config = config
        self._hooks = hooks
        self._engine: Engine | None = None
        self._engine_is_up = False
        self._health = HealthServicer({LIVENESS: NOT_SERVING, **dict.fromkeys(_READINESS, NOT_SERVING)})
        self.admission = Admission(config.admission, self._capacity)
        self._lag = EventLoopLagMonitor(config.server.adaptive_flush_seconds)
        self._watching: list[asyncio.Task[None]] = []
        self._experts = ExpertSampler(config.routing.window_seconds)
        authenticator = Authenticator(config.auth, config.jwt, config.quotas)
        self._files = authenticator.files
        self._audit = audit_of(config.audit)
        self._quotas = quotas_of(config.quotas)
        settings = config.server
        middleware = CallMiddleware(authenticator, self._quotas, hooks, self._audit)
        interceptor = CallInterceptor(settings, middleware, config.max_message_bytes)
        api = grpc.aio.server(interceptors=[interceptor], options=options(settings, config.max_message_bytes))
        self.probes_address = ""
        self._grpc = [api, _probes(settings)] if settings.health_listen else [api]
        """The server of the API, and that for health checks where there is one."""
        self._streams: StreamStore[generation_pb2.GenerationEvent] = StreamStore(config.resume)
        prices = PriceList(config.price_tiers)
        self._service = service = ServiceContext(
            config,
            prices,
            self.admission,
            self._streams,
            self._require_engine,
            signing_key(config.resume),
            self._quotas,
            self._audit,
            conditions=ProbeConditions(lambda: self.admission.queued_calls),
            lag=self._lag,
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(service), api)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(service), api)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(RoutingServicer(service, self._experts), api)
        for server in self._grpc:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, api)
        hooks.watch_state(self.state)

    def _capacity(self) -> int:
        most = self._config.admission.max_running_sequences
        return most or (self._engine.card.max_num_seqs if self._engine else 1)

    def state(self) -> ServiceState:
        """Return the counts of this moment, for gauges."""
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
            resumable_streams=len(self._streams),
            loop_lag_seconds=self._lag.seconds,
            loop_busy_share=self._lag.busy_share,
            engine_restarts=engine.restarts if isinstance(engine, SupervisedEngine) else 0,
            load=engine.load() if engine else None,
            experts=self._experts.latest(),
        )

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise EngineDown("the engine is still loading; retry later")
        if not self._engine_is_up:
            raise EngineDown("the engine is restarting; retry later")
        return self._engine

    async def listen(self) -> str:
        """Bind, answer health checks with NOT_SERVING, and return host:port. Raise ConfigError where that fails."""
        api, *probes = self._grpc
        address = bind(api, self._config, self._files)
        for server in probes:
            self.probes_address = add_port(server, "server.health_listen", self._config.server.health_listen)
        await self.set_ready(False)
        self._health.set(SERVING, LIVENESS)
        host, _, port = address.rpartition(":")
        self._hooks.listening(host, int(port))
        for server in self._grpc:
            await server.start()
        self._watching.append(asyncio.create_task(self._lag.watch(lambda: self.admission.running_calls > 0)))
        if self._files:
            every_seconds = self._config.server.reload_seconds
            self._watching.append(asyncio.create_task(watch_for_changes(self._files, every_seconds)))
        return address

    async def serve_with(self, engine: Engine) -> None:
        """Take calls from now on."""
        self._engine = engine
        self._watching.append(asyncio.create_task(self._experts.run(engine)))
        await self.set_ready(True)

    async def set_ready(self, ready: bool) -> None:
        """Set the health of all services: SERVING while the engine takes work and the server is not draining."""
        self._engine_is_up = ready
        self._health.set(SERVING if ready and not self.admission.draining else NOT_SERVING, *_READINESS)

    async def drain(self, seconds: float) -> None:
        """Refuse new calls and wait for running ones; after `seconds` send each its last event. Then close all."""
        self.admission.drain()
        await self.set_ready(False)
        try:
            async with asyncio.timeout(seconds):
                await self.admission.idle()
        except TimeoutError:
            for control in list(self._service.controls):
                control.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_EVENT_SECONDS):
                    await self.admission.idle()
        for watching in self._watching:
            watching.cancel()
        # A call releases its capacity before it has settled its usage and sent its status, which takes a moment more.
        # Readers of resumable streams get the last event in that time.
        await asyncio.gather(*(server.stop(_LAST_STATUS_SECONDS) for server in self._grpc))
        self._grpc.clear()  # gRPC's server cleans up on this event loop once nothing refers to it.
        await self._streams.close()
        await self._quotas.close()
        self._audit.close()


def _probes(settings: ServerSettings) -> grpc.aio.Server:
    """Return a server of its own for health checks: connections to the API's port cannot use up its connections."""
    alone = CallInterceptor(settings, None, HEALTH_MESSAGE_BYTES)
    return grpc.aio.server(interceptors=[alone], options=health_options(settings))
