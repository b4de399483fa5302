"""Hold what all spans of a call share."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.telemetry.otel.instruments import Instruments


@dataclass(frozen=True, slots=True)
class Recorder:
    """Hold the instruments and the settings of tracing."""

    instruments: Instruments
    engine_joins: bool
    records_content: bool
