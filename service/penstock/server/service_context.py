"""What every servicer needs, and what is known of a call before it is read."""

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

# What a status needs to reach its client, and the most that is kept for it.
_STATUS_SECONDS, _MAX_STATUS_SECONDS = 0.02, 0.25
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What every servicer needs. `engine` raises EngineDown while there is none to give work to."""

    config: Config
    prices: PriceList
    admission: Admission
    streams: StreamStore[pb.GenerationEvent]
    engine: Callable[[], Engine]
    signing_key: bytes | None = None
    """Seals drained generations for other servers; None where there is no key to share."""
    quotas: Quotas = field(default_factory=Quotas)
    audit: Audit = NO_AUDIT
    controls: WeakSet[GenerationControl] = field(default_factory=WeakSet)
    """Of all generations under way, so that draining can end them."""

    answers: AnswerLengths = field(default_factory=AnswerLengths)
    lag: EventLoopLagMonitor = field(default_factory=lambda: EventLoopLagMonitor(0))

    def control(self) -> GenerationControl:
        control = GenerationControl()
        self.controls.add(control)
        return control


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What is known of a call before it is read. Seconds of time.monotonic()."""

    caller: Principal
    at_monotonic: float
    deadline_monotonic: float | None

    @classmethod
    def of(cls, context: Context) -> RequestContext:
        now, left = time.monotonic(), context.time_remaining()
        return cls(CURRENT_PRINCIPAL.get(), now, None if left is None else now + left)

    def status_margin_seconds(self, lag_seconds: float) -> float:
        """How long before the deadline the server ends the call, so that its status arrives.

        20 ms, more while the event loop is late, and never more than a tenth of the time that the call was given.
        """
        if self.deadline_monotonic is None:
            return 0.0
        margin = min(_STATUS_SECONDS + 2 * lag_seconds, _MAX_STATUS_SECONDS)
        return max(0.0, min(margin, (self.deadline_monotonic - self.at_monotonic) / 10))

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline_monotonic is None else self.deadline_monotonic - time.monotonic()
