"""Puts telemetry together from its plan: providers, exporters, the endpoint, and the onlooker that feeds them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import uuid
from collections.abc import Callable, Mapping, MutableMapping

from opentelemetry import trace
from opentelemetry.metrics import Meter, NoOpMeter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from penstock.config import TelemetrySettings
from penstock.observe import Observer
from penstock.telemetry.calls import TelemetryObserver
from penstock.telemetry.instruments import Instruments
from penstock.telemetry.logs import OtlpHandler
from penstock.telemetry.outbox import Logs, Metrics, Reach, Spans, quieten
from penstock.telemetry.plan import Route, Signal, TelemetryPlan
from penstock.telemetry.prometheus import Endpoint, ScrapeReader
from penstock.telemetry.span import Tracing
from penstock.telemetry.spreads import Spreads

_SCOPE = "penstock"
_CLOSE_SECONDS = 5.0


class Telemetry:
    """Started once per process. `observer` is what the server tells; close it after the server."""

    def __init__(self, plan: TelemetryPlan, settings: TelemetrySettings) -> None:
        self._closing: list[Callable[[], None]] = []
        self._exporters: list[Callable[[], None]] = []
        self._reach = Reach()
        self._handler: OtlpHandler | None = None
        self.endpoint: Endpoint | None = None
        self.resource = _resource()
        tracing = self._tracing(plan.routes.get("traces"), settings)
        spreads = Spreads()
        meter = self._meter(plan, spreads)
        self._logs(plan.routes.get("logs"))
        quieten()
        self.observer: Observer = TelemetryObserver(
            tracing,
            Instruments(meter, spreads),
            engine_joins="traces" in plan.routes and settings.engine_traces,
            records_content=settings.record_content,
        )

    def _tracing(self, route: Route | None, settings: TelemetrySettings) -> Tracing:
        if route is None:
            return Tracing(None, None, _SCOPE)
        provider = TracerProvider(resource=self.resource, shutdown_on_exit=False)
        exporter = Spans(route, self._reach)
        processor = BatchSpanProcessor(exporter)
        provider.add_span_processor(processor)
        self._closes(provider.shutdown, exporter.shutdown)
        if settings.engine_traces:
            # vLLM in this process writes to the global provider. It would set its own; the first one stays.
            trace.set_tracer_provider(provider)
        return Tracing(provider, processor, _SCOPE)

    def _meter(self, plan: TelemetryPlan, spreads: Spreads) -> Meter:
        readers: list[MetricReader] = []
        route = plan.routes.get("metrics")
        if route is not None:
            exporter = Metrics(route, self._reach, spreads)
            readers.append(PeriodicExportingMetricReader(exporter))
            self._exporters.append(exporter.shutdown)
        if plan.prometheus is not None:
            scrape = ScrapeReader(spreads)
            readers.append(scrape)
        if not readers:
            return NoOpMeter(_SCOPE)
        provider = MeterProvider(readers, resource=self.resource, shutdown_on_exit=False)
        self._closing.append(provider.shutdown)
        if plan.prometheus is not None:
            self.endpoint = Endpoint(scrape, self.resource, *plan.prometheus)
            self._closing.append(self.endpoint.close)
        return provider.get_meter(_SCOPE)

    def _logs(self, route: Route | None) -> None:
        if route is None:
            return
        provider = LoggerProvider(resource=self.resource, shutdown_on_exit=False)
        exporter = Logs(route, self._reach)
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
        self._closes(provider.shutdown, exporter.shutdown)
        self._handler = OtlpHandler(provider)
        logging.getLogger().addHandler(self._handler)

    def _closes(self, provider: Callable[[], None], exporter: Callable[[], None]) -> None:
        self._closing.append(provider)
        self._exporters.append(exporter)

    async def close(self) -> None:
        """Sends what is left, for a few seconds at most; not at all where nobody takes it."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        closing = asyncio.gather(*(asyncio.to_thread(close) for close in self._closing), return_exceptions=True)
        if not self._reach.lost:
            await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
        # An exporter that is shut down gives up what it was trying.
        await asyncio.gather(*(asyncio.to_thread(end) for end in self._exporters), return_exceptions=True)
        await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)


def engine_environment(routes: Mapping[Signal, Route], environ: MutableMapping[str, str]) -> str | None:
    """vLLM's otlp_traces_endpoint; its worker processes read the rest from the environment. None: not traced."""
    route = routes.get("traces")
    if route is None:
        return None
    environ.setdefault("OTEL_SERVICE_NAME", _SCOPE)
    environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "grpc" if route.protocol == "grpc" else "http/protobuf"
    return route.endpoint


def _resource() -> Resource:
    """Who we are; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    ours = Resource(
        {
            "service.name": _SCOPE,
            "service.version": importlib.metadata.version("penstock"),
            "service.instance.id": os.environ.get("HOSTNAME") or str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
    )
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())
