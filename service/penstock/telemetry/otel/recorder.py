"""What the parts of a call have in common."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.telemetry.otel.instruments import Instruments


@dataclass(frozen=True, slots=True)
class Recorder:
    instruments: Instruments
    engine_joins: bool
    records_content: bool
