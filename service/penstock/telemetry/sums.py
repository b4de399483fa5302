"""Counters as plain sums. The SDK's own cost eight microseconds an addition, and a call makes a dozen."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation


class Sums:
    """Added to on the event loop alone, read from any thread when somebody collects. An empty label is none."""

    def __init__(self, meter: Meter, name: str, unit: str, description: str, labels: tuple[str, ...] = ()) -> None:
        self._labels = labels
        self._sums: dict[tuple[str, ...], int] = {}
        meter.create_observable_counter(name, [self._read], unit, description)

    def add(self, amount: int, *values: str) -> None:
        self._sums[values] = self._sums.get(values, 0) + amount

    def _read(self, options: CallbackOptions) -> Iterable[Observation]:
        # Copied in one step of the interpreter, so no addition falls in between.
        return [
            Observation(amount, {label: value for label, value in zip(self._labels, values, strict=True) if value})
            for values, amount in self._sums.copy().items()
        ]
