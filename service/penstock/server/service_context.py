"""Define what every servicer needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import grpc
from penstock_proto.v1 import generation_pb2 as pb

from penstock.admission.queue import Admission
from penstock.admission.quotas.quotas import Quotas
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock.generation.coalescing import EventLoopLagMonitor
from penstock.generation.control import GenerationControl
from penstock.generation.early_exit import ProbeConditions
from penstock.generation.thinking import AnswerLengths
from penstock.generation.usage import PriceList
from penstock.sessions.streams import StreamStore
from penstock.telemetry.audit import NO_AUDIT, Audit

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """Hold the parts that every servicer needs. `engine` raises EngineDown while no engine takes work."""

    config: Config
    prices: PriceList
    admission: Admission
    streams: StreamStore[pb.GenerationEvent]
    engine: Callable[[], Engine]
    signing_key: bytes | None = None
    """Signs checkpoints of drained generations; None without `resume.key_file`."""
    quotas: Quotas = field(default_factory=Quotas)
    audit: Audit = NO_AUDIT
    controls: WeakSet[GenerationControl] = field(default_factory=WeakSet)
    """Controls of all running generations, so that draining can end them."""

    answers: AnswerLengths = field(default_factory=AnswerLengths)
    conditions: ProbeConditions = field(default_factory=ProbeConditions)
    lag: EventLoopLagMonitor = field(default_factory=lambda: EventLoopLagMonitor(0))

    def control(self) -> GenerationControl:
        """Return a new control, which draining reaches as long as it is in use."""
        control = GenerationControl()
        self.controls.add(control)
        return control
