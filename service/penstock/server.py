"""The listener: gRPC options, health, reflection, and a life that starts NOT_SERVING and ends by draining."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from penstock_client.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)

from penstock.admission import Admission
from penstock.callers.gate import Gate
from penstock.calls import House
from penstock.config import Config, ServerSettings
from penstock.engine import Engine
from penstock.errors import ConfigError, EngineDown
from penstock.gather import LoopLag
from penstock.interceptor import SlowReaders, StatusInterceptor
from penstock.live import LiveStreams
from penstock.observe import NOBODY, Observer, ServiceState
from penstock.routing_sampler import ExpertSampler
from penstock.routing_servicer import RoutingServicer
from penstock.servicer import GenerationServicer, ModelServicer
from penstock.supervisor import SupervisedEngine
from penstock.tls import Certificates
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
_LEAST_KEY_BYTES = 32
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        # Above this gRPC refuses, by default, only some of the calls.
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        # A long silent prefill must not be cut for too many pings, nor an idle channel for none.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port would share its calls at random.
        ("grpc.so_reuseport", 0),
    ]
    if settings.max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)))
    return options


class Server:
    """Listens at once, serves once it has an engine. `engine` is set by whoever started one."""

    def __init__(self, config: Config, observer: Observer = NOBODY) -> None:
        self._config = config
        self._observer = observer
        self._engine: Engine | None = None
        self._engine_is_up = False
        self._health = health.aio.HealthServicer()
        self.admission = Admission(config.admission, self._capacity)
        self._slow_readers = SlowReaders(config.server.slow_reader_seconds)
        self._lag = LoopLag(config.server.adaptive_flush_seconds)
        self._watching: list[asyncio.Task[None]] = []
        self._experts = ExpertSampler(config.routing.window_seconds)
        gate = Gate(config.auth, config.jwt)
        self._files = gate.files
        interceptor = StatusInterceptor(self._slow_readers, observer, gate)
        self._grpc = grpc.aio.server(interceptors=[interceptor], options=_options(config.server))
        self.probes_address = ""
        self._probes = grpc.aio.server(options=_options(config.server)) if config.server.health_listen else None
        self._live = LiveStreams(config.resume)
        prices = PriceList(config.price_tiers)
        self._house = house = House(
            config, prices, self.admission, self._live, self._require_engine, _seal_key(config), lag=self._lag
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(house), self._grpc)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(house), self._grpc)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(RoutingServicer(house, self._experts), self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if self._probes is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
        if config.server.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
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
        address = self._bind()
        if self._probes is not None:
            self.probes_address = _add_port(self._probes, "server.health_listen", self._config.server.health_listen)
            await self._probes.start()
        await self.set_ready(False)
        await self._health.set(LIVENESS, _SERVING)
        host, _, port = address.rpartition(":")
        self._observer.listening(host, int(port))
        await self._grpc.start()
        self._watching.append(asyncio.create_task(self._slow_readers.watch()))
        self._watching.append(asyncio.create_task(self._lag.watch()))
        if self._files:
            every_seconds = self._config.server.reload_seconds
            self._watching.append(asyncio.create_task(keep_fresh(self._files, every_seconds)))
        return address

    def _bind(self) -> str:
        settings = self._config.server
        if self._config.tls.certificate_file is not None:
            certificates = Certificates(self._config.tls)
            self._files.append(certificates.files)
            return _add_port(self._grpc, "server.listen", settings.listen, certificates.credentials())
        host, _ = _host_and_port("server.listen", settings.listen)
        if not settings.insecure and not _is_loopback(host):
            raise ConfigError(
                f"server.listen: {host} is not loopback and this is plaintext: set tls.certificate_file and "
                "tls.key_file, or say --insecure (server.insecure = true) to allow it, behind something that encrypts"
            )
        return _add_port(self._grpc, "server.listen", settings.listen)

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
        await self._grpc.stop(grace=0)
        if self._probes is not None:
            await self._probes.stop(grace=0)


def _seal_key(config: Config) -> bytes | None:
    """The shared secret. Raises ConfigError for a file that cannot be read or is too short to be one."""
    path = config.resume.key_file
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"resume.key_file: {path} cannot be read: {error.strerror}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise ConfigError(f"resume.key_file: {path} holds {len(key)} bytes, at least {_LEAST_KEY_BYTES} are needed")
    return key


def _add_port(server: grpc.aio.Server, key: str, listen: str, tls: grpc.ServerCredentials | None = None) -> str:
    """The bound host:port. Raises ConfigError where it cannot be had."""
    host, port = _host_and_port(key, listen)
    try:
        address = f"{host}:{port}"
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise ConfigError(f"{key}: cannot listen on {listen}: is it taken, or not ours?") from error
    return f"{host}:{bound}"


def _host_and_port(key: str, listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key}: {listen!r} is not host:port")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
