"""Set up telemetry from its plan: providers, exporters, the Prometheus endpoint and the hooks."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.environment_variables import OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler

from penstock.config.schema import TelemetrySettings
from penstock.telemetry.hooks import TelemetryHooks
from penstock.telemetry.otel.calls import OpenTelemetryHooks
from penstock.telemetry.otel.exporters import ExporterHealth, exporter, silence_sdk_loggers
from penstock.telemetry.otel.instruments import Instruments
from penstock.telemetry.otel.logs import OtlpHandler
from penstock.telemetry.otel.plan import Route, Signal, TelemetryPlan
from penstock.telemetry.otel.prometheus import Endpoint
from penstock.telemetry.otel.sampling import sampler_of_calls
from penstock.telemetry.otel.span import Tracing

log = logging.getLogger(__name__)
_SCOPE = "penstock"
_CLOSE_SECONDS = 5.0
# In seconds, with the SDK's buckets for milliseconds.
_NO_SDK_DURATIONS = View(instrument_name="otel.sdk.*.duration", aggregation=DropAggregation())


class Telemetry:
    """Hold the telemetry of this process. `hooks` go to the server; close it after the server."""

    def __init__(self, plan: TelemetryPlan, settings: TelemetrySettings) -> None:
        self._closing: list[Callable[[], None]] = []
        self._exporters: list[Callable[[], None]] = []
        self._health = ExporterHealth()
        self._handler: OtlpHandler | None = None
        self.endpoint: Endpoint | None = None
        self.resource = _resource()
        # The SDK counts what it sent and what it dropped, where this is set.
        os.environ.setdefault(OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED, "true")
        self._meters: metrics.MeterProvider = metrics.NoOpMeterProvider()
        self._meters = self._metrics(plan)
        tracing = self._tracing(plan.routes.get("traces"), settings)
        self._logs(plan.routes.get("logs"))
        silence_sdk_loggers()
        self.hooks: TelemetryHooks = OpenTelemetryHooks(
            tracing,
            Instruments(self._meters.get_meter(_SCOPE)),
            engine_joins="traces" in plan.routes and settings.engine_traces,
            records_content=settings.record_content,
        )

    def _metrics(self, plan: TelemetryPlan) -> metrics.MeterProvider:
        readers: list[MetricReader] = []
        route = plan.routes.get("metrics")
        if route is not None:
            readers.append(PeriodicExportingMetricReader(self._exporter("metrics", route)))
        scraped = InMemoryMetricReader()
        if plan.prometheus is not None:
            readers.append(scraped)
        if not readers:
            return self._meters
        provider = MeterProvider(readers, self.resource, shutdown_on_exit=False, views=[_NO_SDK_DURATIONS])
        self._closing.append(provider.shutdown)
        if plan.prometheus is not None:
            self.endpoint = Endpoint(scraped, self.resource, *plan.prometheus)
            self._closing.append(self.endpoint.close)
        return provider

    def _tracing(self, route: Route | None, settings: TelemetrySettings) -> Tracing:
        if route is None:
            return Tracing(trace.NoOpTracer())
        processor = BatchSpanProcessor(self._exporter("traces", route), meter_provider=self._meters)

        def provider(sampler: Sampler | None) -> TracerProvider:
            made = TracerProvider(sampler, self.resource, shutdown_on_exit=False)
            made.add_span_processor(processor)
            return made

        trusts_callers = settings.trust_caller_sampling
        calls = provider(sampler_of_calls(settings.sampling_ratio, trusts_callers=trusts_callers))
        self._closing.append(calls.shutdown)
        if settings.engine_traces:
            # vLLM in this process writes to the global provider. It would set its own; the first one stays. The parents
            # of its spans are ours, and have been sampled.
            trace.set_tracer_provider(provider(sampler_of_calls(settings.sampling_ratio, trusts_callers=True)))
        return Tracing(calls.get_tracer(_SCOPE))

    def _logs(self, route: Route | None) -> None:
        if route is None:
            return
        provider = LoggerProvider(resource=self.resource, shutdown_on_exit=False)
        exporter = self._exporter("logs", route)
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter, meter_provider=self._meters))
        self._closing.append(provider.shutdown)
        self._handler = OtlpHandler(provider)
        logging.getLogger().addHandler(self._handler)

    def _exporter(self, signal: Signal, route: Route) -> Any:
        made = exporter(signal, route, self._health, self._meters)
        self._exporters.append(made.shutdown)
        return made

    async def close(self) -> None:
        """Send what is queued, for five seconds at most, and not at all where the collector fails."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        closing = _in_threads(self._closing)
        if closing and not self._health.lost:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        # An exporter that is shut down stops its attempts.
        ending = [*closing, *_in_threads(self._exporters)]
        if ending:
            await asyncio.wait(ending, timeout=_CLOSE_SECONDS)


def _in_threads(calls: Iterable[Callable[[], None]]) -> list[asyncio.Future[None]]:
    """Start each call in a daemon thread, so that a collector that never answers cannot block the process."""
    loop = asyncio.get_running_loop()

    def run(call: Callable[[], None], done: asyncio.Future[None]) -> None:
        try:
            call()
        except Exception:
            log.debug("telemetry did not shut down cleanly", exc_info=True)
        with suppress(RuntimeError):  # The event loop has closed.
            loop.call_soon_threadsafe(done.set_result, None)

    ends = []
    for call in calls:
        ends.append(loop.create_future())
        threading.Thread(target=run, args=(call, ends[-1]), daemon=True).start()
    return ends


def engine_environment(routes: Mapping[Signal, Route], environ: MutableMapping[str, str]) -> str | None:
    """Set the environment of vLLM's workers, and return its otlp_traces_endpoint; None where nothing is traced."""
    route = routes.get("traces")
    if route is None:
        return None
    environ.setdefault("OTEL_SERVICE_NAME", _SCOPE)
    environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "grpc" if route.protocol == "grpc" else "http/protobuf"
    return route.endpoint


def _resource() -> Resource:
    """Return the service's resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    ours = Resource(
        {
            "service.name": _SCOPE,
            "service.version": importlib.metadata.version("penstock"),
            "service.instance.id": os.environ.get("HOSTNAME") or str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
    )
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())
