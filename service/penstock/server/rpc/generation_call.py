"""One generation as a caller asks for it, and as it was admitted."""

from __future__ import annotations

from dataclasses import dataclass

from penstock_proto.v1 import generation_pb2 as pb

from penstock.engine.base import Engine
from penstock.generation.control import GenerationControl
from penstock.generation.early_exit import ProbeRun
from penstock.generation.usage import UsageMeter
from penstock.server.request_context import RequestContext
from penstock.sessions.checkpoints import Checkpoint
from penstock.telemetry.hooks import GenerationHooks
from penstock.types import GenerationPlan


@dataclass(frozen=True, slots=True, eq=False)
class GenerationCall:
    """A generation that a caller asks for.

    Attributes:
        spec: The request as it came; a checkpoint keeps it.
        control: What Interact, Steer and draining want of it while it waits and runs.
        meter: What it has used so far.
        flush_seconds: Deltas are merged for this long, as the caller asked; 0 sends each.
        streams: Whether the reply is a stream.
        checkpoint: Where another server drained it; it continues from there.
        resume_token: Of a resumable stream, else empty. A resumable generation outlives its deadline and its client.
        has_capacity: Whether admission was asked already, so that it is asked once a call.
    """

    spec: pb.GenerationSpec
    context: RequestContext
    generation_id: str
    control: GenerationControl
    meter: UsageMeter
    flush_seconds: float = 0.0
    streams: bool = True
    checkpoint: Checkpoint | None = None
    resume_token: str = ""
    has_capacity: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class AdmittedCall:
    """A call that was planned and holds a permit; `begun` is the answer's run that AUTO's decision began."""

    call: GenerationCall
    engine: Engine
    plan: GenerationPlan
    hooks: GenerationHooks
    effective: pb.EffectiveSettings
    begun: ProbeRun | None = None
