"""Define what every servicer needs (ServiceContext) and what is known of a call before it is read (RequestContext)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import grpc
from penstock_proto.v1 import generation_pb2 as pb

from penstock.admission.queue import Admission
from penstock.admission.quotas.quotas import Quotas
from penstock.auth.identity import CURRENT_PRINCIPAL, Principal
from penstock.config.schema import Config
from penstock.engine.base import Engine
from penstock.generation.candidate import GenerationControl
from penstock.generation.coalescing import EventLoopLagMonitor
from penstock.generation.thinking import AnswerLengths
from penstock.generation.usage import PriceList
from penstock.sessions.streams import StreamStore
from penstock.telemetry.audit import NO_AUDIT, Audit

# Seconds that a status needs to reach its client, and the most that is reserved for it.
_STATUS_SECONDS, _MAX_STATUS_SECONDS = 0.02, 0.25
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
    lag: EventLoopLagMonitor = field(default_factory=lambda: EventLoopLagMonitor(0))

    def control(self) -> GenerationControl:
        """Return a new control, which draining reaches as long as it is in use."""
        control = GenerationControl()
        self.controls.add(control)
        return control


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Hold what is known of a call before it is read. Times are in seconds of time.monotonic()."""

    caller: Principal
    at_monotonic: float
    deadline_monotonic: float | None

    @classmethod
    def of(cls, context: Context) -> RequestContext:
        """Return the context of a gRPC call that has just arrived."""
        now, left = time.monotonic(), context.time_remaining()
        return cls(CURRENT_PRINCIPAL.get(), now, None if left is None else now + left)

    def status_margin_seconds(self, lag_seconds: float) -> float:
        """Return how many seconds before the deadline the server ends the call, so that its status arrives in time.

        20 ms, more while the event loop is late, and at most a tenth of the time that the call was given.
        """
        if self.deadline_monotonic is None:
            return 0.0
        margin = min(_STATUS_SECONDS + 2 * lag_seconds, _MAX_STATUS_SECONDS)
        return max(0.0, min(margin, (self.deadline_monotonic - self.at_monotonic) / 10))

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, which may be negative; None without a deadline."""
        return None if self.deadline_monotonic is None else self.deadline_monotonic - time.monotonic()
